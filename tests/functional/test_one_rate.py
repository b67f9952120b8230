"""One learning rate: an optimizer's lr beside its schedule, in every way to write the two."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.errors import ParameterError
from gpulayers.initializers import OptimizerInitializer, SchedulerInitializer
from gpulayers.optimizers import SGD, Adam, OptimizerBase
from gpulayers.schedulers import (
    ConstantScheduler,
    CosineScheduler,
    ExponentialScheduler,
    NoamScheduler,
    WarmupScheduler,
)

NAMED = {
    "constant": 1.0,
    "exponential(decay=1)": 1.0,
    "cosine": 1.0,
    "king": 1.0,
    "onecycle": 1.0 / 25,
    "warmup(warmup_steps=1)": 1.0,
    "warmup(warmup_steps=1, scheduler=cosine)": 1.0,
}  # name -> the first rate for lr=1


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("cls", ["SGD", "AdaGrad", "RMSProp", "Adam", "AdamW"])
def test_the_rate_that_is_given_is_the_rate_of_a_schedule_by_name(cls, name):
    text = f"{cls}(lr=0.25, lr_scheduler={name})"
    kind = getattr(optimizers, cls)
    for optimizer in (
        OptimizerInitializer(text)(),
        OptimizerInitializer({"id": cls, "lr": 0.25, "lr_scheduler": name})(),
        kind(lr=0.25, lr_scheduler=name),
        kind(0.25, lr_scheduler=name),
        kind().set_params({"lr": 0.25, "lr_scheduler": name}),
        kind(lr=0.25).set_params({"lr_scheduler": name}),
        OptimizerInitializer(str(kind(lr=0.25, lr_scheduler=name)))(),
    ):
        assert optimizer.lr_scheduler(1) == pytest.approx(0.25 * NAMED[name], rel=1e-4)
        assert optimizer.lr == optimizer.hyperparameters["lr"] == 0.25


def test_it_is_what_a_step_takes():
    optimizer = OptimizerInitializer("SGD(lr=0.5, lr_scheduler=constant)")()
    np.testing.assert_array_equal(optimizer(np.ones(2), np.ones(2), "W"), [0.5, 0.5])


def test_a_rate_that_nobody_gave_is_no_conflict():
    assert Adam(lr_scheduler="cosine").lr_scheduler(0) == CosineScheduler()(0) == 0.01
    for schedule in (CosineScheduler(0.5), "cosine(initial_lr=0.5)"):
        optimizer = Adam(lr_scheduler=schedule)
        assert optimizer.lr == optimizer.lr_scheduler(0) == 0.5, "and lr tells the schedule's"
    assert Adam(lr_scheduler="noam").lr == 0.001
    assert SGD(lr=0.5, lr_scheduler=CosineScheduler(0.5)).lr_scheduler(0) == 0.5, "equal ones"


@pytest.mark.parametrize(
    "schedule, words",
    [
        (CosineScheduler(0.5), "CosineScheduler has the learning rate 0.5; give one"),
        ("exponential(initial_lr=0.5)", "ExponentialScheduler has the learning rate 0.5"),
        ("onecycle(max_lr=0.5)", "OneCycleScheduler has the learning rate 0.5"),
        ("warmup(scheduler=constant(lr=0.5))", "WarmupScheduler has the learning rate 0.5"),
        ({"id": "constant", "lr": 0.5}, "ConstantScheduler has the learning rate 0.5"),
        ("noam", "beside NoamScheduler, which has no learning rate among its arguments; leave lr"),
        (NoamScheduler(), "beside NoamScheduler"),
        (WarmupScheduler(3, "noam"), "beside WarmupScheduler"),
    ],
)
def test_another_rate_is_refused(schedule, words):
    for lr in (0.001, 0.1):  # the first is Adam's default, but given
        with pytest.raises(ParameterError, match=rf"Adam: lr={lr} .*{words}"):
            Adam(lr=lr, lr_scheduler=schedule)
        with pytest.raises(ParameterError, match=rf"Adam: lr={lr} .*{words}"):
            Adam().set_params({"lr": lr, "lr_scheduler": schedule})
        if isinstance(schedule, str):
            with pytest.raises(ParameterError, match=rf"Adam: lr={lr} .*{words}"):
                OptimizerInitializer(f"Adam(lr={lr}, lr_scheduler={schedule})")()


def test_a_string_with_every_argument_is_refused_too():
    text = "SGD(lr=0.1, momentum=0.9, clip_norm=None, lr_scheduler=ConstantScheduler(lr=0.5))"
    with pytest.raises(ParameterError, match=r"SGD: lr=0\.1 was asked for, but ConstantSch"):
        OptimizerInitializer(text)()


@pytest.mark.parametrize(
    "schedule", [ExponentialScheduler(0.5), NoamScheduler(model_dim=8), ConstantScheduler(0.5)]
)
def test_what_numpy_ml_and_older_files_wrote_is_read(schedule):
    """Their lr beside a schedule is one that was ignored."""
    written = {
        "id": "SGD",
        "lr": 0.1,
        "momentum": 0.5,
        "clip_norm": None,
        "lr_scheduler": str(schedule),
    }
    for optimizer in (
        OptimizerInitializer({"hyperparameters": written, "cache": {}})(),
        SGD().set_params(written),
    ):
        assert str(optimizer.lr_scheduler) == str(schedule) and optimizer.momentum == 0.5
        state = {**optimizer.state_dict(), "hyperparameters": written}
        again = OptimizerInitializer({"hyperparameters": written})()
        again.load_state_dict(state)
        assert str(again) == str(optimizer)
        assert again.lr_scheduler(3) == schedule(3)


@pytest.mark.parametrize("name", [*NAMED, "noam"])
def test_what_is_written_is_read_back_with_and_without_a_rate(name):
    for text in (f"Adam(lr_scheduler={name})", f"Adam(lr=0.25, lr_scheduler={name})"):
        if "lr=" in text and name == "noam":
            continue
        made = OptimizerInitializer(text)()
        assert str(OptimizerInitializer(str(made))()) == str(made)
        assert str(OptimizerInitializer({"hyperparameters": made.hyperparameters})()) == str(made)
        fresh = Adam()
        fresh.load_state_dict(made.state_dict())
        assert str(fresh) == str(made)


def test_own_optimizers_and_scheduler_initializer_use_the_rate_where_none_is_stated():
    class Plain(OptimizerBase):
        """With numpy-ml's two arguments alone."""

        def update(self, param, param_grad, param_name, cur_loss=None):
            return param - self.lr_scheduler(self.cur_step, cur_loss) * param_grad

    assert Plain(0.25, "cosine").lr_scheduler(0) == 0.25
    assert Plain(0.25, "cosine(initial_lr=0.5)").lr_scheduler(0) == 0.5
    assert SchedulerInitializer("king", lr=0.25)()(1) == 0.25
    assert str(SchedulerInitializer("noam", lr=0.25)()) == str(NoamScheduler())


def test_the_state_beside_a_schedule_of_ones_own_is_read_back():
    class Mine(ConstantScheduler):
        def __str__(self):
            return "Mine(top=0.1)"

    state = Adam(lr_scheduler=Mine(0.1)).state_dict()
    optimizer = Adam(lr_scheduler=Mine(0.1))
    optimizer.load_state_dict(state)
    assert type(optimizer.lr_scheduler) is Mine
