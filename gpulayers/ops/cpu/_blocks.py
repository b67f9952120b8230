"""How the CPU operations cut their work: shares for threads, blocks for the cache, wide rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.threads import shares

BLOCK = 1 << 17  # elements of one array that an elementwise pass takes at a time
_SHARE = 1 << 17  # elements below which another thread costs more than it saves
_WIDE = 512  # elements of a row from which NumPy's inner loop runs at full speed


def blocks(part: slice, step: int) -> Iterator[slice]:
    """Slices of `step` (the last may be smaller) that make up `part`."""
    for start in range(part.start, part.stop, step):
        yield slice(start, min(start + step, part.stop))


def element_shares(n: int, passes: int = 4) -> list[slice]:
    """Shares of `n` elements for an operation that goes over them about `passes` times."""
    return shares(n, max(4096, _SHARE * 4 // max(1, passes)))


def fold(rows: int, width: int) -> int:
    """How many rows of `width` elements to see as one, so that it is wide; it divides `rows`."""
    best = 1
    for k in range(2, min(rows, -(-_WIDE // width)) + 1):
        if rows % k == 0:
            best = k
    return best


def add_bias(rows: Array, b: Array) -> None:
    """Add `b` (ch,) to every row of the contiguous (m, ch) array, in place."""
    k = fold(*rows.shape) if rows.size else 1
    wide = rows.reshape(-1, k * len(b))
    np.add(wide, np.tile(b, k), out=wide)


def column_sums(rows: Array) -> Array:
    """The sum of the rows of a contiguous (m, ch) array, ch >= 1, as a product with ones."""
    m, ch = rows.shape
    k = fold(m, ch) if m else 1
    wide = rows.reshape(m // k, k * ch)
    sums = np.ones(m // k, dtype=rows.dtype) @ wide
    return sums.reshape(k, ch).sum(axis=0) if k > 1 else sums


def ones(n: int, dtype: np.dtype) -> Array:
    """A vector of ones, of the active workspace."""
    vector = workspace.empty((n,), dtype)
    vector.fill(1)
    return vector


def relu(array: Array, zero: Array) -> None:
    """max(array, 0) in place; `zero` is a contiguous vector of zeros of at least that size.

    A comparison with an array of zeros is several times faster than one with the number 0.
    """
    flat = array.reshape(-1)
    np.maximum(flat, zero[: flat.size], out=flat)


def all_finite(array: Array) -> bool:
    """Whether a contiguous array holds no NaN and no infinity, by a sum of squares.

    False as well where the squares overflow: the caller then takes a slower way, no wrong one.
    """
    if array.dtype.itemsize < 4:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return bool(np.isfinite(np.dot(flat, flat)))
