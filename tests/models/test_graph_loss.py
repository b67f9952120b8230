"""Label smoothing, class weights, ignored labels and the squared error in the captured step,
against the layers with the loss as they have it."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import Conv2D, Flatten, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models.plan_loss import SquaredErrorOfOutputs
from gpulayers.models.resident import Resident
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


WEIGHTS = [0.5, 2.0, 0.0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": WEIGHTS},
        {"ignore_index": 1},
        {"class_weights": WEIGHTS[::-1], "ignore_index": -100, "label_smoothing": 0.2},
    ],
    ids=["weights", "ignored", "all"],
)
def test_examples_that_count_differently(
    emulated: Backend, reduction: str, options: dict[str, Any]
) -> None:
    """The mean is over what the examples of each batch count; a batch of ignored ones is 0."""
    plain, planned = (Run(emulated, layers, "SGD(lr=0.02, momentum=0.9)") for _ in range(2))
    plain.loss = SoftmaxCrossEntropy(reduction, **options)
    planned.compile(loss=SoftmaxCrossEntropy(reduction, **options))
    ignored = options.get("ignore_index", 2)
    for run in (plain, planned):
        run.labels = emulated.asarray(np.array([ignored, 0, 1, 2, ignored]))
    sizes = (BATCH, 2, 1, BATCH, 1, BATCH)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in sizes]
    np.testing.assert_allclose(got, [plain.step(n) for n in sizes], rtol=2e-5, atol=1e-7)
    same(planned, plain)
    assert events["graph_launch"] == 3 and "captured" in planned.plan.describe()
    assert events["kernel:weighted_cross_entropy_step<float, float, int>"] == 5, (
        "its replays are not seen"
    )
    assert planned.step(0) == 0.0


@pytest.mark.parametrize("ignored", [None, -100])
def test_with_data_on_the_device(emulated: Backend, ignored: int | None) -> None:
    """An ignored label need not be one of the classes there either."""
    found: list[list[float]] = []
    for resident in (False, True):
        run = Run(emulated, layers, "SGD(lr=0.02)")
        run.compile(loss=SoftmaxCrossEntropy(class_weights=[3.0, 1.0, 0.5], ignore_index=ignored))
        labels = emulated.asnumpy(run.labels)
        labels[1] = labels[1] if ignored is None else ignored
        run.labels = emulated.asarray(labels)
        if not resident:
            found.append([run.step() for _ in range(3)])
            continue
        data = Resident(emulated.asnumpy(run.X), labels)
        found.append([])
        for _ in range(3):
            data.begin(start=0)
            run.plan.run(data, 1, BATCH)
            found[1] += data.read()[0].tolist()
    np.testing.assert_allclose(found[1], found[0], rtol=2e-5)


def test_other_labels_on_the_device_are_told(emulated: Backend) -> None:
    run = Run(emulated, layers, "SGD")
    run.compile(loss=SoftmaxCrossEntropy(ignore_index=-100))
    data = Resident(emulated.asnumpy(run.X), np.array([0, -100, 1, 7, 0]))
    with pytest.raises(ParameterError, match=r"labels must be in 0\.\.2, got 0\.\.7"):
        run.plan.run(data, 1, BATCH)
    nobody = Resident(emulated.asnumpy(run.X), np.full(BATCH, -100))
    run.plan.run(nobody, 1, BATCH)
    assert nobody.read()[0].tolist() == [0.0]


def test_weights_of_other_classes_are_told(emulated: Backend) -> None:
    run = Run(emulated, layers, "SGD")
    run.compile(loss=SoftmaxCrossEntropy(class_weights=[1.0, 2.0]))
    with pytest.raises(ShapeError, match="logits have 3 classes, there are 2 class weights"):
        run.step()


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.2}, {"class_weights": [0.5, 2.0, 1.5], "ignore_index": 1}],
    ids=["smoothed", "weighted"],
)
def test_in_float16_with_a_loss_scale(emulated: Backend, options: dict[str, Any]) -> None:
    def wide(run: HalfRun) -> WideLoss:
        return WideLoss(SoftmaxCrossEntropy(**options), run.scaler)

    plain, planned = halves(emulated, "SGD(lr=0.05)", "fp16")
    plain.wide, planned.wide = wide(plain), wide(planned)
    planned.plan = planned.network.compile((BATCH, *SHAPE), loss=planned.wide)
    random.seed(1)
    got = [planned.step() for _ in range(3)]
    random.seed(1)
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", 0.3),
        ("class_weights", [1.0, 1.0, 1.0]),
        ("ignore_index", 2),
        ("reduction", "sum"),
    ],
)
def test_another_formula_is_told(emulated: Backend, name: str, value: Any) -> None:
    run = Run(emulated, layers, "SGD")
    loss = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=[1.0, 2.0, 1.0])
    run.compile(loss=loss).step()
    setattr(loss, name, value)
    with pytest.raises(ParameterError, match="changed since the plan was made: the loss"):
        run.step()


class Regression(Run):
    """Trained towards targets of the outputs' shape."""

    def __init__(self, backend: Backend, layers: Any, **options: Any) -> None:
        super().__init__(backend, layers, "SGD(lr=0.001, momentum=0.9)")
        shape = self.network.forward(self.X, retain_derived=False).shape
        targets = np.random.default_rng(5).standard_normal(shape).astype("f4")
        self.loss, self.labels = SquaredErrorOfOutputs(), backend.asarray(targets)
        if options:
            self.compile(**options)


def coding() -> list[Any]:
    """To outputs as images, of another number of channels."""
    first = Conv2D(4, (3, 3), pad=1, act_fn="Tanh"), Conv2D(2, (3, 3), pad=1, act_fn="Sigmoid")
    return [*first, Conv2D(3, (1, 1))]


@pytest.mark.parametrize("layers", [layers, coding])
def test_the_squared_error(emulated: Backend, layers: Any) -> None:
    plain, planned = (
        Regression(emulated, layers),
        Regression(emulated, layers, loss="squared_error"),
    )
    sizes = (BATCH, 2, BATCH, BATCH)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in sizes]
    np.testing.assert_allclose(got, [plain.step(n) for n in sizes], rtol=2e-5)
    same(planned, plain)
    assert events["graph_launch"] == 2 and "captured" in planned.plan.describe()
    assert planned.step(0) == plain.step(0) == 0.0
    wide = planned.labels.astype("float64")
    assert float(planned.plan.step(planned.X, wide)) == pytest.approx(plain.step(), rel=1e-5)


def test_the_squared_error_in_half_types(emulated: Backend) -> None:
    plain = Regression(emulated, coding)
    want = [plain.step() for _ in range(4)]
    for precision in ("fp16", "bf16"):
        planned = Regression(emulated, coding, loss="squared_error", precision=precision)
        got = [planned.step() for _ in range(20)]
        skipped = got.count(got[0]) - 1  # while the loss scale is too large
        np.testing.assert_allclose(got[skipped : skipped + 4], want, rtol=0.02)
        assert (skipped > 0) == (planned.plan.loss_scale is not None) == (precision == "fp16")


def test_targets_that_do_not_fit_are_told(emulated: Backend) -> None:
    run = Regression(emulated, coding, loss="squared_error")
    before = run.parameters()
    shape = re.escape(f"SquaredError expects targets of shape {(BATCH, *SHAPE[:2], 3)}, got ")
    for targets in (run.labels[:2], run.labels[..., :1], run.labels[0]):
        with pytest.raises(ShapeError, match=shape):
            run.plan.step(run.X, targets)
    with pytest.raises(DTypeError, match="complex64"):
        run.plan.step(run.X, run.labels.astype("complex64"))
    with pytest.raises(BackendError, match="the targets are a numpy array"):
        run.plan.step(run.X, emulated.asnumpy(run.labels))
    for name, array in run.parameters().items():
        np.testing.assert_array_equal(array, before[name])
