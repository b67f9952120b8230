"""Half types inside the planned step on a GPU: float32 copies, and a loss scale on the device."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as library
from gpulayers import random
from gpulayers.errors import BackendError, DivergedError
from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Sequential
from gpulayers.training import Trainer
from gpulayers.training.data import Dataset, Split
from gpulayers.training.precision import LossScaler, WideLoss
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SHAPE, Run
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated
ADAM = "Adam(lr=0.002)"
START = 2.0**8  # a scale that these networks do not overflow with


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def layers() -> list[Any]:
    return [
        *(Conv2D(3, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU"), Pool2D((2, 2), stride=2)),
        *(Conv2D(4, (3, 3), act_fn="ReLU"), Flatten()),
        *(FullyConnected(7, act_fn="ReLU"), Dropout(0.25), FullyConnected(CLASSES)),
    ]


class HalfRun(Run):
    """As a trainer takes its steps by hand, where it is not planned."""

    def __init__(self, backend: Backend, optimizer: str, precision: str) -> None:
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        before = library.default_dtype()
        library.set_default_dtype(dtype)
        try:
            super().__init__(backend, layers, optimizer)
        finally:
            library.set_default_dtype(before)
        self.X = self.X.astype(self.network.dtype)
        self.scaler = LossScaler(precision)
        if precision == "fp16":
            self.scaler.scale = START
        self.wide: Any = WideLoss(self.loss, self.scaler)

    def step(self, n: int = BATCH) -> float:
        if self.plan is not None:
            return super().step(n)
        with np.errstate(over="ignore", invalid="ignore"):  # a device raises no such warnings
            return self._layers_step(n)

    def _layers_step(self, n: int) -> float:
        value = float(self.wide.forward(self.labels[:n], self.network.forward(self.X[:n])))
        self.network.backward(self.wide.backward(), input_grad=False)
        scale = self.scaler.judge(list(self.network.gradients.values()))
        if scale is None:
            self.network.flush_gradients()
            return value
        with self.scaler.undone(self.network, scale):
            self.network.update()
        return value


def halves(backend: Backend, optimizer: str, precision: str) -> tuple[HalfRun, HalfRun]:
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    planned = HalfRun(backend, optimizer, precision)
    planned.plan = planned.network.compile((BATCH, *SHAPE), loss=planned.wide, precision=precision)
    return HalfRun(backend, optimizer, precision), planned


def close(planned: HalfRun, plain: HalfRun, tolerance: float) -> None:
    """Also the float32 copies, which the optimizers keep."""
    theirs = plain.parameters()
    for name, array in planned.parameters().items():
        want = theirs[name].astype("f4")
        np.testing.assert_allclose(array.astype("f4"), want, atol=tolerance, err_msg=name)
    for i in (0, 4, 6, 8):
        ours, other = (run.network[i].optimizer.cache["W"] for run in (planned, plain))
        assert set(ours) == set(other)
        assert ours["master"].dtype == np.float32
        got, want = ours["master"].get(), other["master"].get()
        np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        ("fp16", ADAM),
        ("fp16", "SGD(lr=0.05, momentum=0.9, clip_norm=0.3, weight_decay=0.1)"),
        ("bf16", "SGD(lr=0.05, momentum=0.9)"),
    ],
)
def test_losses_are_those_of_the_layers(emulated: Backend, precision: str, optimizer: str) -> None:
    plain, planned = halves(emulated, optimizer, precision)
    sizes = (BATCH, BATCH, BATCH, 2, BATCH)
    random.seed(1)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in sizes]
    random.seed(1)
    want = [plain.step(n) for n in sizes]
    rough = 8 if precision == "bf16" else 1
    np.testing.assert_allclose(got, want, rtol=0.01 * rough)
    close(planned, plain, 0.02 * rough)
    assert events["graph_launch"] == 3
    assert "captured as one CUDA graph" in planned.plan.describe()


def test_the_device_leaves_a_step_out(emulated: Backend) -> None:
    """Scale too large: nothing changes but the scale, and the host hears of it when it asks."""
    plain, planned = halves(emulated, ADAM, "fp16")
    for run in (plain, planned):
        random.seed(2)
        run.step()
        run.step()
    state = planned.plan._scale.state
    state.scale.fill(2.0**30)
    plain.scaler.scale = 2.0**30
    before = planned.parameters()
    with fake_cupy.forbid("sync", "d2h", "h2d", "iterate"):
        planned.plan.step(planned.X, planned.labels)
    after = planned.parameters()
    plain.step()
    for name in before:
        if "running" not in name:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    entry = planned.network[0].optimizer.cache["W"]
    assert entry["t"] == 3, "the host has not heard of it"
    assert planned.plan.loss_scale == {"scale": 2.0**29, "good": 0, "skipped": 1, "stuck": 0}
    assert entry["t"] == planned.network[0].optimizer.cur_step == 2
    for run in (plain, planned):
        random.seed(3)
        run.step()
    while plain.scaler.skipped_steps < 30 and plain.scaler._good < 2:
        for run in (plain, planned):
            run.step()
    assert planned.plan.loss_scale["skipped"] == plain.scaler.skipped_steps > 2
    assert planned.plan.loss_scale["scale"] == plain.scaler.scale
    close(planned, plain, 0.02)
    assert planned.network[0].optimizer.cache["W"]["t"] == 2 + plain.scaler._good


def test_steps_left_out_before_a_new_build(emulated: Backend) -> None:
    """The host hears of them behind it: from then on Adam's correction is that of the steps that
    were done."""
    _, planned = halves(emulated, ADAM, "fp16")
    planned.step()
    planned.plan._scale.state.scale.fill(2.0**30)
    planned.step()
    planned.network[4].freeze()
    planned.step()
    assert planned.plan.loss_scale["skipped"] >= 1
    planned.step()
    planned.plan._scale.state.scale.fill(START)
    planned.step()
    skipped = planned.plan.loss_scale["skipped"]
    planned.step()
    entry = planned.network[0].optimizer.cache["W"]
    assert entry["t"] == planned.network[0].optimizer.cur_step == 6 - skipped
    assert emulated.asnumpy(planned.plan._flat.step) == [6 - skipped]


def test_a_first_step_that_fails_leaves_the_scale(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the gradients have been looked at, and found too large."""
    _, planned = halves(emulated, ADAM, "fp16")
    planned.step(2)
    planned.plan._scale.state.scale.fill(2.0**30)
    before = planned.plan.loss_scale
    flat = importlib.import_module("gpulayers.cuda.flat")

    def refused(*_: Any) -> None:
        raise BackendError("refused")

    monkeypatch.setattr(flat, "flat_update", refused)
    with pytest.raises(BackendError, match="refused"):
        planned.step()
    assert planned.plan.loss_scale == before


def test_steps_that_the_host_leaves_out(emulated: Backend) -> None:
    """Of rules that differ: nobody has counted them, and so nobody takes them back."""
    _, planned = halves(emulated, ADAM, "fp16")
    planned.network[8].optimizer = Sequential([FullyConnected(2)], "SGD(lr=0.01)")[0].optimizer
    planned.step()
    planned.plan._scale.state.scale.fill(2.0**30)
    planned.step()
    optimizers = [planned.network[i].optimizer for i in (0, 4, 6, 8)]
    assert planned.plan.loss_scale["skipped"] == 1
    assert [optimizer.cur_step for optimizer in optimizers] == [1] * 4


def test_the_scale_grows(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScaler, "growth_interval", 2)
    run = HalfRun(emulated, ADAM, "fp16")
    run.plan = run.network.compile((BATCH, *SHAPE), loss=run.wide)
    for _ in range(3):
        run.step()
    assert run.scaler.state() == {"scale": 2 * START, "good": 1, "skipped": 0}
    run.scaler.load({"scale": 0.5 * START, "good": 1, "skipped": 7})
    run.step()
    assert (run.scaler.scale, run.scaler.skipped_steps) == (START, 7)


def test_gradients_that_no_scale_helps(emulated: Backend) -> None:
    _, planned = halves(emulated, ADAM, "fp16")
    planned.step()
    planned.plan._scale.state.scale.fill(LossScaler.smallest)
    planned.X[0, 0, 0, 0] = np.float16(np.inf)
    with np.errstate(invalid="ignore"):
        planned.plan.step(planned.X, planned.labels)
    assert planned.plan.loss_scale["stuck"] == 1
    with pytest.raises(DivergedError, match="even with a loss scale of 6"):
        planned.scaler.state()


def test_masters_and_weights_put_in_from_outside(emulated: Backend) -> None:
    plain, planned = halves(emulated, "SGD(lr=0.05, momentum=0.9)", "fp16")
    for run in (plain, planned):
        random.seed(2)
        run.step()
        run.step()
        W = run.network[4].parameters["W"]
        W[...] = W * np.float16(0.5)  # in place: the copy must not win
        other = run.network[0]
        other.parameters["W"] = other.parameters["W"] * np.float16(2.0)
        entry = run.network[6].optimizer.cache["W"]
        entry["master"] = entry["master"] + np.float32(1e-5)  # rounds to the same
        run.step()
        run.step()
    close(planned, plain, 0.01)


@pytest.mark.parametrize(("clip", "parts"), [(None, 1), (1.0, 1), (None, 2)])
def test_the_trainer_trains_by_the_graph(emulated: Backend, clip: float | None, parts: int) -> None:
    """Batch by batch where gradients are clipped or added up, else many steps at a time."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, *SHAPE), np.uint8), rng.integers(0, CLASSES, n))

    data = Dataset("noise", split(4 * BATCH), split(BATCH), ("a", "b", "c"))
    losses, skipped = [], []
    for plan in (True, False):
        random.seed(0)
        network = Sequential(layers(), "SGD(lr=0.02, momentum=0.9)")
        settings: Any = {
            "epochs": 2,
            "progress": False,
            "clip_global_norm": clip,
            "accumulate": parts,
        }
        trainer = Trainer(network, data, BATCH, compile=plan, precision="fp16", **settings)
        assert trainer.scaler is not None
        trainer.scaler.scale = START
        random.seed(1)
        with fake_cupy.count() as events, np.errstate(over="ignore", invalid="ignore"):
            trainer.fit()
        losses.append(trainer.history.step_losses)
        assert (events["graph_launch"] > 0) == plan
        assert not plan or events["sync"] < 20, "not in each step"
        skipped.append(trainer.scaler.skipped_steps)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert skipped == [0, 0]
