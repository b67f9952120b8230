"""Activations other than ReLU inside the planned step on a GPU: taken along by the layer before,
and their slopes by the one behind."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.activations import ActivationBase, Tanh
from gpulayers.backend import Array, xp_of
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv1D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    LayerNorm1D,
    Pool2D,
)
from gpulayers.models import Activation, Residual
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SGD, Run, pair, same
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated

BY_VALUE = [
    "Tanh",
    "Sigmoid",
    "LeakyReLU(alpha=0.2)",
    "ELU(alpha=0.7)",
    "SELU",
    "SoftPlus",
    "Exponential",
]
OTHERS = ["GELU", "HardSigmoid", "Affine(slope=2, intercept=1)", "LeakyReLU(alpha=-0.2)"]


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def conv(filters: int, **options: Any) -> Conv2D:
    return Conv2D(filters, (3, 3), pad=1, **options)


def products(act: str) -> list[Any]:
    """Pooled, with a row left out, and not; as a layer of its own and not; nobody behind the last
    one takes its slope along, nor the dropout."""
    return [
        *(conv(3), Activation(act), Pool2D((2, 2), stride=2)),
        *(Conv2D(4, (2, 3), act_fn=act), Flatten(), FullyConnected(7, act_fn=act)),
        *(FullyConnected(6), Activation(act), Dropout(0.25), FullyConnected(CLASSES, act_fn=act)),
    ]


def normed(act: str) -> list[Any]:
    """Behind a normalisation: pooled and not, where a convolution makes the sums of the way back
    and where none does."""
    return [
        *(conv(3), BatchNorm2D(), Activation(act), Pool2D((2, 2), stride=2)),
        *(conv(4), BatchNorm2D(), Activation(act), conv(3), BatchNorm2D(), Activation(act)),
        *(Flatten(), FullyConnected(7), BatchNorm1D(), Activation(act), FullyConnected(CLASSES)),
    ]


@pytest.mark.parametrize("layers", [products, normed])
@pytest.mark.parametrize("act", BY_VALUE)
def test_losses_are_those_of_the_layers(emulated: Backend, layers: Any, act: str) -> None:
    plain, planned = pair(emulated, lambda: layers(act))
    sizes = (BATCH, BATCH, 2, BATCH, 2)
    random.seed(3)
    got = [planned.step(n) for n in sizes]
    random.seed(3)
    want = [plain.step(n) for n in sizes]
    np.testing.assert_allclose(got, want, rtol=2e-4)
    same(planned, plain, 2e-4)


def kernels(run: Run) -> dict[str, int]:
    """How often a captured step launches each kernel; to be asked at the second step."""
    assert "captured as one CUDA graph" in run.plan.describe()
    with fake_cupy.count() as events:
        run.step()
    found = (name for name in events if name.startswith("kernel:"))
    return {name.removeprefix("kernel:").split("<")[0]: events[name] for name in found}


def test_they_cost_no_launch(emulated: Backend) -> None:
    """But for the slopes that nobody behind takes along: of the network's output, and of what goes
    into a dropout."""
    _, tanh = pair(emulated, lambda: products("Tanh"))
    _, relu = pair(emulated, lambda: products("ReLU"))
    _, normal = pair(emulated, lambda: normed("SELU"))
    for run in (tanh, relu, normal):
        run.step()
    ours, theirs = kernels(tanh), kernels(relu)
    assert ours.pop("activation_backward_by_value") == 2
    assert theirs.pop("activation_backward_by_value") == 1
    assert ours == theirs
    assert not [name for name in kernels(normal) if "activation" in name]
    assert "Conv2D + tanh + max pooling\n" in tanh.plan.describe()
    assert "BatchNorm2D + selu + max pooling\n" in normal.plan.describe()


@pytest.mark.parametrize("act", OTHERS)
def test_others_stay_layers(emulated: Backend, act: str) -> None:
    """A value does not tell the slope, or does not rise with the input: a maximum is not the one of
    the largest input. Behind a normalisation the input is known."""

    def layers() -> list[Any]:
        first = conv(3), Activation(act), Pool2D((2, 2), stride=2), conv(3), BatchNorm2D()
        pooled = Activation(act), Pool2D((2, 2), stride=2), conv(3), BatchNorm2D(), Activation(act)
        return [*first, *pooled, Flatten(), FullyConnected(6, act_fn=act), FullyConnected(CLASSES)]

    plain, planned = pair(emulated, layers)
    got = [planned.step() for _ in range(3)]
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=2e-4)
    same(planned, plain, 2e-4)
    shown = planned.plan.describe()
    assert shown.count("Activation\n") == 1
    assert shown.count("BatchNorm2D + ") == 2
    assert shown.count("max pooling") == 0


def test_in_every_place(emulated: Backend) -> None:
    """Within a residual block, frozen, behind a strided convolution, before a layer that is no node
    of its own; the first layer of all."""

    def layers() -> list[Any]:
        frozen = FullyConnected(6, act_fn="SoftPlus")
        block = Residual([conv(2, act_fn="ELU"), Conv2D(2, (3, 3), pad=1), Activation("Tanh")])
        strided = Conv2D(3, (3, 3), stride=2, act_fn="Sigmoid"), Pool2D((2, 2), stride=1)
        last = LayerNorm1D(), frozen, FullyConnected(CLASSES)
        return [Activation("SELU"), block, *strided, Flatten(), FullyConnected(7), *last]

    plain, planned = pair(emulated, layers)
    for run in (plain, planned):
        run.network[7].freeze()
        run.network[0].freeze()
    got = [planned.step() for _ in range(4)]
    np.testing.assert_allclose(got, [plain.step() for _ in range(4)], rtol=2e-4)
    same(planned, plain, 2e-4)


def test_along_time(emulated: Backend) -> None:
    def layers() -> list[Any]:
        first = Conv1D(4, 3, pad="same", act_fn="Tanh"), Conv1D(3, 2, pad=1), Activation("ELU")
        return [*first, Flatten(), FullyConnected(CLASSES)]

    plain, planned = (Run(emulated, layers, SGD, (8, 2)) for _ in range(2))
    planned.compile()
    got = [planned.step() for _ in range(3)]
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=2e-4)
    same(planned, plain, 2e-4)
    assert "Conv1D + tanh\nConv1D + elu\n" in planned.plan.describe()


@pytest.mark.parametrize("act", ["Tanh", "LeakyReLU(alpha=0.2)"])
def test_by_whole_examples(emulated: Backend, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """The kernels of small images, which are compiled for them."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", True)

    def layers() -> list[Any]:
        second = Conv2D(4, (2, 3), act_fn=act), Conv2D(3, (2, 1))
        first = conv(3, act_fn=act), Pool2D((2, 2), stride=2)
        return [*first, *second, Flatten(), FullyConnected(CLASSES)]

    plain, planned = pair(emulated, layers)
    got = [planned.step()]
    found = kernels(planned)
    got += [planned.step()]
    want = [plain.step() for _ in range(3)]
    np.testing.assert_allclose(got, [want[0], want[2]], rtol=2e-4)
    same(planned, plain, 2e-4)
    assert found["example_conv_forward"] == found["example_conv_backward"] == 3
    assert not [name for name in found if "activation" in name]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_on_tensor_cores(emulated: Backend, precision: str) -> None:
    """Channels in whole runs; a slope is told by the rounded value."""

    def layers() -> list[Any]:
        first = conv(8, act_fn="Tanh"), Pool2D((2, 2), stride=2), conv(16), BatchNorm2D()
        second = Activation("LeakyReLU(alpha=0.1)"), conv(8, act_fn="Sigmoid"), Flatten()
        return [*first, *second, FullyConnected(16, act_fn="ELU"), FullyConnected(CLASSES)]

    plain = Run(emulated, layers, SGD)
    planned = Run(emulated, layers, SGD).compile(precision=precision)
    got = [planned.step()]
    found = kernels(planned)
    got += [planned.step(), planned.step()]
    want = [plain.step() for _ in range(4)]
    np.testing.assert_allclose(got, [want[0], *want[2:]], rtol=0.02)
    theirs = plain.parameters()
    for name, array in planned.parameters().items():
        if "running" not in name:
            np.testing.assert_allclose(array, theirs[name], atol=0.02, err_msg=name)
    assert found["conv2d_backward"] == 3


class Steeper(Tanh):
    """Somebody's own: no kernel has its formula."""

    def fn(self, z: Array) -> Array:
        return xp_of(z).tanh(2 * z)

    def grad(self, x: Array) -> Array:
        return 2 * (1 - xp_of(x).tanh(2 * x) ** 2)


class Named(ActivationBase):
    """Another one, that is no built-in at all."""

    def fn(self, z: Array) -> Array:
        return z * 0.5

    def grad(self, x: Array) -> Array:
        return xp_of(x).full_like(x, 0.5)


@pytest.mark.parametrize("act", [Steeper(), Named()], ids=["subclass", "own"])
def test_activations_of_ones_own(emulated: Backend, act: Any) -> None:
    def layers() -> list[Any]:
        return [conv(3, act_fn=act), BatchNorm2D(), Activation(act), Flatten(), last()]

    def last() -> Any:
        return FullyConnected(CLASSES, act_fn=act)

    plain, planned = pair(emulated, layers)
    got = [planned.step() for _ in range(3)]
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=2e-4)
    same(planned, plain, 2e-4)


class Sloped(ActivationBase):
    """Somebody's own with an array."""

    def __init__(self, slope: Array) -> None:
        self.slope = slope

    def fn(self, z: Array) -> Array:
        return z * self.slope

    def grad(self, x: Array) -> Array:
        return xp_of(x).zeros_like(x) + self.slope


def test_another_array_is_another_graph(emulated: Backend) -> None:
    def layers() -> list[Any]:
        slope = emulated.asarray(np.array([0.5, 2, 1, 1], np.float32))
        return [Flatten(), FullyConnected(4, act_fn=Sloped(slope)), FullyConnected(CLASSES)]

    plain, planned = pair(emulated, layers)
    losses: list[list[float]] = []
    for run in (plain, planned):
        found = [run.step(), run.step(), run.step()]
        run.network[1].act_fn.slope = emulated.asarray(np.array([1, 1, 0.2, 2], np.float32))
        losses.append([*found, run.step(), run.step(), run.step()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)


def test_other_constants_are_another_graph(emulated: Backend) -> None:
    """Of an activation that is taken along, and of one that is not."""

    def layers() -> list[Any]:
        affine = FullyConnected(6, act_fn="Affine(slope=2, intercept=1)")
        leaky = conv(3, act_fn="LeakyReLU(alpha=0.2)")
        return [leaky, Flatten(), affine, BatchNorm1D(), Activation("ELU"), FullyConnected(CLASSES)]

    plain, planned = pair(emulated, layers)
    losses: list[list[float]] = []
    for run in (plain, planned):
        found = [run.step(), run.step()]
        run.network[0].act_fn.alpha = 0.9
        found += [run.step(), run.step()]
        run.network[2].act_fn.slope = -1
        found += [run.step(), run.step()]
        run.network[4].act_fn.alpha = 0.3
        losses.append([*found, run.step(), run.step()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
    same(planned, plain, 2e-4)
