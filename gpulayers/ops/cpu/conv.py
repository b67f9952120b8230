"""Convolution on the CPU: columns in blocks that stay in the cache, products by BLAS.

Three things make it several times faster than unrolling the whole batch at once:

- The columns of a few examples at a time are copied from a strided view of the padded images and
  multiplied while they are still in the cache.
- Few channels make short copies and narrow products, on which BLAS is slow. So T neighbouring
  outputs of a row are computed by one row of columns, with the kernel shifted T times side by side
  (`_band`; a banded or Toeplitz matrix). It costs (fc + T - 1) / fc times the multiplications.
- col2im adds runs of pixels that do not overlap in one operation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops._kernels import Shape4
from gpulayers.ops._product import product
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference.conv import cropped
from gpulayers.ops.window import Window

_BLOCK_BYTES = 1 << 20  # columns of one block: about what a core's L2 cache holds
_BAND_WIDTH = 32  # columns of W below which BLAS runs far under its speed
_BAND_COST = 2.3  # most multiplications a band may add
_FLIP_CHANNELS = 16  # input channels from which the flipped convolution beats col2im


def _pad(X: Array, window: Window) -> Array:
    """`X` with zeros around it; `X` itself when there is no padding."""
    top, _, left, _ = window.pad
    if not any(window.pad):
        return X
    n, rows, cols, ch = X.shape
    padded = np.zeros((n, *window.padded_size(rows, cols), ch), dtype=X.dtype)
    padded[:, top : top + rows, left : left + cols] = X
    return padded


def _windows(padded: Array, window: Window, out: tuple[int, int]) -> Array:
    """A read-only view (n, out_rows, out_cols, fr, fc, ch) of what each output sees."""
    n, _, _, ch = padded.shape
    by_n, by_row, by_col, by_ch = padded.strides
    (sr, sc), (dr, dc) = window.stride, window.dilation
    return as_strided(
        padded,
        (n, *out, *window.kernel, ch),
        (by_n, sr * by_row, sc * by_col, dr * by_row, dc * by_col, by_ch),
        writeable=False,
    )


def _blocks(n: int, bytes_each: int) -> Iterator[slice]:
    """Slices of 0..n whose columns fill about one block each."""
    step = max(1, min(n, _BLOCK_BYTES // max(1, bytes_each)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _outputs_per_row(window: Window, ch: int, out_ch: int, out_cols: int) -> int:
    """How many neighbouring outputs T one row of columns should compute; 1 means no band."""
    fc, sc = window.kernel[1], window.stride[1]
    if window.dilation[1] != 1 or ch * fc >= _BAND_WIDTH or out_ch >= _BAND_WIDTH:
        return 1
    best = 1
    for t in range(2, out_cols + 1):
        if (fc + (t - 1) * sc) / fc > _BAND_COST:
            break
        if out_cols % t == 0:
            best = t
            if t * out_ch >= 2 * _BAND_WIDTH:
                break
    return best


def _band_window(window: Window, t: int) -> Window:
    """The window that sees all that `t` neighbouring outputs see, and moves on by `t` outputs."""
    (fr, fc), (sr, sc) = window.kernel, window.stride
    return Window((fr, fc + (t - 1) * sc), (sr, t * sc), window.pad, window.dilation)


def _band(W: Array, window: Window, t: int) -> Array:
    """`W` for `t` neighbouring outputs: (fr, fc + (t-1)*sc, ch, t*out_ch), shifted copies."""
    (fr, fc), sc = window.kernel, window.stride[1]
    ch, out_ch = W.shape[2:]
    band = np.zeros((fr, fc + (t - 1) * sc, ch, t, out_ch), dtype=W.dtype)
    for k in range(t):
        band[:, k * sc : k * sc + fc, :, k] = W
    return band.reshape(*band.shape[:3], t * out_ch)


def _flips(window: Window, ch: int) -> bool:
    """Whether the input gradient is best had as a convolution of dZ with the flipped kernel.

    It saves adding up overlapping columns; with few channels its product is too narrow to pay.
    """
    (span_r, span_c), (top, bottom, left, right) = window.span, window.pad
    return (
        window.stride == (1, 1)
        and ch >= _FLIP_CHANNELS
        and max(top, bottom) < span_r
        and max(left, right) < span_c
    )


def _flipped(W: Array) -> Array:
    """The kernel turned by 180 degrees, input and output channels exchanged."""
    return np.ascontiguousarray(W[::-1, ::-1].transpose(0, 1, 3, 2))


def _flipped_window(window: Window) -> Window:
    """The padding that leads from dZ back to the size of X: span - 1 - pad, on each side."""
    (span_r, span_c), (top, bottom, left, right) = window.span, window.pad
    pad = (span_r - 1 - top, span_r - 1 - bottom, span_c - 1 - left, span_c - 1 - right)
    return Window(window.kernel, (1, 1), pad, window.dilation)


class CpuConv:
    """Overrides the convolution products of the reference."""

    def im2col(self, X: Array, window: Window) -> Array:
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        columns = np.empty((n, *out, *window.kernel, ch), dtype=X.dtype)
        columns[...] = _windows(_pad(X, window), window, out)
        return columns.reshape(n * out[0] * out[1], window.taps * ch)

    def col2im(
        self, columns: Array, x_shape: Shape4, window: Window, mode: str = "gather"
    ) -> Array:
        n, rows, cols, ch = x_shape
        out = window.output_size(rows, cols)
        columns = columns.reshape(n, *out, *window.kernel, ch)
        padded = np.zeros((n, *window.padded_size(rows, cols), ch), dtype=sum_dtype(columns))
        _scatter(columns, padded, window)
        return cropped(padded, window, (rows, cols), columns.dtype)

    def bias_grad(self, dZ: Array) -> Array:
        rows = dZ.reshape(-1, dZ.shape[-1])
        if dZ.dtype.itemsize < 4:  # BLAS has no half precision
            return rows.sum(axis=0, dtype=sum_dtype(dZ)).astype(dZ.dtype)
        return np.ones(len(rows), dtype=dZ.dtype) @ rows

    # --------------------------------------------------------------- the layer's three products

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        n, rows, cols, ch = X.shape
        out_ch = W.shape[3]
        out = window.output_size(rows, cols)
        Z = np.empty((n, *out, out_ch), dtype=X.dtype)
        if window.is_pointwise:
            np.matmul(X.reshape(-1, ch), W.reshape(ch, out_ch), out=Z.reshape(-1, out_ch))
            if b is not None:
                Z += b
            return Z
        t = _outputs_per_row(window, ch, out_ch, out[1])
        if t > 1 and not np.isfinite(X).all():
            t = 1  # an infinity times a zero of the band would be NaN in outputs that don't see it
        if t > 1:
            W, window = _band(W, window, t), _band_window(window, t)
            b = None if b is None else np.tile(b, t)
        weights = W.reshape(-1, t * out_ch)
        rows_of_Z = Z.reshape(n, out[0] * out[1] // t, t * out_ch)
        for block, columns in _columns(X, window, (out[0], out[1] // t)):
            product = rows_of_Z[block].reshape(-1, t * out_ch)
            np.matmul(columns, weights, out=product)
            if b is not None:
                product += b
        return Z

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        n, out_rows, out_cols, out_ch = dZ.shape
        ch = X.shape[3]
        if window.is_pointwise:
            dW = product(X.reshape(-1, ch).T, dZ.reshape(-1, out_ch))
            return dW.reshape(1, 1, ch, out_ch)
        t = _outputs_per_row(window, ch, out_ch, out_cols)
        wide = _band_window(window, t) if t > 1 else window
        gradient = np.zeros((wide.taps * ch, t * out_ch), dtype=X.dtype)
        rows_of_dZ = dZ.reshape(n, out_rows * out_cols // t, t * out_ch)
        for block, columns in _columns(X, wide, (out_rows, out_cols // t)):
            gradient += columns.T @ rows_of_dZ[block].reshape(-1, t * out_ch)
        if t == 1:
            return gradient.reshape(*window.kernel, ch, out_ch)
        # the band holds W t times, so its gradient is the sum of the t places
        gradient = gradient.reshape(*wide.kernel, ch, t, out_ch)
        fc, sc = window.kernel[1], window.stride[1]
        dW = np.zeros((*window.kernel, ch, out_ch), dtype=X.dtype)
        for k in range(t):
            dW += gradient[:, k * sc : k * sc + fc, :, k]
        return dW

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        n, rows, cols, ch = x_shape
        out_ch = W.shape[3]
        if window.is_pointwise:
            return product(dZ.reshape(-1, out_ch), W.reshape(ch, out_ch).T).reshape(x_shape)
        if _flips(window, ch):
            return self.conv2d_forward(dZ, _flipped(W), None, _flipped_window(window))
        out_rows, out_cols = window.output_size(rows, cols)
        t = _outputs_per_row(window, ch, out_ch, out_cols)
        if t > 1 and not np.isfinite(dZ).all():
            t = 1  # as in the forward pass
        if t > 1:
            W, window = _band(W, window, t), _band_window(window, t)
        transposed = np.ascontiguousarray(W.reshape(-1, t * out_ch).T)
        rows_of_dZ = dZ.reshape(n, out_rows * out_cols // t, t * out_ch)
        padded = np.zeros((n, *window.padded_size(rows, cols), ch), dtype=sum_dtype(dZ))
        pixels = out_rows * out_cols // t
        width = transposed.shape[1]
        workspace = None
        for block in _blocks(n, pixels * width * dZ.itemsize):
            count = block.stop - block.start
            if workspace is None:
                workspace = np.empty((count * pixels, width), dtype=dZ.dtype)
            columns = workspace[: count * pixels]
            np.matmul(rows_of_dZ[block].reshape(-1, t * out_ch), transposed, out=columns)
            seen = columns.reshape(count, out_rows, out_cols // t, *window.kernel, ch)
            _scatter(seen, padded[block], window)
        return cropped(padded, window, (rows, cols), dZ.dtype)


def _columns(X: Array, window: Window, out: tuple[int, int]) -> Iterator[tuple[slice, Array]]:
    """The columns of `X` block by block, in one workspace that is used again for each block."""
    n, ch = X.shape[0], X.shape[3]
    views = _windows(_pad(X, window), window, out)
    width, pixels = window.taps * ch, out[0] * out[1]
    workspace = None
    for block in _blocks(n, pixels * width * X.itemsize):
        count = block.stop - block.start
        if workspace is None:
            workspace = np.empty((count * pixels, width), dtype=X.dtype)
        columns = workspace[: count * pixels]
        np.copyto(columns.reshape(count, *out, *window.kernel, ch), views[block])
        yield block, columns


def _scatter(columns: Array, padded: Array, window: Window) -> None:
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
