"""Optimizers given to several layers, and what strings and dicts say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import activations, layers, losses, modules, optimizers, schedulers
from gpulayers.errors import GPULayersError
from gpulayers.initializers import (
    ActivationInitializer,
    OptimizerInitializer,
    SchedulerInitializer,
)
from tests.conftest import Backend
from tests.defects.support import known
from tests.support.compare import assert_close, host


@pytest.mark.defect(29)
def test_one_optimizer_in_two_layers_keeps_two_states(backend: Backend) -> None:
    """numpy-ml's two layers share the velocity of "W" and the step: one step each moves them by
    -1 and -1.5."""
    optimizer = optimizers.SGD(lr=1.0, momentum=0.5)
    one = backend.asarray(np.ones((1, 1)))
    moved = []
    for _ in range(2):
        layer = known(layers.FullyConnected(1, optimizer=optimizer), backend, (1, 1))
        layer.forward(one)
        layer.backward(one)
        layer.update()
        assert layer.optimizer.cur_step == 1
        moved.append(layer.parameters["W"].item())
    assert moved == [-1.0, -1.0] != [-1.0, -1.5]
    assert optimizer.cache == {} and optimizer.cur_step == 0


@pytest.mark.defect(29)
def test_one_optimizer_serves_layers_of_several_sizes(backend: Backend) -> None:
    """numpy-ml raises ValueError: operands could not be broadcast together."""
    optimizer = optimizers.SGD(lr=1.0, momentum=0.5)
    first, second = (layers.FullyConnected(n, optimizer=optimizer) for n in (2, 3))
    Y = second.forward(first.forward(backend.asarray(np.ones((1, 1)))))
    first.backward(second.backward(Y))
    for layer in (second, first):
        W, dW = (host(d["W"]).copy() for d in (layer.parameters, layer.gradients))
        layer.update()
        assert_close(layer.parameters["W"], W - dW)
    module = modules.SkipConnectionIdentityModule(2, 3, 3, optimizer=optimizer)
    assert len({id(layer.optimizer) for layer in module.components}) == len(module.components)


Read = Callable[[Any], Any]


def activation(spec: Any) -> Any:
    return ActivationInitializer(spec)()


def optimizer(spec: Any) -> Any:
    return OptimizerInitializer(spec)()


def scheduler(spec: Any) -> Any:
    return SchedulerInitializer(spec)()


@pytest.mark.defect(32)
@pytest.mark.parametrize(
    "read, spec, shown",
    [
        pytest.param(optimizer, "Adam(decay1=0.5)", {"decay1": 0.5}, id="decay1: 0.9"),
        pytest.param(optimizer, "Adam(decay2=0.5)", {"decay2": 0.5}, id="decay2: 0.999"),
        pytest.param(optimizer, "SGD(clip_norm=1.0)", {"clip_norm": 1.0}, id="clip_norm: None"),
        pytest.param(
            optimizer, "SGD(lr_scheduler=NoamScheduler(model_dim=64))",
            {"lr_scheduler": str(schedulers.NoamScheduler(model_dim=64))}, id="lr_scheduler",
        ),
        pytest.param(
            scheduler, "ExponentialScheduler(initial_lr=.5, stage_length=10)",
            {"initial_lr": 0.5, "stage_length": 10}, id="initial_lr: 0.01, stage_length: 500",
        ),
        pytest.param(
            scheduler, "NoamScheduler(model_dim=64)", {"model_dim": 64}, id="model_dim: 512"
        ),
    ],
)  # fmt: skip
def test_every_argument_in_a_string_counts(read: Read, spec: str, shown: dict[str, Any]) -> None:
    """numpy-ml reads names of letters only: it drops the others silently and uses the defaults
    shown in the ids (for the nested scheduler it raises SyntaxError)."""
    made = read(spec)
    assert {k: made.hyperparameters[k] for k in shown} == shown


WRITTEN = [
    optimizers.SGD(lr=0.1), optimizers.Adam(decay1=0.5, clip_norm=2.0), optimizers.RMSProp(),
    optimizers.AdaGrad(lr_scheduler=schedulers.KingScheduler(patience=7)),
]  # fmt: skip
SCHEDULES = [
    schedulers.ConstantScheduler(lr=0.5), schedulers.ExponentialScheduler(staircase=True),
    schedulers.NoamScheduler(model_dim=8), schedulers.KingScheduler(initial_lr=0.5),
]  # fmt: skip


@pytest.mark.defect(32)
def test_what_str_writes_is_read_back() -> None:
    """numpy-ml raises ValueError (malformed node) for str(SGD(lr=0.1)) and for
    str(ExponentialScheduler())."""
    for read, things in ((optimizer, WRITTEN), (scheduler, SCHEDULES)):
        for thing in things:
            again = read(str(thing))
            assert type(again) is type(thing)
            assert again.hyperparameters == thing.hyperparameters


@pytest.mark.defect(32)
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(activations.ELU(alpha=1.5), id="UnboundLocalError"),
        pytest.param(activations.GELU(approximate=False), id="TypeError"),
        pytest.param(activations.HardSigmoid(), id="ValueError"),
        activations.LeakyReLU(alpha=0.2),
        activations.Affine(slope=2, intercept=3),
    ],
)
def test_an_activations_own_string_is_read_back(made: Any) -> None:
    """numpy-ml raises what the ids say, for "ELU(alpha=1.5)", "GELU(approximate=...)" and
    "Hard Sigmoid"."""
    again = activation(str(made))
    assert type(again) is type(made)
    assert vars(again) == vars(made)


@pytest.mark.defect(32)
@pytest.mark.parametrize("made", SCHEDULES, ids=lambda made: type(made).__name__)
def test_a_schedulers_own_dict_is_read_back(made: Any) -> None:
    """numpy-ml raises NotImplementedError for Exponential ("StepScheduler") and King, and gives
    the others their default values."""
    again = scheduler({"hyperparameters": made.hyperparameters})
    assert type(again) is type(made)
    assert [again(step, 1.0) for step in (1, 2, 900)] == [made(step, 1.0) for step in (1, 2, 900)]


@pytest.mark.defect(32)
def test_an_optimizers_dict_restores_its_state(backend: Backend) -> None:
    """numpy-ml's cache is empty afterwards."""
    made = optimizers.SGD(lr=1.0, momentum=0.5)
    one = backend.asarray(np.ones(2))
    made(backend.xp.zeros_like(one), one, "W")
    again = optimizer({"hyperparameters": made.hyperparameters, "cache": made.cache})
    assert_close(again.cache["W"], [1.0, 1.0])
    assert_close(again(backend.xp.zeros_like(one), one, "W"), [-1.5, -1.5])


@pytest.mark.defect(32)
@pytest.mark.parametrize("read", [activation, optimizer, scheduler])
@pytest.mark.parametrize("spec", [3.0, losses.CrossEntropy()], ids=["number", "loss"])
def test_things_of_another_kind_are_refused_by_name(read: Read, spec: Any) -> None:
    """numpy-ml raises UnboundLocalError for optimizers and schedulers."""
    with pytest.raises(GPULayersError, match=type(spec).__name__ if spec != 3.0 else "3.0|float"):
        read(spec)
