"""Convolution by a 3x3 kernel with a quarter of the multiplications: Winograd's F(4x4, 3x3).

What `_winograd` does along the rows is done along rows and columns here: 16 outputs of a channel
take 36 products instead of 144,

    Y = A^T [(G W G^T) * (B^T d B)] A,

where * is a product by element, here one matrix product over channels for each of the 36. The
transforms cost more, which many channels pay for.

The error, relative to the largest output, is up to 2e-5 in float32 (1e-6 without the transforms).
Only float32 is computed so.

Source: Winograd, "Arithmetic complexity of computations" (1980); Lavin & Gray, "Fast algorithms
for convolutional neural networks" (2016), section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._winograd import is_plain
from gpulayers.ops.cpu._winograd_rows import (
    FROM_POINTS,
    ONE,
    TO_POINTS,
    Rows,
    kernel_gradient,
    kernel_points,
)
from gpulayers.ops.window import Window

POINTS = (6, 6)
PARTS = 1
BLOCK_BYTES = 10 << 20  # transformed images of one block, in and out
_FEWEST = 128  # channels from which it beats the transform along the rows alone
_WASTE = 1.7  # outputs computed for one that is wanted, from which that is as fast


def serves(X: Array, out_ch: int, window: Window) -> bool:
    """Whether convolving `X` with this window is faster so than by `_winograd` or directly."""
    rows, cols = window.output_size(X.shape[1], X.shape[2])
    if not is_plain(X, window) or min(rows, cols) < 4 or min(X.shape[3], out_ch) < _FEWEST:
        return False
    return -(-rows // 4) * -(-cols // 4) * 16 <= _WASTE * rows * cols


class Geometry:
    """A block of `count` images, cut into tiles of 4x4 outputs."""

    def __init__(self, count: int, window: Window, rows: int, cols: int) -> None:
        self.count, self.cols, self.left = count, cols, window.pad[2]
        out_rows, self.out_cols = window.output_size(rows, cols)
        self.rows = Rows(rows, window.pad[0], out_rows)
        self.down, self.along = self.rows.count, -(-self.out_cols // 4)
        self.tiles = count * self.down * self.along

    def numbers(self, ch: int) -> int:
        """Transformed numbers of images of `ch` channels."""
        return 36 * self.tiles * ch

    def points(self, ch: int) -> Array:
        """Memory for the points of all tiles: (6 along the columns, tiles, 6 along the rows, ch).

        So the second transform has rows of 6 ch numbers.
        """
        return workspace.empty((6, self.tiles, 6, ch), np.float32)

    def as_rows(self, points: Array) -> Array:
        """The points of a block as the second transform takes them: (tiles, 6, 6 ch)."""
        return points[:, : self.tiles].reshape(6, self.tiles, -1).swapaxes(0, 1)

    def as_products(self, points: Array) -> Array:
        """The points of a block as matrices: (1, 6, 6, tiles, ch)."""
        return points[:, : self.tiles].swapaxes(1, 2)[None]


class Input:
    """B^T d B of images, block by block."""

    def __init__(self, full: Geometry, images: Array) -> None:
        self.width = images.shape[3]
        self._points = full.points(self.width)
        width = 4 * full.along + 2
        shape = (full.count, full.down, width, 6, images.shape[3])
        self._lines = workspace.empty(shape, np.float32)
        end = min(full.left + full.cols, width)  # pixels that no output sees may not fit
        inside = self._lines[:, :, full.left : end]
        self._lines[:, :, : full.left] = 0
        self._lines[:, :, end:] = 0
        self._sources = full.rows.seen(images[:, :, : end - full.left])
        self._targets = full.rows.points(inside)
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        """Views for a block of g.count examples."""
        self._count = g.count
        # A pixel that is not finite reaches all points of its tile, if only as a product with 0.
        self.witness = self._points[ONE, : g.tiles]
        lines = self._lines[: g.count]
        n, down, _, six, ch = lines.shape
        by_n, by_down, by_col, _, by_ch = lines.strides
        self._seen = as_strided(  # six columns of each tile
            lines, (n, down, g.along, 6, six * ch), (by_n, by_down, 4 * by_col, by_col, by_ch)
        )
        self._rows = g.as_rows(self._points).reshape(n, down, g.along, 6, six * ch)

    def __call__(self, block: slice, g: Geometry) -> Array:
        """(1, 6, 6, tiles, ch)"""
        if self._count != g.count:
            self._arrange(g)
        for (matrix, rows), T in zip(self._sources, self._targets, strict=True):
            np.matmul(matrix, rows[block], out=T[: g.count])
        np.matmul(TO_POINTS, self._seen, out=self._rows)
        return g.as_products(self._points)


class Output:
    """Y = A^T M A of blocks, M being the 36 products, with a bias added."""

    def __init__(self, full: Geometry, images: Array, bias: Array | None) -> None:
        self._bias, ch = bias, images.shape[3]
        self._products = full.points(ch)
        shape = (full.count, full.down, 4 * full.along, 6, ch)
        self._lines = workspace.empty(shape, np.float32)
        self._sources = full.rows.of_outputs(self._lines[:, :, : full.out_cols])
        self._targets = full.rows.outputs(images)

    def __call__(self, seen: Array, weights: Array, block: slice, g: Geometry) -> None:
        np.matmul(seen, weights, out=g.as_products(self._products))
        if self._bias is not None:
            one = self._products[ONE, : g.tiles, ONE]
            np.add(one, self._bias, out=one)
        lines = self._lines[: g.count].reshape(g.tiles, 4, -1)
        np.matmul(FROM_POINTS, g.as_rows(self._products), out=lines)
        for (matrix, rows), M in zip(self._targets, self._sources, strict=True):
            np.matmul(matrix, M[: g.count], out=rows[block])


class Gradient:
    """A dY A^T of output gradients, for dW."""

    def __init__(self, full: Geometry, images: Array) -> None:
        self.width = ch = images.shape[3]
        self._points = full.points(ch)
        shape = (full.count, full.down, 4 * full.along, 6, ch)
        self._lines = workspace.empty(shape, np.float32)
        self._lines[:, :, full.out_cols :] = 0
        self._targets = full.rows.of_outputs(self._lines[:, :, : full.out_cols])
        self._sources = full.rows.outputs(images)

    def __call__(self, block: slice, g: Geometry) -> Array:
        """(1, 6, 6, tiles, ch)"""
        for (matrix, rows), D in zip(self._sources, self._targets, strict=True):
            np.matmul(matrix.T, rows[block], out=D[: g.count])
        lines = self._lines[: g.count].reshape(g.tiles, 4, -1)
        np.matmul(FROM_POINTS.T, lines, out=g.as_rows(self._points))
        return g.as_products(self._points)


def transformed(W: Array) -> Array:
    """G W G^T: (3, 3, a, b) to (6 along the columns, 6 along the rows, a, b)."""
    return kernel_points(kernel_points(W), axis=1).swapaxes(0, 1)


def weights_of(points: Array) -> Array:
    """dW (3, 3, a, b) of the sum (6, 6, a, b) over all tiles."""
    return kernel_gradient(kernel_gradient(points, axis=1)).swapaxes(0, 1)


def turned_weights_of(points: Array) -> Array:
    """The same, of a kernel turned by 180 degrees."""
    return weights_of(points)[::-1, ::-1]
