"""Batch normalisation, sums and average pooling inside the planned step on a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    GlobalAvgPool2D,
    Pool2D,
)
from gpulayers.models import Activation, Residual
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SGD, Run, pair, same
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def conv(filters: int) -> Conv2D:
    return Conv2D(filters, (3, 3), pad=1)


def normed() -> list[Any]:
    """As in the zoo: convolution, normalisation, ReLU, with pooling that leaves a row out and
    without; an average; a dense layer."""
    return [
        *(conv(3), BatchNorm2D(), Activation("ReLU"), Pool2D((2, 2), stride=2)),
        *(conv(4), BatchNorm2D(momentum=0.5), Activation("ReLU")),
        Pool2D((4, 4), stride=4, mode="average"),
        *(Flatten(), FullyConnected(7), BatchNorm1D(), Activation("ReLU"), FullyConnected(CLASSES)),
    ]


def residual() -> list[Any]:
    """Sums behind a normalisation with ReLU and without, and behind none."""
    return [
        *(conv(4), Activation("ReLU"), BatchNorm2D(), Pool2D((2, 2), stride=2)),
        Residual([conv(4), BatchNorm2D(), Activation("ReLU")]),
        Residual([conv(5), BatchNorm2D()], [Conv2D(5, (1, 1)), BatchNorm2D()]),
        Residual([conv(5), Activation("ReLU")]),
        *(GlobalAvgPool2D(), FullyConnected(CLASSES)),
    ]


def dropping() -> list[Any]:
    """Masks behind a ReLU and not, in a residual block too; one that drops nothing."""
    return [
        *(Dropout(0.25), conv(3), Activation("ReLU"), Dropout(0.5), Dropout(0.0)),
        Residual([conv(3), Dropout(0.1)], [Conv2D(3, (1, 1)), Dropout(0.3)]),
        *(Flatten(), FullyConnected(7, act_fn="ReLU"), Dropout(0.5), FullyConnected(CLASSES)),
    ]


@pytest.mark.parametrize("layers", [normed, residual, dropping])
def test_losses_are_those_of_the_layers(emulated: Backend, layers: Any) -> None:
    plain, planned = pair(emulated, layers)
    sizes = (BATCH, BATCH, 2, BATCH, 2)
    random.seed(3)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in sizes]
    state = random.get_state()
    random.seed(3)
    np.testing.assert_allclose(got, [plain.step(n) for n in sizes], rtol=2e-4)
    assert random.get_state() == state, "the stream goes on alike"
    assert events["graph_launch"] == 3
    same(planned, plain, 1e-4)  # running statistics too
    assert ("+ ReLU + max pooling\n" in planned.plan.describe()) == (layers is normed)


def test_masks_follow_the_generator(emulated: Backend) -> None:
    """Nothing is written to the device unless somebody else draws, or sets another seed."""
    plain, planned = pair(emulated, dropping)
    for run in (plain, planned):
        random.seed(2**63 + 5)
        random.set_state({**random.get_state(), "counter": 2**64 - 3})
        run.step()
        run.step()
        random.default_generator().uniform(9)
        run.step()
        random.seed(4)
        run.step()
    same(planned, plain, 1e-4)
    with fake_cupy.count() as events, fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        planned.plan.step(planned.X, planned.labels)
    assert events["launch"] == 3, "images, labels, the loss: as without dropout"


def test_dropout_that_is_switched_off(emulated: Backend) -> None:
    plain, planned = pair(emulated, dropping)
    for run in (plain, planned):
        random.seed(0)
        run.step()
        run.step()
        run.network[3].freeze()
        run.network[8].p = 0.0
        run.step()
        run.step()
        run.network[3].unfreeze()
        run.step()
    same(planned, plain, 1e-4)


def test_running_statistics_go_on(emulated: Backend) -> None:
    """Also when somebody puts other arrays into their place, which the graph has no address of."""
    plain, planned = pair(emulated, normed)
    for run in (plain, planned):
        for _ in range(3):
            run.step()
        parameters = run.network[1].parameters
        parameters["running_mean"] = parameters["running_mean"] + np.float32(1.0)
        run.step()
    same(planned, plain, 1e-4)
    mean = plain.network[1].parameters["running_mean"].get()
    assert np.abs(mean).min() > 0.5, "the step before took them"


def test_a_graph_that_holds_other_statistics_is_caught(emulated: Backend) -> None:
    """What the stand-in says of a plan that does not look after arrays put in from outside."""
    planned = Run(emulated, normed, SGD).compile()
    for _ in range(2):
        planned.step()
    planned.plan._kept._arrays.clear()
    parameters = planned.network[1].parameters
    parameters["running_mean"] = parameters["running_mean"] + np.float32(1.0)
    with pytest.raises(fake_cupy.DeviceRuleError, match="the graph uses an array that is gone"):
        planned.step()


@pytest.mark.parametrize("fault", ["draws", "arena", "judgement"])
def test_memory_that_a_graph_has_lost_is_caught(emulated: Backend, fault: str) -> None:
    """Planted: the stream of random numbers in another array, the memory of the captures let go of
    or given to somebody else, what clips gradients in other arrays."""
    planned = Run(emulated, dropping, "SGD(lr=0.1, clip_norm=0.5)").compile()
    for _ in range(3):
        planned.step()
    plan, xp = planned.plan, emulated.xp
    if fault == "draws":
        plan._draws.state = xp.zeros(4, dtype="uint64")
        words = "an array that is gone"
    elif fault == "arena":
        with xp.cuda.using_allocator(plan._recorder._arena.malloc):
            taken = xp.zeros(100, dtype="float32")
        words = "memory that its pool has given to others"
        assert taken.size == 100
    else:
        plan._flat._judgement = None
        words = "an array that is gone"
    with pytest.raises(fake_cupy.DeviceRuleError, match=words):
        planned.step()


def test_frozen_normalisation_and_new_hyperparameters(emulated: Backend) -> None:
    plain, planned = pair(emulated, normed)
    for run in (plain, planned):
        norm = run.network[1]
        for _ in range(2):
            run.step()
        norm.freeze()
        X = run.X
        if run.plan is not None:
            for _ in range(2):
                run.plan.step(X, run.labels)
        else:
            for _ in range(2):
                run.loss.forward(run.labels, run.network.forward(X))
                run.network.backward(run.loss.backward(), input_grad=False)
                run.network.update()
        norm.unfreeze()
        norm.momentum = 0.1
        for _ in range(2):
            run.step()
    same(planned, plain, 2e-4)
