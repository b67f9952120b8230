"""Launches of a layer's forward and backward pass on the GPU; no waits, no copies, fit for a graph.

Held exactly, so that a kernel that is no longer taken shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Embedding,
    GroupNorm,
    LayerNorm1D,
    LayerNorm2D,
)
from gpulayers.ops import use_engine
from tests.conftest import Backend
from tests.support import fake_cupy

IMAGES = (4, 6, 6, 8)
#: layer, shape of the input, launches of forward and backward. Batch normalisation: three kernels
#: and six array operations for the running statistics; gradients of the parameters cost two more
#: launches where they are added up, three if rows are many. GroupNorm: scaler and intercept are
#: array operations.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int, int]] = {
    "BatchNorm1D": (BatchNorm1D, (6, 8), 9, 4),
    "BatchNorm2D": (BatchNorm2D, (16, 8, 8, 32), 9, 5),
    "LayerNorm1D": (LayerNorm1D, (6, 8), 1, 4),
    "LayerNorm2D": (LayerNorm2D, IMAGES, 1, 4),
    "GroupNorm": (lambda: GroupNorm(2), IMAGES, 3, 7),
    "Embedding": (lambda: Embedding(8, 50), (6, 8), 1, 3),
}


def prepared(name: str, backend: Backend) -> tuple[Any, Any, Any]:
    """The layer after one pass, an input and a gradient of the output."""
    make, shape, _, _ = LAYERS[name]
    random.seed(0)
    layer, rng = make(), np.random.default_rng(0)
    if name == "Embedding":
        X = backend.asarray(rng.integers(0, 50, shape))
    else:
        X = backend.asarray(rng.standard_normal(shape).astype("f4"))
    dY = backend.asarray(rng.standard_normal(layer.forward(X).shape).astype("f4"))
    layer.backward(dY)
    layer.flush_gradients()
    return layer, X, dY


@pytest.mark.parametrize("name", LAYERS)
def test_launches(name: str, emulated: Backend) -> None:
    layer, X, dY = prepared(name, emulated)
    with fake_cupy.count() as forward, fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        layer.forward(X)
    with fake_cupy.count() as backward, fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        layer.backward(dY)
    assert (forward["launch"], backward["launch"]) == LAYERS[name][2:]


@pytest.mark.parametrize("name", LAYERS)
def test_the_array_formulas_launch_more(name: str, emulated: Backend) -> None:
    """What the count sees when the kernels are not taken."""
    with use_engine("reference"):
        layer, X, dY = prepared(name, emulated)
        with fake_cupy.count() as events:
            layer.forward(X)
            layer.backward(dY)
    assert events["launch"] > sum(LAYERS[name][2:])


@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_pass_computes_what_it_did(name: str, emulated: Backend) -> None:
    layer, X, dY = prepared(name, emulated)
    cuda = fake_cupy.cupy.cuda
    stream = cuda.Stream(non_blocking=True)
    pool = cuda.MemoryPool()  # what the capture lets go of must go to nobody else
    with cuda.using_allocator(pool.malloc), stream:
        stream.begin_capture()
        try:
            Y = layer.forward(X)
            dX = layer.backward(dY)
        finally:
            graph = stream.end_capture()
    graph.launch()
    found = [Y.get(), None if name == "Embedding" else dX.get()]
    layer.flush_gradients()
    wanted = [layer.forward(X).get()]
    wanted.append(None if name == "Embedding" else layer.backward(dY).get())
    for got, want in zip(found, wanted, strict=True):
        if want is not None:
            np.testing.assert_array_equal(got, want)
