"""Label smoothing in the captured step, against the layers with the loss as they have it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.training.precision import WideLoss
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SHAPE, Run, same
from tests.models.test_graph_precision import HalfRun, halves
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def layers() -> list[Any]:
    return [Conv2D(3, (3, 3), act_fn="ReLU"), Flatten(), FullyConnected(CLASSES)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_losses_are_those_of_the_layers(
    emulated: Backend, reduction: str, smoothing: float
) -> None:
    plain, planned = (Run(emulated, layers, "SGD(lr=0.02, momentum=0.9)") for _ in range(2))
    plain.loss = SoftmaxCrossEntropy(reduction, smoothing)
    planned.compile(loss=SoftmaxCrossEntropy(reduction, smoothing))
    sizes = (BATCH, 2, BATCH, BATCH)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in sizes]
    np.testing.assert_allclose(got, [plain.step(n) for n in sizes], rtol=2e-5)
    same(planned, plain)
    assert events["graph_launch"] == 2 and "captured" in planned.plan.describe()
    assert planned.step(0) == 0.0


def test_in_float16_with_a_loss_scale(emulated: Backend) -> None:
    def wide(run: HalfRun) -> WideLoss:
        return WideLoss(SoftmaxCrossEntropy(label_smoothing=0.2), run.scaler)

    plain, planned = halves(emulated, "SGD(lr=0.05)", "fp16")
    plain.wide, planned.wide = wide(plain), wide(planned)
    planned.plan = planned.network.compile((BATCH, *SHAPE), loss=planned.wide)
    random.seed(1)
    got = [planned.step() for _ in range(3)]
    random.seed(1)
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=0.01)


def test_a_changed_smoothing_is_told(emulated: Backend) -> None:
    run = Run(emulated, layers, "SGD")
    loss = SoftmaxCrossEntropy(label_smoothing=0.1)
    run.compile(loss=loss).step()
    loss.label_smoothing = 0.3
    with pytest.raises(ParameterError, match="changed since the plan was made: the loss"):
        run.step()
