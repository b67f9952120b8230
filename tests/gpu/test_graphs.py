"""Captured steps replayed: what the graphs compute is what the layers compute, one by one."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as library
from gpulayers import random
from gpulayers.layers import (
    GRU,
    LSTM,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    LayerNorm1D,
    Pool2D,
)
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Activation, Pixels, Residual, Sequential
from gpulayers.models.resident import Resident
from gpulayers.training.precision import LossScaler, WideLoss
from tests.conftest import Backend
from tests.support import fake_cupy

N, CLASSES = 5, 3
IMAGES, SEQUENCES = (8, 8, 2), (3, 7)
SIZES = (N, N, N, N - 2, N, N, N - 2, N - 2, N)


@pytest.fixture(autouse=True)
def not_specialised(device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator a compiler for each shape takes seconds."""
    if device.name == "emulated":
        monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def convolutional(_: bool) -> list[Any]:
    """Batch normalisation by its fused sums, dropout, what has no kernel of its own."""
    return [
        *(Conv2D(4, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU"), Pool2D(2, 2)),
        Residual([Conv2D(4, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU")]),
        *(Flatten(), FullyConnected(9, act_fn="ReLU"), Dropout(0.4), LayerNorm1D()),
        FullyConnected(CLASSES),
    ]


def pooled(_: bool) -> list[Any]:
    """For tensor cores: whole runs of channels, but for the image's, whose taps fill one tile more
    with the channels of zeros; a column that pooling leaves."""
    return [
        *(Conv2D(8, (6, 6), pad=2, act_fn="ReLU"), Conv2D(16, (3, 2), act_fn="ReLU"), Pool2D(2, 2)),
        *(Conv2D(8, (2, 2), act_fn="ReLU"), Flatten(), FullyConnected(CLASSES)),
    ]


def normed(_: bool) -> list[Any]:
    return [
        *(Conv2D(8, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU")),
        *(Conv2D(8, (3, 3), act_fn="ReLU"), Pool2D(2, 2), Flatten(), FullyConnected(CLASSES)),
    ]


def activated(_: bool) -> list[Any]:
    """Activations that the layers before take along, and one that they do not."""
    return [
        *(Conv2D(8, (3, 3), pad=1, act_fn="Tanh"), Pool2D(2, 2), Conv2D(16, (3, 3), pad=1)),
        *(Activation("SELU"), Conv2D(8, (2, 2), pad=1), BatchNorm2D(), Activation("GELU")),
        *(Flatten(), FullyConnected(16, act_fn="LeakyReLU(alpha=0.1)")),
        *(FullyConnected(8, act_fn="GELU"), FullyConnected(8, act_fn="SoftPlus")),
        *(Dropout(0.2), FullyConnected(CLASSES, act_fn="ELU(alpha=2.0)")),
    ]


def recurrent(large: bool) -> list[Any]:
    """On a device as wide as many blocks together, with barriers between them."""
    return [LSTM(512 if large else 6), GRU(5, return_sequences=False), FullyConnected(CLASSES)]


class Run:
    """A network trained by its layers or by its plan, both from the same random numbers."""

    def __init__(
        self,
        device: Backend,
        layers: Callable[[bool], list[Any]],
        shape: tuple[int, ...],
        dtype: str = "float32",
    ) -> None:
        rng = np.random.default_rng(0)
        self.device, self.shape = device, shape
        self.X = device.asarray(rng.standard_normal((N, *shape)).astype(dtype))
        self.labels = device.asarray(rng.integers(0, CLASSES, N))
        random.seed(0)
        before = library.default_dtype()
        library.set_default_dtype(dtype)
        try:
            self.network: Any = Sequential(
                layers(device.name == "cupy"), "SGD(lr=0.05, momentum=0.9)"
            )
            self.network.forward(self.X, retain_derived=False)
        finally:
            library.set_default_dtype(before)
        self.loss: Any = SoftmaxCrossEntropy()
        self.scaler = LossScaler("fp16")
        self.scaler.scale = 2.0**8

    def by_plan(self, **settings: Any) -> list[float]:
        plan = self.network.compile((N, *self.shape), **settings)
        losses = [float(plan.step(self.X[:n], self.labels[:n])) for n in SIZES]
        assert "captured as one CUDA graph" in plan.describe()
        return losses

    def by_layers(self) -> list[float]:
        losses: list[float] = []
        for n in SIZES:
            losses.append(
                float(self.loss.forward(self.labels[:n], self.network.forward(self.X[:n])))
            )
            self.network.backward(self.loss.backward(), input_grad=False)
            if self.loss.__class__ is WideLoss:
                scale = self.scaler.judge(list(self.network.gradients.values()))
                assert scale is not None
                with self.scaler.undone(self.network, scale):
                    self.network.update()
            else:
                self.network.update()
        return losses

    def check(self, other: Run, tolerance: float) -> None:
        theirs = other.network.parameters
        for name, array in self.network.parameters.items():
            np.testing.assert_allclose(
                self.device.asnumpy(array).astype("f8"),
                self.device.asnumpy(theirs[name]).astype("f8"),
                atol=tolerance,
                err_msg=name,
            )


@pytest.mark.parametrize(
    ("layers", "shape"),
    [(convolutional, IMAGES), (recurrent, SEQUENCES), (activated, IMAGES)],
    ids=["conv", "recurrent", "activated"],
)
def test_replays_are_the_layers_steps(device: Backend, layers: Any, shape: Any) -> None:
    """Batches of two sizes in turn: the graphs share their memory."""
    planned, plain = Run(device, layers, shape), Run(device, layers, shape)
    random.seed(1)
    got = planned.by_plan()
    random.seed(1)
    np.testing.assert_allclose(got, plain.by_layers(), rtol=2e-4)
    planned.check(plain, 2e-4)


def test_replays_in_half_precision(device: Backend) -> None:
    """With the loss scale on the device."""
    planned, plain = (Run(device, convolutional, IMAGES, "float16") for _ in range(2))
    for run in (planned, plain):
        run.loss = WideLoss(run.loss, run.scaler)
    random.seed(1)
    got = planned.by_plan(loss=planned.loss, precision="fp16")
    random.seed(1)
    np.testing.assert_allclose(got, plain.by_layers(), rtol=2e-2)
    planned.check(plain, 1e-2)


@pytest.mark.parametrize("layers", [pooled, normed])
@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_replays_on_tensor_cores(device: Backend, layers: Any, precision: str) -> None:
    """Images get channels of zeros, and gradients before a pooling are laid out once."""
    cuda = importlib.import_module("gpulayers.cuda.precision")
    if not cuda.has_tensor_cores():
        pytest.skip("needs tensor cores")
    half, events = precision == "fp16", {}
    dtype = "float16" if half else "float32"
    planned, plain = (Run(device, layers, (9, 9, 3), dtype) for _ in range(2))
    for run in (planned, plain):
        run.loss = WideLoss(run.loss, run.scaler) if half else run.loss
    with contextlib.ExitStack() as stack:
        if device.name == "emulated":
            events = stack.enter_context(fake_cupy.count())
        got = planned.by_plan(loss=planned.loss, precision=precision)
    loose = 2e-2 if half else 2e-3
    np.testing.assert_allclose(got, plain.by_layers(), rtol=loose, atol=loose / 10)
    planned.check(plain, 1e-2 if half else 2e-3)
    if device.name == "emulated":
        names = {event.partition(":")[2] for event in events}
        assert {name.partition("<")[0] for name in names} >= {"pad_channels", "unpool2d"}
        back = [name for name in names if name.startswith("conv2d_backward")]
        assert back
        assert all("Tensor" in name for name in back)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_activations_on_tensor_cores(device: Backend, precision: str) -> None:
    """Their slopes are told by rounded values."""
    cuda = importlib.import_module("gpulayers.cuda.precision")
    if not cuda.has_tensor_cores():
        pytest.skip("needs tensor cores")
    half = precision == "fp16"
    planned, plain = (
        Run(device, activated, IMAGES, "float16" if half else "float32") for _ in "ab"
    )
    for run in (planned, plain):
        run.loss = WideLoss(run.loss, run.scaler) if half else run.loss
    random.seed(1)
    got = planned.by_plan(loss=planned.loss, precision=precision)
    random.seed(1)
    loose = 2e-2 if half else 2e-3
    np.testing.assert_allclose(got, plain.by_layers(), rtol=loose, atol=loose)
    planned.check(plain, 1e-2 if half else 2e-3)


def test_replays_with_class_weights(device: Backend) -> None:
    """And an ignored label; nothing that counts in the smaller batches."""
    planned, plain = Run(device, convolutional, IMAGES), Run(device, convolutional, IMAGES)
    for run in (planned, plain):
        run.labels = device.asarray(np.array([1, -100, 1, 0, 2]))
        weights = {"class_weights": [0.5, 0.0, 2.0], "ignore_index": -100, "label_smoothing": 0.1}
        run.loss = SoftmaxCrossEntropy(**weights)
    random.seed(1)
    got = planned.by_plan(loss=planned.loss)
    random.seed(1)
    np.testing.assert_allclose(got, plain.by_layers(), rtol=2e-4, atol=1e-6)
    assert got[3] == 0.0
    planned.check(plain, 2e-4)


def test_replays_in_double_precision(device: Backend) -> None:
    """Which no tensor core takes, though two numbers are a whole run: an image of three channels,
    a pooling."""
    planned, plain = (Run(device, pooled, (9, 9, 3), "float64") for _ in range(2))
    np.testing.assert_allclose(planned.by_plan(), plain.by_layers(), rtol=1e-12)
    planned.check(plain, 1e-12)


def test_replays_take_batches_from_the_device(device: Backend) -> None:
    """An order of the examples, the last batch smaller, the counter in device memory."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3 * N - 2, *IMAGES), np.uint8)
    labels, order = rng.integers(0, CLASSES, len(images)), rng.permutation(len(images))
    networks: list[Any] = []
    for _ in range(2):
        random.seed(0)
        layers = [Conv2D(3, (3, 3), act_fn="ReLU"), Flatten(), FullyConnected(CLASSES)]
        networks.append(Sequential(layers, "Adam(lr=0.01)"))
        networks[-1].pixels = Pixels((100.0, 120.0), (70.0, 50.0))
        networks[-1].forward(device.asarray(images[:1]), False)
    planned, plain = networks
    plan, resident = planned.compile((N, *IMAGES)), Resident(images, labels, pixels=planned.pixels)
    loss, got, wanted = SoftmaxCrossEntropy(), [], []
    for _ in range(3):
        resident.begin(order)
        while resident.left:
            plan.run(resident, 1)
            got += resident.read()[0].tolist()
        for start in range(0, len(order), N):
            chosen = order[start : start + N]
            Y = plain.forward(device.asarray(images[chosen]))
            wanted.append(float(loss.forward(device.asarray(labels[chosen]), Y)))
            plain.backward(loss.backward(), input_grad=False)
            plain.update()
    np.testing.assert_allclose(got, wanted, rtol=2e-4)


def test_outputs_are_those_of_the_last_launch(device: Backend) -> None:
    """Whichever of the two graphs of a batch that was, with the update or without."""
    run = Run(device, lambda _: [Flatten(), FullyConnected(CLASSES)], IMAGES)
    plan = run.network.compile((N, *IMAGES))
    for way in ("step", "step", "gradients", "gradients", "step", "gradients", "step"):
        W, b = (device.asnumpy(run.network[1].parameters[k]).copy() for k in "Wb")
        getattr(plan, way)(run.X, run.labels)
        wanted = device.asnumpy(run.X).reshape(N, -1) @ W + b
        np.testing.assert_allclose(device.asnumpy(plan.outputs), wanted, atol=1e-5)
