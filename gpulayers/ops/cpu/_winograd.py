"""Convolution by a 3x3 kernel with half the multiplications: Winograd's F(4, 3) along the rows.

Four outputs of a column need six pixels d0..d5 and three taps. Winograd's minimal filtering
computes them with 6 products instead of 12,

    y = A^T [(G w) * (B^T d)],

where * is a product by element, here a matrix product over channels. Along the columns the
convolution stays direct: after the transform, the three columns that an output sees lie side by
side in memory, so they are one row of 3 ch numbers of a matrix product and nothing is unrolled.
Rows of such a matrix overlap, and BLAS takes only rows that do not; so every third one is taken,
three times.

The transforms add and subtract numbers of different size: the error, relative to the largest
output, is up to 4e-6 in float32 (1e-6 without them). Only float32 is computed so.

Source: Winograd, "Arithmetic complexity of computations" (1980); Lavin & Gray, "Fast algorithms
for convolutional neural networks" (2016), section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import repeated
from gpulayers.ops.cpu._winograd_rows import ONE, Rows, kernel_gradient, kernel_points
from gpulayers.ops.window import Window

POINTS = (6,)
PARTS = 3  # of the positions, each a matrix
BLOCK_BYTES = 3 << 20  # transformed images of one block, in and out
_FEWEST = 16  # channels from which it may beat the direct product
_TRANSFORMS, _GAIN = 4, 0.9  # measured: their cost in products of a channel; what is worth while


def serves(X: Array, out_ch: int, window: Window) -> bool:
    """Whether convolving `X` with this window by Winograd's algorithm is the faster way."""
    few = min(X.shape[3], out_ch)
    rows, cols = window.output_size(X.shape[1], X.shape[2])
    if not is_plain(X, window) or min(rows, cols) < 4 or few < _FEWEST:
        return False
    # Half of the products are saved, but positions that are no output are computed, too, and the
    # transforms cost what is as much less as there are channels that share them.
    computed = -(-rows // 4) * 4 * _width(cols, window) / (rows * cols)
    return computed * (0.5 + _TRANSFORMS / few) < _GAIN


def is_plain(X: Array, window: Window) -> bool:
    """Whether it is a dense 3x3 window on float32."""
    plain = window.kernel == (3, 3) and window.stride == window.dilation == (1, 1)
    return plain and X.dtype == np.float32 and len(X) > 0


def _width(out_cols: int, window: Window) -> int:
    """Positions of a row of tiles: the zeros between it and the next one stand for the padding on
    both sides."""
    return out_cols + 2 - min(window.pad[2], window.pad[3], 2)


class Geometry:
    """A block of `count` images, whose pixels are one sequence after the transform."""

    def __init__(self, count: int, window: Window, rows: int, cols: int) -> None:
        self.count, self.cols, self.left = count, cols, window.pad[2]
        out_rows, self.out_cols = window.output_size(rows, cols)
        self.rows = Rows(rows, window.pad[0], out_rows)
        self.tiles, self.width = self.rows.count, _width(self.out_cols, window)
        self.positions = count * self.tiles * self.width
        self.thirds = -(-self.positions // 3)

    def numbers(self, ch: int) -> int:
        """Transformed numbers of images of `ch` channels."""
        return 6 * self.positions * ch


def _lines(images: Array) -> Array:
    """Contiguous images (n, rows, cols, ch) with a row's numbers as its channels."""
    n, rows, cols, ch = images.shape
    return images.reshape(n, rows, 1, cols * ch)


class Input:
    """B^T d of images, along the rows, block by block."""

    def __init__(self, full: Geometry, images: Array) -> None:
        self.ch = images.shape[3]
        self.width = 3 * self.ch
        # the positions, and what the last ones see beyond
        self._result = workspace.empty((6, (3 * full.thirds + 2) * self.ch), np.float32)
        self._sources = full.rows.seen(_lines(images))
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        """Views for a block of g.count examples, and the zeros around the images."""
        self._count, ch = g.count, self.ch
        used = g.positions * ch
        # A pixel that is not finite reaches all points of its tile, if only as a product with 0.
        self.witness = self._result[ONE, :used]
        self._result[:, used : (3 * g.thirds + 2) * ch] = 0
        T = self._result[:, :used].reshape(6, g.count, g.tiles, 1, g.width * ch)
        T = T.transpose(1, 2, 3, 0, 4)
        begin, end = g.left * ch, (g.left + g.cols) * ch
        T[..., :begin] = 0
        T[..., end:] = 0
        self._targets = g.rows.points(T[..., begin:end])
        by_point, by_number = self._result.strides
        self._seen = as_strided(
            self._result,
            (3, 6, g.thirds, 3 * ch),
            (ch * by_number, by_point, 3 * ch * by_number, by_number),
        )

    def __call__(self, block: slice, g: Geometry) -> Array:
        """(3, 6, thirds, 3 ch): the matrices of every third position."""
        if self._count != g.count:
            self._arrange(g)
        for (matrix, rows), T in zip(self._sources, self._targets, strict=True):
            np.matmul(matrix, rows[block], out=T)
        return self._seen


class Output:
    """y = A^T M of blocks, M being the six products, with a bias added."""

    def __init__(self, full: Geometry, images: Array, bias: Array | None) -> None:
        self.ch = images.shape[3]
        self._bias = None if bias is None else repeated(bias, full.out_cols)
        self._products = workspace.empty((6, 3 * full.thirds, self.ch), np.float32)
        self._targets = full.rows.outputs(_lines(images))
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        self._count = g.count
        self._thirds, M = _by_thirds(self._products, g, self.ch)
        self._one = M[..., ONE, :]
        self._sources = g.rows.of_outputs(M)

    def __call__(self, seen: Array, weights: Array, block: slice, g: Geometry) -> None:
        if self._count != g.count:
            self._arrange(g)
        np.matmul(seen, weights, out=self._thirds)
        if self._bias is not None:
            np.add(self._one, self._bias, out=self._one)
        for (matrix, rows), M in zip(self._targets, self._sources, strict=True):
            np.matmul(matrix, M, out=rows[block])


class Gradient:
    """A dY of output gradients, for dW; zero at the positions that are no output."""

    def __init__(self, full: Geometry, images: Array) -> None:
        self.ch = self.width = images.shape[3]
        self._result = workspace.empty((6, 3 * full.thirds, self.ch), np.float32)
        self._sources = full.rows.outputs(_lines(images))
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        self._count = g.count
        self._result[:, g.positions : 3 * g.thirds] = 0
        places = self._result[:, : g.positions].reshape(6, -1, g.width, self.ch)
        places[:, :, g.out_cols :] = 0
        self._thirds, D = _by_thirds(self._result, g, self.ch)
        self._targets = g.rows.of_outputs(D)

    def __call__(self, block: slice, g: Geometry) -> Array:
        """(3, 6, thirds, ch)"""
        if self._count != g.count:
            self._arrange(g)
        for (matrix, rows), D in zip(self._sources, self._targets, strict=True):
            np.matmul(matrix.T, rows[block], out=D)
        return self._thirds


def _by_thirds(numbers: Array, g: Geometry, ch: int) -> tuple[Array, Array]:
    """Six numbers of each position (6, positions, ch), seen as (3, 6, thirds, ch), every third
    position by itself, and as rows of the outputs (count, tiles, 1, 6, out_cols ch)."""
    thirds = numbers[:, : 3 * g.thirds].reshape(6, g.thirds, 3, ch).transpose(2, 0, 1, 3)
    by_point, by_position, by_number = numbers.strides
    row = g.width * by_position
    rows = as_strided(
        numbers,
        (g.count, g.tiles, 1, 6, g.out_cols * ch),
        (g.tiles * row, row, 0, by_point, by_number),
    )
    return thirds, rows


def transformed(W: Array) -> Array:
    """G applied to the rows of (3, 3, a, b): (6, 3 a, b)."""
    return kernel_points(W).reshape(6, -1, W.shape[3])


def weights_of(points: Array) -> Array:
    """dW (3, 3, a, b) of the sum (6, 3 a, b) over all positions."""
    _, rows, b = points.shape
    return kernel_gradient(points).reshape(3, 3, rows // 3, b)


def turned_weights_of(points: Array) -> Array:
    """dW (3, 3, a, b) of a kernel turned by 180 degrees, of the sum (6, a, 3 b)."""
    _, a, cols = points.shape
    rows = kernel_gradient(points).reshape(3, a, 3, cols // 3)
    return rows.transpose(0, 2, 1, 3)[::-1, ::-1]
