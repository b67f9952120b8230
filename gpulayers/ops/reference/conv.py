"""Convolution as a matrix product: im2col, its adjoint col2im, and what follows from them.

Source: Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing" (2006), section 3: unroll the input's windows into rows, and a convolution is one
matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Shape4
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.window import Window


def pad_image(X: Array, window: Window, value: float = 0.0) -> Array:
    """`X` (n, rows, cols, ch) with the window's padding around it, filled with `value`."""
    top, bottom, left, right = window.pad
    if not any(window.pad):
        return X
    return xp_of(X).pad(X, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def cropped(padded: Array, window: Window, size: tuple[int, int], dtype: Any) -> Array:
    """`padded` without its padding: (n, *size, ch), contiguous, in `dtype`."""
    top, _, left, _ = window.pad
    image = padded[:, top : top + size[0], left : left + size[1]]
    return xp_of(padded).ascontiguousarray(image.astype(dtype, copy=False))


def taps(window: Window, out_size: tuple[int, int]) -> Iterator[tuple[int, int, slice, slice]]:
    """For each tap (i, j) of the window: the slices of the padded image that it sees.

    Output pixel (r, c) looks with tap (i, j) at padded pixel (r*sr + i*dr, c*sc + j*dc); over all
    outputs that is one strided slice a tap.
    """
    (fr, fc), (sr, sc), (dr, dc) = window.kernel, window.stride, window.dilation
    rows, cols = out_size
    for i in range(fr):
        for j in range(fc):
            yield (
                i,
                j,
                slice(i * dr, i * dr + (rows - 1) * sr + 1, sr),
                slice(j * dc, j * dc + (cols - 1) * sc + 1, sc),
            )


class ReferenceConv:
    """im2col, col2im and the convolution products."""

    def im2col(self, X: Array, window: Window) -> Array:
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        padded = pad_image(X, window)
        columns = xp_of(X).empty((n, *out, *window.kernel, ch), dtype=X.dtype)
        for i, j, r, c in taps(window, out):
            columns[:, :, :, i, j] = padded[:, r, c]
        return columns.reshape(n * out[0] * out[1], window.taps * ch)

    def col2im(
        self, columns: Array, x_shape: Shape4, window: Window, mode: str = "gather"
    ) -> Array:
        # The adjoint of im2col: what was read from a pixel is added back to it. The mode (who adds:
        # the pixel or the window) matters to parallel code only.
        n, rows, cols, ch = x_shape
        out = window.output_size(rows, cols)
        columns = columns.reshape(n, *out, *window.kernel, ch)
        size = (n, *window.padded_size(rows, cols), ch)
        padded = xp_of(columns).zeros(size, dtype=sum_dtype(columns))
        for i, j, r, c in taps(window, out):
            padded[:, r, c] += columns[:, :, :, i, j]
        return cropped(padded, window, (rows, cols), columns.dtype)

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        # Z[n,r,c,o] = b[o] + sum_ijk X_pad[n, r*sr+i*dr, c*sc+j*dc, k] W[i,j,k,o]
        n, rows, cols, _ = X.shape
        Z = product(self.im2col(X, window), W.reshape(-1, W.shape[-1]))
        if b is not None:
            Z += b
        return Z.reshape(n, *window.output_size(rows, cols), W.shape[-1])

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        # dX = col2im(dZ W^T): the adjoint of "unroll, then multiply by W"
        out_ch = W.shape[-1]
        columns = product(dZ.reshape(-1, out_ch), W.reshape(-1, out_ch).T)
        return self.col2im(columns, x_shape, window)

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        # dW = im2col(X)^T dZ
        out_ch = dZ.shape[-1]
        dW = product(self.im2col(X, window).T, dZ.reshape(-1, out_ch))
        return dW.reshape(*window.kernel, X.shape[-1], out_ch)

    def bias_grad(self, dZ: Array) -> Array:
        # b is added at every position, so its gradient is the sum over all of them
        sums = dZ.reshape(-1, dZ.shape[-1]).sum(axis=0, dtype=sum_dtype(dZ))
        return sums.astype(dZ.dtype, copy=False)
