"""Convolution by columns in blocks that stay in the cache, products by BLAS.

Four things make it several times faster than unrolling the whole batch at once:

- The columns of some examples at a time are copied from a strided view of the padded images, row by
  row of the window, and multiplied.
- Few channels make short copies and narrow products, on which BLAS is slow. So T neighbouring
  outputs of a row are computed by one row of columns, with the kernel shifted T times side by side
  (`band`; a banded or Toeplitz matrix). It costs (fc + T - 1) / fc times the multiplications.
- The columns have one of ones beside them, so that the product adds the bias, and that with dZ
  gives its gradient, without passes of their own.
- The examples are cut into one share for each thread. A share has buffers for one block, that are
  used again for each; the calling thread makes them, since a workspace belongs to one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.cpu._blocks import (
    add_bias,
    all_finite,
    blocks,
    buffers_of,
    relu,
    repeated,
)
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares, shares, threaded_blas

_BLOCK_BYTES = 1 << 20  # columns of one block: few long calls, on what the cache still holds
_SHARE_WORK = 1 << 24  # multiplications that make a thread of its own worth while
_BAND_WIDTH = 32  # columns of W below which BLAS runs far under its speed
_BAND_COST = 2.3  # most multiplications a band may add
_ADDED = 1 << 11  # numbers of columns that NumPy copies at a time before it adds them up
_LANES = 4  # BLAS is up to a fifth faster on rows of columns that are a multiple of it


def copy_windows(images: Array, window: Window, out: tuple[int, int], columns: Array) -> None:
    """Copy what each of the `out` outputs sees into a row of `columns` (n * out_rows * out_cols,
    fr * fc * ch or more), contiguous; what is beyond stays.

    What lies side by side in the (padded) images is copied as one raw item: a row of the window, or
    with dilation a tap.
    """
    (fr, fc), (sr, sc), (dr, dc) = window.kernel, window.stride, window.dilation
    by_n, by_row, by_col, _ = images.strides
    n, _, _, ch = images.shape
    taps, steps = ((fr,), (dr * by_row,)) if dc == 1 else ((fr, fc), (dr * by_row, dc * by_col))
    item = np.dtype((np.void, images.itemsize * ch * (fc if dc == 1 else 1)))
    shape = (n, *out, *taps)
    if not columns.size:
        return
    seen = np.ndarray(shape, item, images, 0, (by_n, sr * by_row, sc * by_col, *steps))
    pixel, side = columns.strides[0], item.itemsize
    within = (side,) if dc == 1 else (side * fc, side)
    strides = (out[0] * out[1] * pixel, out[1] * pixel, pixel, *within)
    np.copyto(np.ndarray(shape, item, columns, 0, strides), seen)


def example_shares(n: int, work_each: int) -> list[slice]:
    """Shares of `n` examples that take `work_each` multiplications each."""
    return shares(n, -(-_SHARE_WORK // max(1, work_each)))


def run_examples(work: Callable[[int, slice], None], parts: list[slice]) -> None:
    """Do the shares. A single one leaves the threads to BLAS."""
    if len(parts) > 1:
        run_shares(work, parts)
        return
    with threaded_blas():
        work(0, parts[0])


class Columns:
    """The columns of a share's examples, block by block, in buffers of its own.

    `width` is that of the columns, `depth` that of the buffers: `with_ones` they have a column of
    ones more, and zeros up to a whole number of vectors.
    """

    def __init__(
        self,
        x_shape: Shape4,
        dtype: np.dtype,
        window: Window,
        out: tuple[int, int],
        with_ones: bool = False,
        block_bytes: int = 0,
    ) -> None:
        _, self.rows, self.cols, self.ch = x_shape
        self.dtype, self.window, self.out = dtype, window, out
        self.pixels, self.width = out[0] * out[1], window.taps * self.ch
        self.depth = self.width
        if with_ones:
            self.depth = -(-(self.width + 1) // _LANES) * _LANES
        each = max(1, self.pixels * self.depth * dtype.itemsize)
        self.block = max(1, (block_bytes or _BLOCK_BYTES) // each)

    def count(self, part: slice) -> int:
        """The examples of the largest block of `part`."""
        return min(self.block, part.stop - part.start)

    def empty(self, part: slice) -> Array:
        """Memory for the columns of a block."""
        columns = workspace.empty((self.count(part) * self.pixels, self.depth), self.dtype)
        if self.depth > self.width:
            columns[:, self.width :] = 0
            columns[:, self.width] = 1
        return columns

    def buffers(self, part: slice) -> tuple[Array, Array | None]:
        """Memory for the columns of a block, and its padded images if there is padding."""
        if not any(self.window.pad):
            return self.empty(part), None
        size = self.window.padded_size(self.rows, self.cols)
        return self.empty(part), workspace.zeros((self.count(part), *size, self.ch), self.dtype)

    def __call__(
        self, X: Array, part: slice, buffers: tuple[Array, Array | None]
    ) -> Iterator[tuple[slice, Array]]:
        """The blocks of `part` with their columns (pixels, depth)."""
        top, _, left, _ = self.window.pad
        for block in blocks(part, self.block):
            count, images = block.stop - block.start, X[block]
            if buffers[1] is not None:
                padded = buffers[1][:count]
                padded[:, top : top + self.rows, left : left + self.cols] = images
                images = padded
            columns = buffers[0][: count * self.pixels]
            copy_windows(images, self.window, self.out, columns)
            yield block, columns


# ------------------------------------------------------------------------------------------ bands


def outputs_per_row(
    window: Window,
    ch: int,
    out_ch: int,
    out_cols: int,
    enough: int = _BAND_WIDTH,
    most: int = 1,
) -> int:
    """How many neighbouring outputs T one row of columns should compute; 1 means no band.

    `enough` columns of the band make BLAS fast; more only add multiplications. Where W alone has
    them, up to `most` outputs, a power of two, still make copies (or sums) fewer and longer.
    """
    fc, sc = window.kernel[1], window.stride[1]
    if window.dilation[1] != 1 or ch * fc >= _BAND_WIDTH:
        return 1
    if out_ch >= _BAND_WIDTH:
        return math.gcd(most, out_cols)
    best = 1
    for t in range(2, out_cols + 1):
        if (fc + (t - 1) * sc) / fc > _BAND_COST:
            break
        if out_cols % t == 0:
            best = t
            if t * out_ch >= enough:
                break
    return best


def _pairs(out_ch: int) -> int:
    """2 where pairs of outputs save more by copying than they cost in multiplications."""
    return 2 if out_ch < 2 * _BAND_WIDTH else 1


def band_window(window: Window, t: int) -> Window:
    """The window that sees all that `t` neighbouring outputs see, and moves on by `t` outputs."""
    (fr, fc), (sr, sc) = window.kernel, window.stride
    return Window((fr, fc + (t - 1) * sc), (sr, t * sc), window.pad, window.dilation)


def band(W: Array, window: Window, t: int) -> Array:
    """`W` for `t` neighbouring outputs: (fr, fc + (t-1)*sc, ch, t*out_ch), shifted copies."""
    (fr, fc), sc = window.kernel, window.stride[1]
    ch, out_ch = W.shape[2:]
    wide = workspace.zeros((fr, fc + (t - 1) * sc, ch, t, out_ch), W.dtype)
    for k in range(t):
        wide[:, k * sc : k * sc + fc, :, k] = W
    return wide.reshape(*wide.shape[:3], t * out_ch)


# --------------------------------------------------------------------------- the three products


def forward(X: Array, W: Array, b: Array | None, window: Window, rectify: bool) -> Array:
    """Z = X * W + b (cross-correlation), with max(Z, 0) if `rectify`."""
    n, rows, cols, ch = X.shape
    out, out_ch = window.output_size(rows, cols), W.shape[3]
    Z = workspace.empty((n, *out, out_ch), X.dtype)
    t = outputs_per_row(window, ch, out_ch, out[1], most=_pairs(out_ch))
    if t > 1 and not all_finite(X):
        t = 1  # an infinity times a zero of the band would be NaN in outputs that don't see it
    if t > 1:
        W, window = band(W, window, t), band_window(window, t)
        b = None if b is None else repeated(b, t)
    with_ones = X.dtype.itemsize >= 4
    columns = Columns(X.shape, X.dtype, window, (out[0], out[1] // t), with_ones)
    weights = W.reshape(columns.width, t * out_ch)
    if with_ones:  # the bias is what the column of ones is multiplied with
        weights = workspace.zeros((columns.depth, t * out_ch), X.dtype)
        weights[: columns.width] = W.reshape(columns.width, t * out_ch)
        if b is not None:
            weights[columns.width] = b
    rows_of_Z = Z.reshape(n, columns.pixels, t * out_ch)
    parts = example_shares(n, columns.pixels * weights.size)
    buffers = [columns.buffers(part) for part in parts]

    def work(i: int, part: slice) -> None:
        for block, seen in columns(X, part, buffers[i]):
            product = rows_of_Z[block].reshape(-1, t * out_ch)
            np.matmul(seen, weights, out=product)
            if b is not None and not with_ones:
                add_bias(product, b)
            if rectify:
                relu(product, product)

    run_examples(work, parts)
    return Z


def param_grads(X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
    """dW = columns of X transposed, times dZ, and db, what a column of ones gives.

    Each share has a sum of its own.
    """
    n, out_rows, out_cols, out_ch = dZ.shape
    ch = X.shape[3]
    t = outputs_per_row(window, ch, out_ch, out_cols, most=_pairs(out_ch))
    wide = band_window(window, t) if t > 1 else window
    columns = Columns(X.shape, X.dtype, wide, (out_rows, out_cols // t), with_ones=True)
    size = (columns.depth, t * out_ch)
    rows_of_dZ = dZ.reshape(n, columns.pixels, t * out_ch)
    parts = example_shares(n, columns.pixels * math.prod(size))
    buffers = [columns.buffers(part) for part in parts]
    sums = [workspace.zeros(size, X.dtype) for _ in parts]
    products = [workspace.empty(size, X.dtype) for _ in parts]

    def work(i: int, part: slice) -> None:
        for block, seen in columns(X, part, buffers[i]):
            dz = rows_of_dZ[block].reshape(-1, t * out_ch)
            np.matmul(seen.T, dz, out=products[i])
            np.add(sums[i], products[i], out=sums[i])

    run_examples(work, parts)
    for more in sums[1:]:
        sums[0] += more
    gradient, db = sums[0][: columns.width], sums[0][columns.width]
    if t == 1:
        return gradient.reshape(*window.kernel, ch, out_ch), db
    # the band holds W t times, so its gradient is the sum of the t places
    gradient = gradient.reshape(*wide.kernel, ch, t, out_ch)
    fc, sc = window.kernel[1], window.stride[1]
    dW = workspace.zeros((*window.kernel, ch, out_ch), X.dtype)
    for k in range(t):
        dW += gradient[:, k * sc : k * sc + fc, :, k]
    return dW, db.reshape(t, out_ch).sum(axis=0)


def input_grad(dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
    """dX = col2im(dZ W^T), the overlapping columns of a block added up in its padded images."""
    n, rows, cols, ch = x_shape
    out_ch = W.shape[3]
    out_rows, out_cols = window.output_size(rows, cols)
    # twice as wide: longer runs are added up; of a single channel they are whole rows as it is
    t = 1 if ch == 1 else outputs_per_row(window, ch, out_ch, out_cols, 2 * _BAND_WIDTH, most=4)
    if t > 1 and not all_finite(dZ):
        t = 1  # as in the forward pass
    if t > 1:
        W, window = band(W, window, t), band_window(window, t)
    transposed = workspace.empty((t * out_ch, W.size // (t * out_ch)), W.dtype)
    transposed[...] = W.reshape(-1, t * out_ch).T
    # adding up takes many calls, so they should be longer
    columns = Columns(
        x_shape, dZ.dtype, window, (out_rows, out_cols // t), block_bytes=3 * _BLOCK_BYTES
    )
    rows_of_dZ = dZ.reshape(n, columns.pixels, t * out_ch)
    dX = workspace.empty(x_shape, dZ.dtype)
    parts = example_shares(n, columns.pixels * W.size)
    (padded_rows, padded_cols), step = window.padded_size(rows, cols), window.stride[1]
    # NumPy copies an array it adds to, unless it sees that no two of its numbers share memory. It
    # does so at once if a row is a whole number of steps.
    size, wide = (padded_rows, -(-padded_cols // step) * step), sum_dtype(dZ)
    direct = dX.dtype == wide and size == (rows, cols)  # the padded images are dX itself
    buffers: list[tuple[Array, Array | None]] = []
    for part in parts:
        padded = None if direct else workspace.empty((columns.count(part), *size, ch), wide)
        buffers.append((columns.empty(part), padded))
    top, _, left, _ = window.pad

    def work(i: int, part: slice) -> None:
        free, images = buffers[i]
        for block in blocks(part, columns.block):
            count = block.stop - block.start
            product = free[: count * columns.pixels]
            np.matmul(rows_of_dZ[block].reshape(-1, t * out_ch), transposed, out=product)
            padded = dX[block] if images is None else images[:count]
            padded.fill(0)
            scatter(product.reshape(count, *columns.out, *window.kernel, ch), padded, window)
            if not direct:
                dX[block] = padded[:, top : top + rows, left : left + cols]

    with buffers_of(_ADDED):
        run_examples(work, parts)
    return dX


def scatter(columns: Array, padded: Array, window: Window) -> None:
    """Add columns (n, out_rows, out_cols, fr, fc, ch) to the padded pixels they were read from."""
    n, out_rows, out_cols, fr, fc, ch = columns.shape
    (sr, sc), (dr, dc) = window.stride, window.dilation
    by_n, by_row, by_col, by_ch = padded.strides
    run = sc if dc == 1 else 1  # taps that lie side by side and do not meet the next output's
    for i in range(fr):
        for j in range(0, fc, run):
            length = min(run, fc - j)
            target = as_strided(
                padded[:, i * dr :, j * dc :],
                (n, out_rows, out_cols, length, ch),
                (by_n, sr * by_row, sc * by_col, by_col, by_ch),
            )
            target += columns[:, :, :, i, j : j + length]
