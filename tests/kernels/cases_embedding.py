"""embedding.cu: rows by number and their sums, numbers out of range and beyond 32 bits."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
)

#: each reads nothing and is left out; 2**32 + 3 would be row 3 in 32 bits
OUTSIDE = (-1, 6, 2**32 + 3, -(2**63), 2**63 - 1)


def _ids(n: int, count: int) -> np.ndarray:
    """Some numbers often and far apart, some once, some not at all (the row before the last)."""
    ids = np.random.default_rng(n).integers(0, count, n) ** 2 // count
    ids[ids == count - 2] = 0
    return np.asarray(ids, dtype=np.int64)


def forward(launcher: Launcher, n: int, count: int, width: int, dtype: str, index: str) -> None:
    table, values = rounded(random(count, width), dtype)
    ids = np.arange(n, dtype=np.int64) * 7 % count
    y = poisoned((n, width), dtype)
    args = (table, ids, y, y.size, width, count)
    launcher.launch("embedding_forward", dtype, index, blocks(y.size, "embedding_forward"), args)
    close(y, np.array([values[k] for k in ids.tolist()]), dtype)


def forward_out_of_range(launcher: Launcher) -> None:
    table, values = rounded(random(6, 5), "float32")
    ids = np.array([*OUTSIDE, 0, 5], dtype=np.int64)
    y = poisoned((7, 5), "float32")
    args = (table, ids, y, y.size, 5, 6)
    launcher.launch("embedding_forward", "float32", "int32", (1,), args)
    assert np.isnan(y[:5]).all()
    close(y[5:], values[[0, 5]], "float32")


def backward(launcher: Launcher, n: int, count: int, width: int, dtype: str, index: str) -> None:
    dy, upstream = rounded(random(n, width), dtype)
    ids = _ids(n, count)
    sums = np.zeros_like(dy[:1], shape=(count, width))
    args = (dy, ids, sums, n, width, count)
    launcher.launch("embedding_backward", dtype, index, (-(-width // 32), -(-n // 8)), args)
    close(sums, gold.embedding_sums(upstream, ids.tolist(), count), dtype, 20.0)


def backward_out_of_range(launcher: Launcher) -> None:
    """Left out, also where they stand before or between the others; other rows stay zero."""
    ids = np.array([6, 0, *OUTSIDE, 0, 5], dtype=np.int64)
    dy, upstream = rounded(random(ids.size, 5), "float32")
    sums = np.zeros((6, 5), "f4")
    launcher.launch("embedding_backward", "float32", "int32", (1, 2), (dy, ids, sums, 9, 5, 6))
    close(sums, gold.embedding_sums(upstream, ids.tolist(), 6), "float32")
    assert (load(sums, "float32")[1:5] == 0).all()


CASES = [
    *(
        functools.partial(f, n=n, count=c, width=w, dtype="float32", index="int32")
        for n, c, w in ((1, 1, 1), (33, 5, 35), (100, 40, 3), (64, 1, 2))
        for f in (forward, backward)
    ),
    forward_out_of_range,
    backward_out_of_range,
    *(
        functools.partial(f, n=40, count=6, width=33, dtype=d, index=i)
        for d, i in COMBINATIONS[1:]
        for f in (forward, backward)
    ),
]
