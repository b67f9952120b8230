"""Engine "mega": steps within one launch compute what the layers compute, in float64 on the host.

Kernels run under the emulator's checker: races, barriers, bounds, reads of what nobody wrote.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import random, set_default_dtype
from gpulayers.errors import ParameterError
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
)
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Activation, Sequential
from gpulayers.models.resident import Resident
from tests.conftest import CASES, Backend, switched_to
from tests.support import fake_cupy, nvrtc

pytestmark = pytest.mark.emulated

SGD, CLASSES = "SGD(lr=0.1, momentum=0.9)", 3
BLOCKS = 2  # fewer than examples, so that blocks take several


@pytest.fixture(autouse=True)
def checked(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the checker, on a device of few multiprocessors."""
    monkeypatch.setitem(fake_cupy.cupy.cuda.Device().attributes, "MultiProcessorCount", BLOCKS)
    monkeypatch.setattr(fake_cupy.state, "flavour", "check")
    monkeypatch.setattr(fake_cupy.state, "launch_options", {"block_order": "random"})


def pooled() -> list[Any]:
    """Pooling that leaves a row out, ReLU as a layer of its own, ties at zero, odd sizes."""
    return [
        Conv2D(3, (3, 2), pad=(1, 1, 0, 1)),
        Activation("ReLU"),
        Pool2D((2, 2), stride=2),
        Sequential([Conv2D(4, (2, 3)), Pool2D((1, 2), stride=(1, 2)), Activation("Tanh")]),
        Flatten(),
        FullyConnected(37, act_fn="ReLU"),
        FullyConnected(CLASSES),
    ]


def strided() -> list[Any]:
    """No pooling, strides, spacing between taps, more padding than the kernel needs."""
    return [
        Conv2D(2, (3, 3), stride=(2, 1), pad=(1, 0, 2, 1), act_fn="Sigmoid"),
        Conv2D(13, (2, 2), stride=(1, 2), dilation=1, pad=(0, 0, 3, 3), act_fn="ReLU"),
        Flatten(),
        FullyConnected(CLASSES, act_fn="Tanh"),
    ]


def dense() -> list[Any]:
    return [Flatten(), FullyConnected(98, act_fn="ReLU"), FullyConnected(CLASSES)]


def dropped() -> list[Any]:
    """Dropout of the images, of an input with padding and of units; masks end within a block of
    random words, and activations have slopes of all kinds."""
    return [
        Dropout(0.1),
        Conv2D(3, (3, 2), act_fn="Tanh"),
        Pool2D((2, 2), stride=2),
        Dropout(0.5),
        Conv2D(3, (2, 2), pad=(1, 0, 2, 1), act_fn="ReLU"),
        Flatten(),
        Dropout(0),
        FullyConnected(5, act_fn="Sigmoid"),
        Dropout(0.3),
        FullyConnected(CLASSES),
    ]


def normalized() -> list[Any]:
    """Batch normalisation with all that there may be behind it, and dropout; pixels that no window
    of the pooling has."""
    return [
        Conv2D(3, (3, 2), pad=(1, 1, 0, 1)),
        BatchNorm2D(momentum=0.7),
        Activation("ReLU"),
        Pool2D((2, 2), stride=2),
        Dropout(0.2),
        Conv2D(4, (2, 3), pad=(0, 0, 1, 1)),
        BatchNorm2D(epsilon=0.01),
        Pool2D((1, 2), stride=(1, 2)),
        Activation("Tanh"),
        Conv2D(2, (1, 1)),
        BatchNorm2D(),
        Flatten(),
        FullyConnected(37),
        BatchNorm1D(),
        Activation("Sigmoid"),
        Dropout(0.4),
        FullyConnected(CLASSES),
    ]


def normalized_dense() -> list[Any]:
    """More channels than a block has threads; epsilon as large as the variance of two examples may
    be small, whose inverse makes much of rounding."""
    layers = [Flatten(), FullyConnected(300), BatchNorm1D(epsilon=0.1), Activation("ReLU")]
    return [*layers, FullyConnected(CLASSES)]


SHAPE = (9, 8, 2)


class Gold:
    """The layers one by one, in float64 on the host."""

    def __init__(self, layers: Callable[[], list[Any]], optimizer: str, start: Any) -> None:
        with switched_to("numpy"):
            set_default_dtype("float64")
            try:
                self.network: Any = Sequential(layers(), optimizer)
                self.network.forward(np.zeros((1, *SHAPE)), False)
            finally:
                set_default_dtype("float32")
            for name, array in self.network.parameters.items():
                array[...] = start[name]
        self.loss = SoftmaxCrossEntropy()
        self.state = random.get_state()

    def step(self, X: np.ndarray, labels: np.ndarray) -> float:
        with switched_to("numpy"), self.drawing():
            value = float(self.loss.forward(labels, self.network.forward(X.astype(np.float64))))
            self.network.backward(self.loss.backward(), input_grad=False)
            self.network.update()
        return value

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """From a stream of its own that begins where that of the network does."""
        others = random.get_state()
        random.set_state(self.state)
        yield
        self.state = random.get_state()
        random.set_state(others)


class Run:
    """A network on the stand-in with its plan, data on the host, and the gold for it."""

    def __init__(self, backend: Backend, layers: Any, optimizer: str = SGD, n: int = 5) -> None:
        random.seed(0)
        rng = np.random.default_rng(0)
        self.backend = backend
        self.network: Any = Sequential(layers(), optimizer)
        self.network.forward(backend.asarray(np.zeros((1, *SHAPE), np.float32)), False)
        for name, array in self.network.parameters.items():
            if "scaler" in name or "intercept" in name:
                array[...] = backend.asarray(rng.standard_normal(array.shape).astype(np.float32))
        self.X = rng.standard_normal((n, *SHAPE)).astype(np.float32)
        self.labels = rng.integers(0, CLASSES, n)
        self.gold = Gold(layers, optimizer, self.parameters())
        self.plan: Any = self.network.compile((n, *SHAPE), engine="mega")

    def parameters(self) -> dict[str, np.ndarray]:
        return {k: np.array(self.backend.asnumpy(v)) for k, v in self.network.parameters.items()}

    def step(self, n: int) -> float:
        xp = self.backend
        return float(self.plan.step(xp.asarray(self.X[:n]), xp.asarray(self.labels[:n])))

    def agrees(self, tolerance: float = 2e-6) -> None:
        got = self.parameters()
        for name, array in self.gold.network.parameters.items():
            np.testing.assert_allclose(got[name], array, atol=tolerance, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("layers", "optimizer"),
    [
        (pooled, SGD),
        (strided, "AdamW(lr=0.003, weight_decay=0.1)"),
        (dropped, SGD),
        (normalized, SGD),
        (normalized_dense, SGD),
        (dense, "RMSProp(lr=0.003)"),
        (dense, "AdaGrad(lr=0.01)"),
    ],
)
def test_losses_and_parameters(emulated: Backend, layers: Any, optimizer: str) -> None:
    run = Run(emulated, layers, optimizer)
    for n in (5, 2, 1, 5):
        want = run.gold.step(run.X[:n], run.labels[:n])
        assert run.step(n) == pytest.approx(want, rel=5e-6, abs=2e-7)
    # where a gradient is rounding alone, a rule that divides by its size makes much of it
    run.agrees(2e-6 if optimizer == SGD else 2e-4)
    assert run.plan.outputs.shape == (5, CLASSES)
    assert random.get_state() == run.gold.state
    assert "each block with" in run.plan.describe()


@pytest.mark.parametrize("layers", [pooled, normalized] if os.environ.get(CASES) else [pooled])
def test_as_ptx(emulated: Backend, layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NVRTC makes of the kernel, interpreted: two blocks that wait for each other."""
    reason = nvrtc.unavailable_reason()
    if reason:
        pytest.skip(reason)
    run = Run(emulated, layers)
    monkeypatch.setattr(fake_cupy.state, "flavour", "ptx")
    want = run.gold.step(run.X[:3], run.labels[:3])
    assert run.step(3) == pytest.approx(want, rel=5e-6, abs=2e-7)
    run.agrees()


def test_many_steps_are_one_launch(emulated: Backend) -> None:
    """Bytes gathered by an order, a smaller last batch, a learning rate for each step."""
    schedule = "ExponentialScheduler(initial_lr=0.01, stage_length=1, decay=0.5)"
    run = Run(emulated, pooled, f"Adam(lr_scheduler={schedule})")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (7, *SHAPE), np.uint8)
    labels = rng.integers(0, CLASSES, 7)
    resident = Resident(images, labels, run.network.pixels, dtype=run.network.dtype)
    for _ in range(2):
        order = rng.permutation(7)
        resident.begin(order)
        with emulated.count() as events, emulated.forbid("sync", "d2h", "iterate"):
            assert run.plan.run(resident, 1, 3) == 1
            assert run.plan.run(resident, 9, 3) == 2
        assert events["kernel:train_steps"] == 2
        assert emulated.asnumpy(resident.position) == [7] and resident.left == 0
        losses, hits = resident.read()
        for i in range(3):
            chosen = order[3 * i : 3 * i + 3]
            with switched_to("numpy"):
                logits = run.gold.network.forward(images[chosen] / 255.0, False)
            assert hits[i] == (logits.argmax(1) == labels[chosen]).sum()
            want = run.gold.step(images[chosen] / 255.0, labels[chosen])
            assert losses[i] == pytest.approx(want, rel=1e-5, abs=1e-6)
    run.agrees(2e-5)


@pytest.mark.parametrize("layers", [pooled, normalized])
def test_a_step_is_one_launch_and_always_the_same(emulated: Backend, layers: Any) -> None:
    run = Run(emulated, layers)
    start = run.parameters()
    random.seed(0)
    X, labels = emulated.asarray(run.X), emulated.asarray(run.labels)
    run.plan.step(X, labels)  # sends the learning rates
    first = run.parameters()
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h", "iterate"):
        run.plan.step(X, labels)
    assert events["launch"] == events["kernel:train_steps"] == 1
    assert events["alloc_bytes"] == 8, "loss and hits"
    fake_cupy.state.launch_options = {"block_order": "desc"}
    for name, array in run.network.parameters.items():
        array[...] = emulated.asarray(start[name])
        run.plan._flat.states[0].fill(0)
    random.seed(0)
    run.plan.step(X, labels)
    for name, array in run.parameters().items():
        np.testing.assert_array_equal(array, first[name], err_msg=name)


def test_the_launch_may_have_the_shared_memory_it_was_made_for(emulated: Backend) -> None:
    """LeNet's blocks take more than the 48 KB that a kernel has unasked."""
    from gpulayers.cuda.mega import Kernel

    empty = 'extern "C" __global__ void train_steps() {}'
    made = Kernel(empty, 90 << 10, batch=2, classes=3, saved=1, partial=1)
    assert made._kernel.max_dynamic_shared_size_bytes == 90 << 10


def test_what_others_do_in_between_is_seen(emulated: Backend) -> None:
    """New values in a layer, another learning rate, the plan's own first half of a step."""
    run = Run(emulated, dense)
    run.step(5)
    run.gold.step(run.X, run.labels)
    values = np.full((98, CLASSES), 0.25)
    run.network.layers[2].parameters["W"] = emulated.asarray(values.astype(np.float32))
    run.gold.network.layers[2].parameters["W"][...] = values
    for network in (run.network, run.gold.network):
        for layer in network.layers:
            layer.optimizer.set_params({"lr": 0.02})
    run.step(5)
    run.gold.step(run.X, run.labels)
    run.plan.gradients(emulated.asarray(run.X), emulated.asarray(run.labels))
    run.plan.update()
    run.gold.step(run.X, run.labels)
    run.step(5)
    run.gold.step(run.X, run.labels)
    run.agrees()
    for layer in run.network.layers[1:]:
        layer.freeze()
    with pytest.raises(ParameterError, match="all layers are frozen"):
        run.step(5)


#: of `normalized`: behind a convolution that learns, all that is before one that does, amid others
FROZEN = ((0,), (0, 1, 4, 5), (6, 12))


@pytest.mark.parametrize("frozen", FROZEN if os.environ.get(CASES) else FROZEN[1:])
def test_frozen_layers_stay_as_they_are(emulated: Backend, frozen: tuple[int, ...]) -> None:
    """Those of batch normalisation take the running statistics, dropout is the identity."""
    run = Run(emulated, normalized)
    networks = run.network, run.gold.network
    for act, n in (("freeze", 5), ("unfreeze", 4), ("freeze", 2)):
        for network in networks:
            for i in frozen:
                getattr(network.layers[i], act)()
        before = run.parameters()
        want = run.gold.step(run.X[:n], run.labels[:n])
        assert run.step(n) == pytest.approx(want, rel=5e-6, abs=2e-7)
        after = run.parameters()
        moved = {int(name.split(".")[0]) for name in after if (before[name] != after[name]).any()}
        assert moved == {0, 1, 5, 6, 9, 10, 12, 13, 16} - set(frozen if act == "freeze" else ())
    run.agrees()


def test_dropout_goes_on_where_it_was(emulated: Backend) -> None:
    """Over the end of the counter's low word, from one launch to the next, after numbers drawn by
    others; a dropout that changes, or is frozen, changes the kernel."""
    run = Run(emulated, dropped)
    run.gold.state["counter"] = 2**64 - 40
    random.set_state(run.gold.state)
    resident = Resident(run.X, run.labels)
    for order in ([3, 0, 4, 2, 1], [0, 1, 2, 4, 3]):
        resident.begin(np.array(order))
        with emulated.count() as events:
            assert run.plan.run(resident, 2, 3) == 2
        for part in (order[:3], order[3:]):
            run.gold.step(run.X[part], run.labels[part])
        assert random.get_state() == run.gold.state
    assert run.gold.state["counter"] > 2**64 and events["launch"] == events["kernel:train_steps"]
    random.default_generator().uniform((9,))
    run.gold.state = random.get_state()
    for network in (run.network, run.gold.network):
        network.layers[3].freeze()
        network.layers[8].set_params({"p": 0.8})
    assert run.step(4) == pytest.approx(run.gold.step(run.X[:4], run.labels[:4]), rel=5e-6)
    run.agrees()


def test_of_equal_outputs_the_first_counts(emulated: Backend) -> None:
    run = Run(emulated, dense)
    run.network.layers[2].parameters["W"][...] = 0
    resident = Resident(run.X, np.array([0, 2, 1, 0, 1]))
    run.plan.run(resident, 1)
    losses, hits = resident.read()
    assert losses[0] == pytest.approx(np.log(CLASSES)) and hits[0] == 2


def test_a_label_that_is_no_class_gives_nan(emulated: Backend) -> None:
    run = Run(emulated, dense)
    run.labels[1] = CLASSES
    assert np.isnan(run.step(3))
