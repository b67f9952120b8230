"""A training step on the CPU allocates nothing large after the first two."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Sequential, lenet
from gpulayers.ops import softmax, use_engine
from gpulayers.threads import use_threads
from tests.support.workspaces import needs_workspaces

pytestmark = needs_workspaces

LARGE = 64 * 1024  # bytes; all arrays that are there at a time must stay below it together
BUFFER = 8192  # numbers of a buffer of NumPy's loops over strided arrays, unless told otherwise
ENGINES = ["numpy", pytest.param("compiled", marks=pytest.mark.compiled)]
OPTIMIZERS = ["SGD(lr=0.01, momentum=0.9)", "Adam(lr=0.001)", "RMSProp(lr=0.001)", "AdaGrad"]


def small_cifar(optimizer: str) -> Sequential:
    def conv(out_ch: int) -> Conv2D:
        return Conv2D(out_ch, (3, 3), pad=1, act_fn="ReLU")

    def pool() -> Pool2D:
        return Pool2D((2, 2), stride=2)

    layers = [conv(32), conv(32), pool(), conv(64), conv(64), pool(), Flatten(), FullyConnected(10)]
    return Sequential(layers, optimizer=optimizer)


NETWORKS: dict[str, tuple[Callable[[str], Sequential], tuple[int, ...]]] = {
    "lenet": (lambda optimizer: lenet(optimizer=optimizer), (64, 28, 28, 1)),
    "small CIFAR": (small_cifar, (16, 32, 32, 3)),
}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    # The buffers of NumPy's loops over strided arrays: with several threads their sum is not what
    # is measured here. One thread has them in full.
    before = np.setbufsize(256)
    random.seed(0)
    yield
    np.setbufsize(before)


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng, shape = np.random.default_rng(0), NETWORKS[name][1]
    return rng.random(shape, np.float32), rng.integers(0, 10, shape[0])


def growth(step: Callable[[], Any], count: int = 3) -> list[int]:
    """The most that was allocated at a time within each step, over what there was before it."""
    tracemalloc.start()
    try:
        grown = []
        for _ in range(count):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            step()
            grown.append(tracemalloc.get_traced_memory()[1] - before)
        return grown
    finally:
        tracemalloc.stop()


def train(network: Sequential, X: np.ndarray, labels: np.ndarray) -> None:
    logits = network.forward(X)
    _, probs = softmax.softmax_cross_entropy_forward(logits, labels)
    dlogits = softmax.softmax_cross_entropy_backward(probs, labels, 1 / len(X))
    network.backward(dlogits, input_grad=False)
    network.update()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers(engine: str, count: int, name: str) -> None:
    network, (X, labels) = NETWORKS[name][0](OPTIMIZERS[0]), data(name)
    if count == 1:
        np.setbufsize(BUFFER)
    with use_engine(engine), use_threads(count):
        for _ in range(2):
            train(network, X, labels)
        kept = network._workspace.nbytes
        grown = growth(lambda: train(network, X, labels))
    assert max(grown) < LARGE
    assert network._workspace.nbytes == kept


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(engine: str, optimizer: str) -> None:
    network, (X, labels) = NETWORKS["lenet"][0](optimizer), data("lenet")
    with use_engine(engine), use_threads(2):
        for _ in range(2):
            train(network, X, labels)
        assert max(growth(lambda: train(network, X, labels))) < LARGE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_planned_step(engine: str, name: str) -> None:
    network, (X, labels) = NETWORKS[name][0](OPTIMIZERS[0]), data(name)
    with use_engine(engine), use_threads(2):
        plan = network.compile(X.shape)
        for _ in range(2):
            plan.step(X, labels)
        grown = growth(lambda: plan.step(X, labels))
    assert max(grown) < LARGE


def test_the_measure_sees_one_array() -> None:
    network, (X, labels) = NETWORKS["lenet"][0](OPTIMIZERS[0]), data("lenet")

    def careless() -> None:
        train(network, X, labels)
        np.zeros(LARGE, np.uint8)

    with use_engine("numpy"):
        for _ in range(2):
            train(network, X, labels)
        assert min(growth(careless)) >= LARGE
