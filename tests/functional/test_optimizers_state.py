"""Optimizers: state, hyperparameters, checkpoints."""

import math

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.errors import BackendError, CheckpointError, DTypeError, ParameterError, ShapeError
from gpulayers.optimizers import SGD, AdaGrad, Adam, RMSProp
from gpulayers.schedulers import KingScheduler
from tests.functional.test_optimizers import draw, gold_steps, make, rule, run

# ---------------------------------------------------------------------------- state by name, copies


@rule
def test_parameters_have_separate_state(name):
    param, grads = draw()
    other = draw((2,), seed=1)
    mixed = make(name)
    for grad, small in zip(grads, other[1], strict=True):
        mixed.update_(param, grad, "W")
        mixed.update_(other[0], small, "b")
    for array, (start, steps) in ((param, draw()), (other[0], draw((2,), seed=1))):
        np.testing.assert_allclose(array, gold_steps(name, start, steps), rtol=1e-12, atol=1e-12)
    assert set(mixed.cache) == {"W", "b"}


@rule
def test_copy_is_independent(name, backend):
    param, grads = draw()
    optimizer = make(name, lr_scheduler=KingScheduler(0.1, patience=1, decay=0.5))
    array, grad = backend.asarray(param), backend.asarray(grads[0])
    optimizer.update_(array, grad, "W", 1.0)
    twin = optimizer.copy()
    assert str(twin) == str(optimizer)
    expected = backend.asnumpy(optimizer.copy()(array, grad, "W", 1.0)).copy()
    for loss in range(1, 9):
        twin.step()
        twin(array, grad, "W", float(loss))
    assert optimizer.cur_step == 0 and optimizer.lr_scheduler.current_lr == 0.1
    np.testing.assert_array_equal(backend.asnumpy(optimizer(array, grad, "W", 1.0)), expected)


@rule
def test_one_object_for_two_layers_is_told(name):
    optimizer = make(name)
    optimizer(np.ones((2, 3)), np.ones((2, 3)), "W")
    before = optimizer.state_dict()
    with pytest.raises(ShapeError, match=r"state kept for 'W' has shape \(2, 3\).*copy\(\)"):
        optimizer(np.ones((3, 2)), np.ones((3, 2)), "W")
    assert str(optimizer.state_dict()) == str(before)


def test_state_follows_the_parameter(emulated):
    optimizer = Adam()
    optimizer(np.ones(3, np.float64), np.ones(3, np.float64), "W")
    on_device = emulated.asarray(np.ones(3, np.float32))
    optimizer.update_(on_device, on_device.copy(), "W")
    entry = optimizer.cache["W"]
    assert entry["t"] == 2
    assert isinstance(entry["mean"], emulated.xp.ndarray) and entry["mean"].dtype == np.float32
    np.testing.assert_allclose(emulated.asnumpy(entry["mean"]), 0.19, rtol=1e-6)


# ------------------------------------------------------------------------------- hyperparameters


def test_hyperparameters():
    assert SGD().hyperparameters == {
        "id": "SGD",
        "lr": 0.01,
        "momentum": 0.0,
        "clip_norm": None,
        "lr_scheduler": "ConstantScheduler(lr=0.01)",
    }
    assert AdaGrad().hyperparameters["eps"] == 1e-7
    assert (RMSProp().lr, RMSProp().decay, RMSProp().eps) == (0.001, 0.9, 1e-7)
    assert (Adam().lr, Adam().decay1, Adam().decay2, Adam().eps) == (0.001, 0.9, 0.999, 1e-7)
    # positional order is numpy-ml's
    assert RMSProp(1, 0.5, 2, 3).hyperparameters == {
        "id": "RMSProp",
        "lr": 1,
        "eps": 2,
        "decay": 0.5,
        "clip_norm": 3,
        "lr_scheduler": "ConstantScheduler(lr=1)",
    }
    assert str(Adam(1, 0.5, 0.25, 2, 3)) == (
        "Adam(lr=1, decay1=0.5, decay2=0.25, eps=2, clip_norm=3, "
        "lr_scheduler=ConstantScheduler(lr=1))"
    )


@rule
def test_set_params_changes_the_update(name):
    param, grads = draw(steps=3)
    changed = {"SGD": {"momentum": 0.9}, "RMSProp": {"decay": 0.8}}.get(name, {})
    optimizer = getattr(optimizers, name)(lr=5.0)
    assert optimizer.set_params({"id": name, "lr": 0.1, **changed, "clip_norm": 0.5}) is optimizer
    run(optimizer, param, grads)
    start = draw(steps=3)[0]
    gold = gold_steps(name, start, grads, clip=0.5)
    np.testing.assert_allclose(param, gold, rtol=1e-12, atol=1e-12)
    assert optimizer.hyperparameters["lr"] == 0.1
    assert str(optimizer.lr_scheduler) == "ConstantScheduler(lr=0.1)"


def test_set_params_takes_a_copy_of_a_cache(backend):
    source, optimizer = SGD(momentum=0.5), SGD(momentum=0.5)
    one = backend.asarray(np.ones(2))
    source(one, one, "W")
    optimizer.set_params(cache_dict=source.cache)
    assert optimizer.cache["W"] is not source.cache["W"]
    expected = source(one, one, "W")
    got = optimizer(one, one, "W")
    assert backend.asnumpy(got).tolist() == backend.asnumpy(expected).tolist() == [0.985, 0.985]


def test_an_assigned_learning_rate_is_used_or_refused():
    optimizer = SGD(lr=0.5)
    optimizer.lr = 2
    np.testing.assert_array_equal(optimizer(np.ones(2), np.ones(2), "W"), [-1, -1])
    assert optimizer.copy().hyperparameters["lr"] == 2
    with pytest.raises(ParameterError, match="lr"):
        optimizer.lr = -1
    scheduled = Adam(lr_scheduler="noam")
    with pytest.raises(ParameterError, match=r"lr=0\.5 has no effect, .* comes from NoamSch"):
        scheduled.lr = 0.5
    assert (optimizer.lr, scheduled.lr) == (2, 0.001)


def test_set_params_with_schedules():
    optimizer = Adam(lr=0.1)
    optimizer.set_params({"lr_scheduler": "NoamScheduler(model_dim=4)"})
    assert optimizer.lr_scheduler.hyperparameters["model_dim"] == 4
    kept = optimizer.lr_scheduler
    optimizer.set_params(optimizer.hyperparameters)  # nothing new: the schedule and its state stay
    assert optimizer.lr_scheduler is kept
    with pytest.raises(ParameterError, match=r"lr=0.5 has no effect.*NoamScheduler.*lr_scheduler"):
        optimizer.set_params({"lr": 0.5, "eps": 1.0})
    assert (optimizer.lr, optimizer.eps) == (0.1, 1e-7)
    optimizer.set_params({"lr": 0.5, "lr_scheduler": None})
    assert optimizer.lr_scheduler(1) == 0.5


@rule
def test_bad_parameters_are_refused(name):
    cls = getattr(optimizers, name)
    for key in [k for k in cls().hyperparameters if k not in ("id", "lr_scheduler")]:
        for value in (
            -1,
            math.nan,
            math.inf,
            "0.1",
            True,
            *(() if key == "clip_norm" else (None,)),
        ):
            with pytest.raises(ParameterError, match=f"{name}: {key} must be"):
                cls(**{key: value})
    with pytest.raises(ParameterError, match="clip_norm must be in"):
        cls(clip_norm=0)
    with pytest.raises(ParameterError, match=f"{name}: unknown argument 'clipnorm'.*'clip_norm'"):
        cls(clipnorm=1)
    optimizer = cls()
    before = str(optimizer)
    for bad, message in (
        ({"lr": 0.5, "learning": 1}, f"{name}.set_params: unknown argument 'learning'"),
        ({"lr": 0.5, "clip_norm": -1}, "clip_norm must be"),
        ({"lr": 0.5, "id": "Other"}, f"{name}: got hyperparameters of 'Other'"),
        ({"lr": 0.5, "lr_scheduler": "nam"}, "unknown scheduler"),
    ):
        with pytest.raises(ParameterError, match=message):
            optimizer.set_params(bad)
    with pytest.raises(ParameterError, match="the state of 'W' does not fit"):
        optimizer.set_params({"lr": 0.5}, {"W": "zeros"})
    assert str(optimizer) == before and optimizer.cache == {}


@pytest.mark.parametrize("key", ["decay1", "decay2"])
def test_adam_needs_averages_that_forget(key):
    with pytest.raises(ParameterError, match=rf"Adam: {key} must be in \[0.0, 1.0\), got 1.0"):
        Adam(**{key: 1.0})


@rule
def test_bad_arrays_are_refused(name, backend):
    optimizer = make(name)
    ones = backend.asarray(np.ones((2, 3), np.float32))
    with pytest.raises(
        ShapeError, match=rf"{name}: the gradient of 'W' must have.*\(2, 3\), got \(3,\)"
    ):
        optimizer(ones, ones[0], "W")
    with pytest.raises(DTypeError, match="param_grad must be a floating array, got int64"):
        optimizer(ones, ones.astype(np.int64), "W")
    with pytest.raises(DTypeError, match="param must be a floating array, got int64"):
        optimizer(ones.astype(np.int64), ones, "W")
    with pytest.raises(DTypeError, match="expected a numpy or cupy array, got list"):
        optimizer(ones, [1.0], "W")
    with pytest.raises(DTypeError, match="expected a numpy or cupy array, got list"):
        optimizer.update_([1.0], ones, "W")
    assert optimizer.cache == {}
    optimizer(ones, ones, "W")  # with a state they are refused as well
    for bad, error in ((ones[0], ShapeError), (ones.astype(np.int64), DTypeError)):
        with pytest.raises(error, match="grad"):
            optimizer(ones, bad, "W")


@rule
@pytest.mark.parametrize("size", [5, 70_000])  # the second is large enough for kernels and threads
def test_the_other_byte_order_is_changed_in_place(name, size, backend):
    rng = np.random.default_rng(3)
    param, grad = rng.standard_normal((2, size)).astype(np.float32)
    swapped = param.astype(">f4")
    native, other = make(name), make(name)
    for _ in range(3):
        native.update_(param, grad, "W")
        other.update_(swapped, grad.astype(">f4"), "W")
    np.testing.assert_allclose(swapped, param, rtol=1e-5, atol=1e-6)


def test_mixed_backends_are_refused(emulated):
    with pytest.raises(BackendError, match="numpy and cupy arrays were mixed"):
        SGD()(emulated.asarray(np.ones(2)), np.ones(2), "W")


# -------------------------------------------------------------------------------------- checkpoints


@rule
def test_state_dict_goes_on_exactly(name, backend):
    param, grads = draw(steps=6, dtype=np.float32)
    options = {"lr_scheduler": "king(initial_lr=0.1, patience=1, decay=0.5)", "clip_norm": 3.0}
    steps = [(backend.asarray(g), float(i)) for i, g in enumerate(grads)]

    def go(optimizer, array, some):
        for grad, loss in some:
            optimizer.step()
            optimizer.update_(array, grad, "W", loss)

    whole = backend.asarray(param.copy())
    go(make(name, **options), whole, steps)

    first, half = make(name, **options), backend.asarray(param.copy())
    go(first, half, steps[:3])
    state = first.state_dict()
    kept = half.copy()
    go(first, half, steps[3:])  # must not reach into the state

    second = getattr(optimizers, name)()
    second.load_state_dict(state)
    assert second.cur_step == 3 and str(second) == str(first)
    go(second, kept, steps[3:])
    np.testing.assert_array_equal(backend.asnumpy(kept), backend.asnumpy(whole))
    assert second.lr_scheduler.current_lr < 0.1


def test_bad_state_is_refused_and_changes_nothing():
    adam = Adam(lr=0.5)
    adam(np.ones(2), np.ones(2), "W")
    good, before = adam.state_dict(), str(adam.state_dict())
    for bad, message in (
        ({}, "Adam: bad state: KeyError"),
        ({**good, "id": "SGD"}, "Adam: got the state of 'SGD'"),
        ({**good, "cache": {"W": np.ones(2)}}, "Adam: the state of 'W' does not fit"),
        ({**good, "cache": {"W": {"t": 1, "mean": np.ones(2)}}}, "the state of 'W' does not fit"),
        ({**good, "cache": {"W": {**good["cache"]["W"], "t": "x"}}}, "the state of 'W'"),
        ({**good, "hyperparameters": {"lr": -1}}, "Adam: bad state: .*lr must be"),
        ({**good, "scheduler": {"current_lr": 1}}, "ConstantScheduler has no state"),
        ({**good, "cur_step": None}, "Adam: bad state: TypeError"),
    ):
        with pytest.raises(CheckpointError, match=message):
            adam.load_state_dict(bad)
    assert str(adam.state_dict()) == before


# ------------------------------------------------------------------------------------ a user's own


def test_an_optimizer_of_the_users_own(backend):
    class SignDescent(optimizers.OptimizerBase):
        def update(self, param, param_grad, param_name, cur_loss=None):
            lr = self.lr_scheduler(self.cur_step, cur_loss)
            return param - lr * backend.xp.sign(param_grad)

    optimizer = SignDescent(0.25)
    array = backend.asarray(np.array([1.0, 1.0]))
    grad = backend.asarray(np.array([5.0, -5.0]))
    assert backend.asnumpy(optimizer(array, grad, "W")).tolist() == [0.75, 1.25]
    same = array
    optimizer.update_(array, grad, "W")
    assert same is array and backend.asnumpy(array).tolist() == [0.75, 1.25]
