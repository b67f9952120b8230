"""Optimizers: rules against loops and PyTorch, clipping, state, parameters, checkpoints."""

import math

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.errors import BackendError, CheckpointError, DTypeError, ParameterError, ShapeError
from gpulayers.optimizers import SGD, AdaGrad, Adam, RMSProp
from gpulayers.schedulers import ConstantScheduler, KingScheduler

RULES = ("SGD", "AdaGrad", "RMSProp", "Adam", "AdamW")
rule = pytest.mark.parametrize("name", RULES)


def make(name, **options):
    defaults = {"SGD": {"lr": 0.1, "momentum": 0.9}, "RMSProp": {"lr": 0.1, "decay": 0.8}}
    return getattr(optimizers, name)(**{**defaults.get(name, {"lr": 0.1}), **options})


def gold_steps(name, param, grads, *, lr=0.1, clip=None, eps=1e-7):
    """The rule in float64, one number at a time; returns the parameter after the last gradient."""
    shape, values = param.shape, [float(v) for v in param.ravel()]
    first, second = [0.0] * len(values), [0.0] * len(values)
    for t, grad in enumerate(grads, 1):
        flat = [float(g) for g in grad.ravel()]
        norm = math.sqrt(sum(g * g for g in flat))
        if clip is not None and norm > clip:
            flat = [g * clip / norm for g in flat]
        for i, g in enumerate(flat):
            if name == "SGD":
                first[i] = 0.9 * first[i] + lr * g
                values[i] -= first[i]
            elif name == "AdaGrad":
                first[i] += g * g
                values[i] -= lr * g / (math.sqrt(first[i]) + eps)
            elif name == "RMSProp":
                first[i] = 0.8 * first[i] + 0.2 * g * g
                values[i] -= lr * g / (math.sqrt(first[i]) + eps)
            else:
                values[i] *= 1 - 0.01 * lr * (name == "AdamW")
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                m_hat, v_hat = first[i] / (1 - 0.9**t), second[i] / (1 - 0.999**t)
                values[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)
    return np.array(values).reshape(shape)


def draw(shape=(3, 5), steps=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    scales = rng.choice([1e-3, 1.0, 30.0], size=(steps, *shape))
    grads = rng.normal(size=(steps, *shape)) * scales
    return np.asarray(rng.normal(size=shape), dtype), [np.asarray(g, dtype) for g in grads]


def run(optimizer, param, grads, name="W"):
    for grad in grads:
        optimizer.step()
        optimizer.update_(param, grad, name)
    return param


def test_every_public_optimizer_has_a_case():
    functions = {"clip_global_norm", "clip_value"}
    assert {*RULES, "OptimizerBase"} == set(optimizers.__all__) - functions


# -------------------------------------------------------------------------------------------- rules


@rule
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize(
    "dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5), ("float16", 2e-2)]
)
@pytest.mark.parametrize("shape", [(3, 5), (), (1,), (2, 1, 3, 2)])
def test_rule_against_loops(name, clip, dtype, tolerance, shape, backend):
    param, grads = draw(shape, dtype=dtype)
    eps = 1e-3 if dtype == "float16" else 1e-7  # 1e-7 vanishes in float16
    options = {} if name == "SGD" else {"eps": eps}
    optimizer = make(name, clip_norm=clip, **options)
    array = backend.asarray(param.copy())
    run(optimizer, array, [backend.asarray(g) for g in grads])
    gold = gold_steps(name, param, grads, clip=clip, eps=eps)
    assert array.dtype == np.dtype(dtype)
    if dtype == "float16" and name.startswith("Adam"):
        # 0.001 g^2 of a small gradient is subnormal in float16: only the size is comparable
        tolerance = 0.3
    got = backend.asnumpy(array).astype(np.float64)
    np.testing.assert_allclose(got, gold, rtol=tolerance, atol=tolerance)


@rule
def test_rule_against_torch(name, numpy_backend):
    torch = pytest.importorskip("torch")
    param, grads = draw(steps=8)
    theirs = torch.tensor(param.copy(), requires_grad=True)
    other = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "AdaGrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-7),
        "RMSProp": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.8, eps=1e-7),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-7),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-7, weight_decay=0.01),
    }[name]([theirs])
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        other.step()
    run(make(name), param, grads)
    np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_learning_rate_is_inside_the_velocity(backend):
    optimizer = SGD(lr_scheduler="exponential(initial_lr=1.0, stage_length=1, decay=0.5)")
    optimizer.set_params({"momentum": 0.5})
    param = backend.asarray(np.zeros(1))
    one = backend.asarray(np.ones(1))
    seen = []
    for _ in range(3):
        optimizer.step()
        optimizer.update_(param, one, "W")
        seen.append(float(backend.asnumpy(param)[0]))
    # v1 = 0.5, v2 = 0.25 + 0.25, v3 = 0.25 + 0.125
    assert seen == [-0.5, -1.0, -1.375]


@rule
def test_call_returns_a_new_array_and_leaves_its_inputs(name, backend):
    param, grads = draw()
    optimizer, twin = make(name), make(name)
    array, grad = backend.asarray(param.copy()), backend.asarray(grads[0].copy())
    updated = optimizer(array, grad, "W", 0.5)
    assert updated is not array and isinstance(updated, backend.xp.ndarray)
    np.testing.assert_array_equal(backend.asnumpy(array), param)
    np.testing.assert_array_equal(backend.asnumpy(grad), grads[0])
    twin.update_(array, grad, "W")
    np.testing.assert_array_equal(backend.asnumpy(updated), backend.asnumpy(array))
    assert not np.array_equal(backend.asnumpy(updated), param)


@rule
@pytest.mark.parametrize("clip", [None, 0.5])
def test_update_keeps_identity_and_never_waits(name, clip, backend):
    param, grads = draw(dtype=np.float32)
    optimizer = make(name, clip_norm=clip)
    array, grad = backend.asarray(param), backend.asarray(grads[0])
    optimizer.update_(array, grad, "W")

    def state():
        entry = optimizer.cache["W"]
        return [entry[k] for k in ("mean", "var")] if name.startswith("Adam") else [entry]

    before, pointer = state(), array
    with backend.forbid("sync", "h2d", "d2h"):
        optimizer.update_(array, grad, "W")
    assert pointer is array
    assert all(a is b for a, b in zip(before, state(), strict=True))
    for entry in state():
        assert isinstance(entry, backend.xp.ndarray)
        assert entry.dtype == array.dtype and entry.shape == array.shape
    np.testing.assert_array_equal(backend.asnumpy(grad), grads[0])


def test_fused_update_is_one_launch(emulated):
    param, grads = draw(dtype=np.float32)
    array, grad = emulated.asarray(param), emulated.asarray(grads[0])
    for name in RULES:
        optimizer = make(name)
        optimizer.update_(array, grad, "W")
        with emulated.count() as events:
            optimizer.update_(array, grad, "W")
        # AdamW's decay of the parameter is a launch of its own
        assert events["launch"] == 1 + (name == "AdamW"), (name, events)


@rule
def test_hostile_layouts(name, backend):
    param, grads = draw((4, 6), steps=1)
    gold = gold_steps(name, param, grads)
    wide = np.zeros((4, 13))
    wide[:, 1::2] = grads[0]
    for grad in (np.asfortranarray(grads[0]), wide[:, 1::2], grads[0].astype(np.float32)):
        for layout in (param, np.asfortranarray(param)):
            got = make(name)(backend.asarray(layout), backend.asarray(grad), "W")
            assert got.dtype == np.float64
            tolerance = 1e-12 if grad.dtype == np.float64 else 1e-5
            np.testing.assert_allclose(backend.asnumpy(got), gold, rtol=tolerance, atol=tolerance)
    with pytest.raises(ShapeError, match="param must be C-contiguous, it is changed in place"):
        array = backend.asarray(np.asfortranarray(param))
        make(name).update_(array, backend.asarray(grads[0]), "W")


@rule
@pytest.mark.parametrize("clip", [None, 1.0])
def test_empty_parameter(name, clip, backend):
    empty = backend.asarray(np.zeros((0, 3), np.float32))
    assert make(name, clip_norm=clip)(empty, empty, "W").shape == (0, 3)


# ----------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e30, 1e200])
def test_clipped_norm(dtype, size, backend):
    if size > float(np.finfo(dtype).max) / 10:
        pytest.skip("not representable")
    grad = (np.random.default_rng(0).normal(size=(6, 7)) * size).astype(dtype)
    step = SGD(lr=1.0, clip_norm=2.0)(
        backend.asarray(np.zeros((6, 7), dtype)), backend.asarray(grad), "W"
    )
    step = -backend.asnumpy(step).astype(np.float64)
    wide = grad.astype(np.float64)
    norm = np.abs(wide).max() * np.sqrt(((wide / np.abs(wide).max()) ** 2).sum())
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    if norm <= 2.0:
        np.testing.assert_array_equal(step, wide)
    else:
        np.testing.assert_allclose(step, wide * (2.0 / norm), rtol=tolerance)


def test_clip_is_for_each_parameter_by_itself(backend):
    optimizer = SGD(lr=1.0, clip_norm=1.0)
    for name, length in (("W", 3.0), ("b", 0.5)):
        grad = backend.asarray(np.array([0.0, length]))
        step = optimizer(backend.asarray(np.zeros(2)), grad, name)
        assert backend.asnumpy(step).tolist() == [0.0, -min(length, 1.0)]


def test_zero_gradient_and_a_huge_limit(backend):
    zero = backend.asarray(np.zeros(3, np.float32))
    for limit in (1.0, 1e300):
        assert backend.asnumpy(SGD(lr=1.0, clip_norm=limit)(zero, zero, "W")).tolist() == [0, 0, 0]
    one = backend.asarray(np.ones(3, np.float32))
    assert backend.asnumpy(SGD(lr=1.0, clip_norm=1e300)(zero, one, "W")).tolist() == [-1] * 3


# --------------------------------------------------------------------------------- steps, schedules


def test_schedule_sees_step_and_loss():
    seen = []

    class Spy(ConstantScheduler):
        def learning_rate(self, step=None, cur_loss=None):
            seen.append((step, cur_loss))
            return 0.5

    optimizer = SGD(lr_scheduler=Spy())
    one = np.ones(2)
    for loss in (3.0, 2.0):
        optimizer.step()
        assert optimizer(one, one, "W", loss).tolist() == [0.5, 0.5]
        optimizer.update_(one.copy(), one, "b", cur_loss=loss)
    optimizer.reset_step()
    optimizer(one, one, "W")
    assert seen == [(1, 3.0), (1, 3.0), (2, 2.0), (2, 2.0), (0, None)]


def test_noam_at_step_zero_does_nothing_yet():
    optimizer = Adam(lr_scheduler="noam")
    assert optimizer(np.ones(2), np.ones(2), "W").tolist() == [1.0, 1.0]


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
    assert optimizer.cache == {}


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
