"""How the CPU operations cut their work: shares for threads, blocks for the cache, wide rows."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from functools import lru_cache

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.threads import run_shares, shares, single_threaded_blas

SMALL = 1 << 15  # elements up to which an array is worked on as a whole, without ado
BLOCK = 1 << 17  # elements of one array that an elementwise pass takes at a time
_SHARE = 1 << 17  # elements, gone over twice, from which a second thread pays
_LEAD = 3 << 16  # elements, gone over once, that the caller does while another thread wakes
_VECTOR = 16  # elements that at most are loaded at once
_WIDE = 1 << 13  # elements of a row of which NumPy's buffer (8192) does not take two
_TILED = 1 << 13  # elements from which a bias is added to several rows at a time
_LONG = 512  # elements of a row from which NumPy should not copy it; see `row_by_row`


def blocks(part: slice, step: int) -> Iterator[slice]:
    """Slices of `step` (the last may be smaller) that make up `part`."""
    for start in range(part.start, part.stop, step):
        yield slice(start, min(start + step, part.stop))


def row_shares(rows: int, width: int, passes: int = 4) -> list[slice]:
    """Shares of `rows` rows of `width` elements, for about `passes` passes over them.

    The first is the largest: the caller, whose share it is, begins while the others wake, and would
    have to be woken himself if they ended after him.
    """
    work = max(1, passes * width)
    grain = -(-_SHARE * 2 // work)
    count = len(shares(rows, grain))
    step = max(1, (rows - min(_LEAD // work, grain)) // count)
    if width == 1 and step > _VECTOR:
        step -= step % _VECTOR
    first = rows - (count - 1) * step
    return [slice(0, first), *blocks(slice(first, rows), step)]


def block_lengths(parts: list[slice], step: int, whole: int = 1) -> list[int]:
    """How much of its share each thread takes at a time, in multiples of `whole`: the caller about
    `step`, the others about twice as much.

    Threads that called the same at the same time would meet at Python's lock after every call.
    """
    lengths: list[int] = []
    for i, part in enumerate(parts):
        size = (part.stop - part.start) // whole
        count = max(1, round(size * whole / (2 * step if i else step)))
        lengths.append(max(1, -(-size // count)) * whole)
    return lengths


@lru_cache(maxsize=1024)
def fold(rows: int, width: int) -> int:
    """How many rows of `width` elements to see as one, so that it is wide; it divides `rows`."""
    most = max(1, min(rows, _WIDE // width))
    return next(k for k in range(most, 0, -1) if rows % k == 0)


def row_by_row(width: int) -> contextlib.AbstractContextManager[None]:
    """Have NumPy's ufuncs read rows of `width` that lie apart, or that repeat, where they are.

    As long as two of them fit into its buffer, NumPy (2.4) copies several rows into it before it
    computes with them, which for long rows takes as long as the computing; for short ones a call
    for each row takes longer. This is for operations of one dtype: what must be cast goes through
    the buffer in any case, and a small one is slow.
    """
    return buffers_of(_LONG) if width >= _LONG else contextlib.nullcontext()


@contextlib.contextmanager
def buffers_of(numbers: int) -> Generator[None]:
    """Have NumPy's ufuncs copy, of operands that they must copy, so many numbers at a time.

    They allocate that memory in every call: of its own size (8192) it is 96 KB for three operands.
    """
    before = np.setbufsize(numbers)
    try:
        yield
    finally:
        np.setbufsize(before)


def repeated(vector: Array, k: int) -> Array:
    """`vector` k times in a row."""
    if k == 1:
        return vector
    rows = np.empty((k, len(vector)), vector.dtype)
    rows[...] = vector
    return rows.reshape(-1)


def tiled_bias(b: Array, rows: int) -> Array:
    """`b` (ch,) as often in a row as `add_tiled` wants it for up to so many rows."""
    most = min(rows, _WIDE // max(1, len(b)))
    return repeated(b, most) if rows * len(b) > _TILED and most > 1 else b


def add_bias(rows: Array, b: Array) -> None:
    """Add `b` (ch,) to every row of the contiguous (m, ch) array, in place."""
    add_tiled(rows, tiled_bias(b, len(rows)))


def add_tiled(rows: Array, tiled: Array) -> None:
    """`add_bias` with the result of `tiled_bias`, which threads share."""
    m, ch = rows.shape
    k = fold(m, ch) if rows.size > _TILED else 1
    wide = rows.reshape(-1, k * ch) if k > 1 else rows
    np.add(wide, tiled[: k * ch], out=wide)


def column_sums(rows: Array) -> Array:
    """The sum of the rows of a contiguous (m, ch) array, ch >= 1, as a product with ones."""
    m, ch = rows.shape
    k = fold(m, ch) if rows.size > SMALL else 1
    with single_threaded_blas():
        sums = ones(m // k, rows.dtype) @ rows.reshape(m // k, k * ch)
        return ones(k, rows.dtype) @ sums.reshape(k, ch) if k > 1 else sums


def ones(n: int, dtype: np.dtype) -> Array:
    """A vector of ones, which is not to be written to."""
    if n <= 2 * _WIDE:
        return _constant(n, 1.0, dtype)
    vector = workspace.empty((n,), dtype)
    vector.fill(1)
    return vector


def averaging(n: int, dtype: np.dtype) -> Array:
    """A column of 1 / n, not to be written to: rows times it are their averages."""
    return _constant(n, 1.0 / n, dtype)[:, None]


@lru_cache(maxsize=64)
def _constant(n: int, value: float, dtype: np.dtype) -> Array:
    vector = np.full(n, value, dtype)
    vector.setflags(write=False)
    return vector


def zero_row(dtype: np.dtype) -> Array:
    """2 _WIDE zeros: a maximum with an array of zeros is faster than one with the number 0, and
    these stay in the nearest caches."""
    return _constant(2 * _WIDE, 0.0, dtype)


def relu(array: Array, out: Array) -> None:
    """out = max(array, 0), contiguous both; they may be one array."""
    x, y, zero = array.reshape(-1), out.reshape(-1), zero_row(array.dtype)
    rest = x.size % zero.size
    full = x.size - rest
    if full:
        np.maximum(x[:full].reshape(-1, zero.size), zero, out=y[:full].reshape(-1, zero.size))
    if rest:
        np.maximum(x[full:], zero[:rest], out=y[full:])


def relu_in_place(array: Array) -> None:
    """max(array, 0) of a contiguous array, in threads."""
    flat = array.reshape(-1)
    parts = row_shares(flat.size, 1, 2)
    run_shares(lambda i, part: relu(flat[part], flat[part]), parts, blas=False)


def all_finite(array: Array) -> bool:
    """Whether a contiguous array holds no NaN and no infinity, by a sum of squares.

    False as well where the squares overflow: the caller then takes a slower way, no wrong one.
    """
    if array.dtype.itemsize < 4:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return bool(np.isfinite(np.dot(flat, flat)))


def pixels(images: Array) -> Array:
    """(n, rows, cols, ch) seen as (n, rows, cols), an item of raw bytes for each pixel.

    NumPy copies a strided slice of such items several times faster than the channels one by one.
    The channels must lie side by side.
    """
    n, rows, cols, ch = images.shape
    by_n, by_row, by_col, _ = images.strides
    item = np.dtype((np.void, ch * images.dtype.itemsize))
    return np.ndarray((n, rows, cols), item, images, 0, (by_n, by_row, by_col))
