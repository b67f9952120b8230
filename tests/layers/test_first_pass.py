"""The first forward pass, which makes the parameters, in several threads at once."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, modules
from gpulayers.errors import ShapeError
from gpulayers.layers import _fitting
from gpulayers.models import Sequential
from tests.backend.test_threads_of_users import can_fork, in_child
from tests.conftest import Backend
from tests.support.compare import assert_close, assert_same_bits

THREADS = 4
BRIEFLY = 0.2  # seconds in which another thread would come this far, if nothing kept it


def together(task: Callable[[int], Any]) -> list[Any]:
    """What `task` returns in each of the threads, which begin as one."""
    start, results = threading.Barrier(THREADS), [None] * THREADS

    def run(i: int) -> None:
        start.wait(20)
        results[i] = task(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Meeting(layers.FullyConnected):
    """Threads that draw the parameters wait for each other, if there are several."""

    meeting: Any = None
    drawn = 0

    def _create(self, name: str, shape: Any, init: Any = None, learned: bool = True) -> None:
        def draw(*args: Any) -> Any:
            Meeting.drawn += 1
            with contextlib.suppress(threading.BrokenBarrierError):
                Meeting.meeting.wait(BRIEFLY)
            return init(*args)

        super()._create(name, shape, draw if init else None, learned)


def test_one_thread_draws(numpy_backend: Backend) -> None:
    Meeting.meeting, Meeting.drawn = threading.Barrier(THREADS), 0
    layer, X = Meeting(3), np.ones((2, 5), np.float32)
    outputs = together(lambda i: layer.forward(X, retain_derived=False))
    assert Meeting.drawn == 1
    for Y in outputs:
        assert_same_bits(Y, layer.forward(X, retain_derived=False))


def test_a_first_pass_that_fails_beside_one_that_does_not(numpy_backend: Backend) -> None:
    """What the first made is forgotten; nobody else has computed with it meanwhile."""
    inside, done = threading.Event(), threading.Event()

    class Failing(layers.FullyConnected):
        def _forward(self, X: Any, training: bool) -> Any:
            if X[0, 0] < 0:
                inside.set()
                done.wait(BRIEFLY)
                raise ShapeError("no")
            return super()._forward(X, training)

    layer, X = Failing(3), np.ones((2, 5), np.float32)

    def task(i: int) -> Any:
        if i == 0:
            with pytest.raises(ShapeError, match="no"):
                layer.forward(-X, retain_derived=False)
            return None
        inside.wait(20)
        Y = layer.forward(X, retain_derived=False)
        done.set()
        return Y

    outputs = together(task)[1:]
    for Y in outputs:
        assert_same_bits(Y, layer.forward(X, retain_derived=False))


NETWORKS: list[tuple[Any, tuple[int, ...]]] = [
    (
        lambda: Sequential(
            [
                layers.Conv2D(4, 3, act_fn="ReLU"),
                layers.BatchNorm2D(),
                layers.Flatten(),
                layers.FullyConnected(6),
                layers.Softmax(),
            ]
        ),
        (3, 6, 6, 2),
    ),
    (lambda: layers.LSTM(4), (3, 5, 6)),
    (lambda: modules.BidirectionalLSTM(4), (3, 5, 6)),
    (lambda: modules.SkipConnectionIdentityModule(3, 3, 3), (2, 6, 6, 3)),
    (lambda: modules.MultiHeadedAttentionModule(2), (2, 3, 4)),
]


@pytest.mark.parametrize("make, shape", NETWORKS)
def test_networks(numpy_backend: Backend, make: Any, shape: tuple[int, ...]) -> None:
    X = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            network = make()
            is_attention = isinstance(network, modules.MultiHeadedAttentionModule)
            Xs = [X] * (3 if is_attention else 1)
            outputs = together(lambda i, n=network, Xs=Xs: n.forward(*Xs, retain_derived=False))
            for Y in outputs:  # other threads have the default engine
                assert_close(Y, network.forward(*Xs, retain_derived=False))
    finally:
        sys.setswitchinterval(interval)


def test_what_comes_first_may_be_no_forward_pass(numpy_backend: Backend) -> None:
    X = np.ones((2, 5), np.float32)
    machine = layers.RBM(3)
    machine.reconstruct(X)
    assert machine.is_initialized
    dense = layers.FullyConnected(3)
    dense._bwd2(X, X, np.ones((2, 3), np.float32))
    assert dense.is_initialized


@pytest.mark.parametrize("kind", [layers.RNN, layers.LSTM, layers.GRU])
def test_a_cell_whose_first_step_fails(numpy_backend: Backend, kind: Any) -> None:
    """The gradients are the layer's too, and stay."""
    layer, X = kind(3), np.ones((2, 4, 5), np.float32)
    Y = layer.forward(X)
    with pytest.raises(ShapeError):
        layer.cell.forward(np.ones((2, 9), np.float32))
    layer.backward(np.ones_like(Y))
    layer.update()


def test_one_that_fails_does_not_place_what_was_loaded(emulated: Backend) -> None:
    layer = layers.Conv2D(2, 3)
    layer.set_params({"b": np.ones((1, 1, 1, 2), np.float32)})
    with pytest.raises(ShapeError, match="Conv2D: the kernel spans"):
        layer.forward(np.ones((1, 2, 2, 1), np.float32))
    layer.forward(emulated.asarray(np.ones((1, 3, 3, 1)), "float32"))
    assert layer.home == "cupy"


class Own(layers.Flatten):
    """A layer with a size that it does not list."""

    _size = ("n_ch", 1)
    n_ch: int | None = None

    def _forward(self, X: Any, training: bool) -> Any:
        if X[0, 0] < 0:
            raise ShapeError("no")
        return super()._forward(X, training)


def test_a_size_that_is_not_listed_is_forgotten_too(numpy_backend: Backend) -> None:
    layer = Own()
    layer.n_ch = None
    with pytest.raises(ShapeError, match="no"):
        layer.forward(-np.ones((2, 5)))
    assert layer.n_ch is None
    assert layer.forward(np.ones((2, 3))).shape == (2, 3)


def test_copies(numpy_backend: Backend) -> None:
    """The lock is no part of a layer."""
    layer, X = layers.FullyConnected(3), np.ones((2, 5), np.float32)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.forward(X).shape == (2, 3)


@can_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_one(numpy_backend: Backend) -> None:
    """The thread that holds the lock is not there in the child."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with _fitting._first_passes:
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)

    def compute() -> None:
        timer = threading.Timer(20, os._exit, (3,))
        timer.daemon = True
        timer.start()
        layers.FullyConnected(3).forward(np.ones((2, 5), np.float32))

    try:
        assert in_child(compute) == 0
    finally:
        leave.set()
        thread.join()
