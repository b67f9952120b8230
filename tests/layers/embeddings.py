"""Embeddings with known weights, and ids for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from tests.conftest import Backend
from tests.layers.harness import values

VOCAB, WIDTH = 7, 3
IDS = np.array([[1, 4, 1, 0], [6, 6, 6, 6], [2, 3, 4, 1]])
RAGGED = [[1, 4, 1], [6], [], [2, 2, 2, 2, 5], [0, 6]]
POOLS = [None, "sum", "mean"]
with_pools = pytest.mark.parametrize("pool", POOLS)


def embedding(pool: str | None = None, **kwargs: Any) -> layers.Embedding:
    random.seed(5)
    return layers.Embedding(WIDTH, VOCAB, pool, **kwargs)


def run(layer: layers.Embedding, X: Any, backend: Backend) -> tuple[Any, np.ndarray]:
    """The output, and the gradient given to it."""
    Y = layer.forward(X)
    dY = values(Y.shape, 2)
    assert layer.backward(backend.asarray(dY)) is None
    return Y, dY
