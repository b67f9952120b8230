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

import contextlib

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import all_finite, blocks, ones, relu, repeated, row_by_row
from gpulayers.ops.cpu._columns import example_shares
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares, threaded_blas

_BLOCK_BYTES = 3 << 20  # transformed images of one block, in and out
_FEWEST = 24  # channels from which it may beat the direct product
_MANY = 96  # channels from which BLAS's threads serve better than shares of the examples
_TRANSFORMS, _GAIN = 8, 0.9  # measured: their cost in products of a channel; what is worth while

# The points 0, 1, -1, 2, -2 and infinity. Stored in the order 0, infinity, 1, -1, 2, -2, in which
# the transforms of the first two are one operation.
G = np.array(
    [
        [1 / 4, 0, 0],
        [0, 0, 1],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
    ],
    dtype=np.float32,
)
_TWO, _FOUR = np.float32(2), np.float32(4)


def serves(X: Array, out_ch: int, window: Window) -> bool:
    """Whether convolving `X` with this window by Winograd's algorithm is the faster way."""
    few = min(X.shape[3], out_ch)
    rows, cols = window.output_size(X.shape[1], X.shape[2])
    if not is_plain(X, window) or min(rows, cols) < 4 or few < _FEWEST:
        return False
    # Half of the products are saved, but positions that are no output are computed, too, and the
    # transforms cost what is as much less as there are channels that share them.
    computed = -(-rows // 4) * 4 * (cols + 2) / (rows * cols)
    return computed * (0.5 + _TRANSFORMS / few) < _GAIN


def is_plain(X: Array, window: Window) -> bool:
    """Whether it is a dense 3x3 window on float32."""
    plain = window.kernel == (3, 3) and window.stride == window.dilation == (1, 1)
    return plain and X.dtype == np.float32 and len(X) > 0


def threads_for(few: int) -> contextlib.AbstractContextManager[None]:
    """Who has the threads, for images of at least `few` channels on both sides."""
    return threaded_blas() if few >= _MANY else contextlib.nullcontext()


def transformed(W: Array) -> Array:
    """G applied to the rows of (3, 3, a, b): (6, 3 a, b)."""
    rows = W.reshape(3, -1)
    out = workspace.empty((6, rows.shape[1]), W.dtype)
    return np.matmul(G, rows, out=out).reshape(6, -1, W.shape[3])


class Geometry:
    """Sizes of a block of `count` examples: tiles of four output rows, with two more columns than
    the output has, so that the pixels of all tiles form one sequence."""

    def __init__(self, count: int, window: Window, rows: int, cols: int) -> None:
        self.count, self.rows, self.cols = count, rows, cols
        self.top, self.left = window.pad[0], window.pad[2]
        self.out_rows, self.out_cols = window.output_size(rows, cols)
        self.tiles, self.width = -(-self.out_rows // 4), self.out_cols + 2
        self.padded_rows = 4 * self.tiles + 2
        self.positions = count * self.tiles * self.width
        self.thirds = -(-self.positions // 3)

    def sequence(self, ch: int) -> int:
        """Numbers in one transformed row: all positions, and what the last ones see beyond."""
        return (3 * self.thirds + 2) * ch


class Input:
    """B^T d of a block of images, along the rows."""

    def __init__(self, full: Geometry, ch: int) -> None:
        g, N, dtype = full, full.width * ch, np.dtype(np.float32)
        self.ch = ch
        self.padded = workspace.zeros((g.count, g.padded_rows, g.width, ch), dtype)
        self.steps = workspace.empty((g.count, 4 * g.tiles, N), dtype)
        self.half = workspace.empty((g.count, g.tiles, 2, N), dtype)
        self.result = workspace.empty((6, g.sequence(ch)), dtype)
        self.seen: Array  # (3, 6, thirds, 3 ch): the matrices of every third position
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        """Views for a block of g.count examples."""
        self._count, ch, N = g.count, self.ch, g.width * self.ch
        padded = self.padded[: g.count].reshape(g.count, g.padded_rows, N)
        self.middle = self.padded[: g.count, g.top : g.top + g.rows, g.left : g.left + g.cols]
        by_n, by_row, by_number = padded.strides

        def pairs(first: int) -> Array:  # rows 4 t + first and the one after it, of every tile
            return as_strided(
                padded[:, first:], (g.count, g.tiles, 2, N), (by_n, 4 * by_row, by_row, by_number)
            )

        self.d02, self.d24 = padded[:, :-2], padded[:, 2:]
        self.d12, self.d34 = pairs(1), pairs(3)
        steps = self.steps[: g.count].reshape(g.count, g.tiles, 4, N)
        self.u, self.u01, self.u23 = self.steps[: g.count], steps[:, :, :2], steps[:, :, 2:]
        self.u1, self.u2 = steps[:, :, 1], steps[:, :, 2]
        self.v = self.half[: g.count]
        self.v0, self.v1 = self.v[:, :, 0], self.v[:, :, 1]
        used = g.positions * ch
        # -4 (d1 + d2) + d3 + d4: every pixel that several outputs of a column would share, so it
        # tells what is not finite; the first and the last row reach the output that sees them only.
        self.witness = self.result[2, :used]
        self.result[:, used : g.sequence(ch)] = 0
        T = self.result[:, :used].reshape(6, g.count, g.tiles, N)
        self.T, self.T05 = T, T[:2].transpose(1, 2, 0, 3)
        by_point = self.result.strides[0]
        self.seen = as_strided(
            self.result,
            (3, 6, g.thirds, 3 * ch),
            (ch * by_number, by_point, 3 * ch * by_number, by_number),
        )

    def __call__(self, images: Array, g: Geometry) -> Array:
        if self._count != g.count:
            self._arrange(g)
        T, v = self.T, self.v
        np.copyto(self.middle, images)
        np.subtract(self.d24, self.d02, out=self.u)  # d[k+2] - d[k] for k = 0..3
        np.multiply(self.d12, _FOUR, out=v)
        np.subtract(self.d34, v, out=v)  # d3 - 4 d1, d4 - 4 d2
        np.add(self.v1, self.v0, out=T[2])
        np.subtract(self.v1, self.v0, out=T[3])
        np.multiply(self.u1, _TWO, out=self.v0)
        np.add(self.u2, self.v0, out=T[4])
        np.subtract(self.u2, self.v0, out=T[5])
        np.multiply(self.u01, _FOUR, out=v)
        np.subtract(self.u23, v, out=self.T05)  # 4 d0 - 5 d2 + d4, 4 d1 - 5 d3 + d5
        return self.seen


class Output:
    """y = A^T M of a block, M being the six products."""

    def __init__(self, full: Geometry, ch: int) -> None:
        self.ch = ch
        self.products = workspace.empty((6, 3 * full.thirds, ch), np.float32)
        self.scratch = workspace.empty((4, full.count * full.tiles, full.out_cols * ch), np.float32)
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        self._count, ch = g.count, self.ch
        third = self.products[:, : 3 * g.thirds].reshape(6, g.thirds, 3, ch)
        self.thirds = third.transpose(2, 0, 1, 3)
        by_point, by_position, by_number = self.products.strides
        row = g.width * by_position
        self.M = as_strided(
            self.products,
            (6, g.count, g.tiles, g.out_cols * ch),
            (by_point, g.tiles * row, row, by_number),
        )
        scratch = self.scratch[:, : g.count * g.tiles]
        self.s = scratch.reshape(4, g.count, g.tiles, g.out_cols * ch)

    def __call__(
        self, seen: Array, weights: Array, bias: Array | None, Y: Array, g: Geometry
    ) -> None:
        if self._count != g.count:
            self._arrange(g)
        np.matmul(seen, weights, out=self.thirds)
        M, (plus, minus, plus2, minus2) = self.M, self.s
        np.add(M[2], M[3], out=plus)
        np.subtract(M[2], M[3], out=minus)
        np.add(M[4], M[5], out=plus2)
        np.subtract(M[4], M[5], out=minus2)
        if bias is not None:  # plus and minus stand once in every output row
            np.add(plus, bias, out=plus)
            np.add(minus, bias, out=minus)
        np.add(M[0], plus, out=M[0])
        rows = Y.reshape(g.count, g.out_rows, g.out_cols * self.ch)
        # the last tile may reach beyond the image: row k of it is there for the first of them only
        y = [rows[:, k::4] for k in range(4)]
        self._put(np.add, M[0], plus2, y[0])
        np.multiply(plus2, _FOUR, out=plus2)
        self._put(np.add, plus, plus2, y[2])
        np.multiply(minus2, _TWO, out=minus2)
        self._put(np.add, minus, minus2, y[1])
        np.multiply(minus2, _FOUR, out=minus2)
        np.add(minus2, M[1], out=minus2)
        self._put(np.add, minus, minus2, y[3])

    @staticmethod
    def _put(operation: np.ufunc, a: Array, b: Array, out: Array) -> None:
        tiles = out.shape[1]
        operation(a[:, :tiles], b[:, :tiles], out=out)


class Gradient:
    """A dY of a block of output gradients, for dW; zero at the positions that are no output."""

    def __init__(self, full: Geometry, ch: int) -> None:
        self.ch = ch
        self.result = workspace.zeros((6, 3 * full.thirds, ch), np.float32)
        self.scratch = workspace.empty((2, full.count * full.tiles, full.out_cols * ch), np.float32)
        self.padded = None  # the rows of dY, when they do not fill the last tile
        if full.out_rows % 4:
            size = (full.count, 4 * full.tiles, full.out_cols * ch)
            self.padded = workspace.zeros(size, np.float32)
        self._count = -1

    def _arrange(self, g: Geometry) -> None:
        self._count, ch = g.count, self.ch
        self.result[:, g.positions : 3 * g.thirds] = 0
        third = self.result[:, : 3 * g.thirds].reshape(6, g.thirds, 3, ch)
        self.thirds = [third[:, :, r] for r in range(3)]
        by_point, by_position, by_number = self.result.strides
        row = g.width * by_position
        self.D = as_strided(
            self.result,
            (6, g.count, g.tiles, g.out_cols * ch),
            (by_point, g.tiles * row, row, by_number),
        )
        scratch = self.scratch[:, : g.count * g.tiles]
        self.s = scratch.reshape(2, g.count, g.tiles, g.out_cols * ch)

    def __call__(self, dZ: Array, g: Geometry) -> list[Array]:
        if self._count != g.count:
            self._arrange(g)
        rows = dZ.reshape(g.count, g.out_rows, g.out_cols * self.ch)
        if self.padded is not None:
            padded = self.padded[: g.count]
            np.copyto(padded[:, : g.out_rows], rows)
            rows = padded
        q, D, (even, odd) = [rows[:, k::4] for k in range(4)], self.D, self.s
        np.copyto(D[0], q[0])
        np.copyto(D[1], q[3])
        np.add(q[0], q[2], out=even)
        np.add(q[1], q[3], out=odd)
        np.add(even, odd, out=D[2])  # the sum of all rows: what the bias gradient needs, too
        np.subtract(even, odd, out=D[3])
        np.multiply(q[2], _FOUR, out=even)
        np.add(even, q[0], out=even)
        np.multiply(q[3], _FOUR, out=odd)
        np.add(odd, q[1], out=odd)
        np.multiply(odd, _TWO, out=odd)
        np.add(even, odd, out=D[4])
        np.subtract(even, odd, out=D[5])
        return self.thirds


# ---------------------------------------------------------------------- the products of a layer


def block_of(parts: list[slice], window: Window, rows: int, cols: int, ch: int, out_ch: int) -> int:
    """Examples of a block: a share is cut into blocks of about one size."""
    g = Geometry(1, window, rows, cols)
    most = max(1, _BLOCK_BYTES // (4 * 6 * g.positions * (ch + out_ch)))
    count = max(part.stop - part.start for part in parts)
    return -(-count // -(-count // most))


def forward(X: Array, W: Array, b: Array | None, window: Window, rectify: bool) -> Array | None:
    """Z = X * W + b with max(Z, 0) if `rectify`; None if X or W is not finite.

    An infinity would make NaN of all outputs of its tile, also of those that do not see it.
    """
    if not all_finite(W):
        return None
    n, rows, cols, ch = X.shape
    out_ch = W.shape[3]
    Z = workspace.empty((n, *window.output_size(rows, cols), out_ch), X.dtype)
    weights = transformed(W)
    parts = example_shares(n, Z[:1].size * 9 * ch // 2)
    step = block_of(parts, window, rows, cols, ch, out_ch)
    full = Geometry(step, window, rows, cols)
    bias = None if b is None else repeated(b, full.out_cols)
    buffers = [(Input(full, ch), Output(full, out_ch)) for _ in parts]
    finite = [True] * len(parts)

    def work(i: int, part: slice) -> None:
        to_tiles, from_tiles = buffers[i]
        for block in blocks(part, step):
            count = block.stop - block.start
            g = full if count == step else Geometry(count, window, rows, cols)
            from_tiles(to_tiles(X[block], g), weights, bias, Z[block], g)
            if not all_finite(to_tiles.witness):
                finite[i] = False
                return
            if rectify:
                relu(Z[block], Z[block])

    # the direct way will warn
    with np.errstate(over="ignore", invalid="ignore"), row_by_row(cols * min(ch, out_ch)):
        run_shares(work, parts)
    return Z if all(finite) else None


def weight_grad(X: Array, dZ: Array, window: Window) -> tuple[Array, Array] | None:
    """(dW, db); None if X or dZ is not finite."""
    n, rows, cols, ch = X.shape
    out_ch = dZ.shape[3]
    parts = example_shares(n, dZ[:1].size * 9 * ch // 2)
    step = block_of(parts, window, rows, cols, ch, out_ch)
    full = Geometry(step, window, rows, cols)
    buffers = [(Input(full, ch), Gradient(full, out_ch)) for _ in parts]
    size = (6, 3 * ch, out_ch)
    sums = [workspace.zeros(size, X.dtype) for _ in parts]
    products = [workspace.empty(size, X.dtype) for _ in parts]
    biases = [np.zeros(out_ch, X.dtype) for _ in parts]
    one = ones(3 * full.thirds, X.dtype)

    def work(i: int, part: slice) -> None:
        to_tiles, gradient = buffers[i]
        for block in blocks(part, step):
            count = block.stop - block.start
            g = full if count == step else Geometry(count, window, rows, cols)
            pairs = zip(to_tiles(X[block], g), gradient(dZ[block], g), strict=True)
            for seen, dz in pairs:
                np.matmul(seen.transpose(0, 2, 1), dz, out=products[i])
                np.add(sums[i], products[i], out=sums[i])
            biases[i] += one[: 3 * g.thirds] @ gradient.result[2, : 3 * g.thirds]

    # the direct way will warn
    with np.errstate(over="ignore", invalid="ignore"), row_by_row(cols * min(ch, out_ch)):
        run_shares(work, parts)
    for more, db in zip(sums[1:], biases[1:], strict=True):
        sums[0] += more
        biases[0] += db
    # Every transformed number of X meets every one of dZ at its place, if only as a zero: what is
    # not finite in either is left in the sums.
    if not all_finite(sums[0]):
        return None
    dW = workspace.empty((3, 3, ch, out_ch), X.dtype)
    np.matmul(G.T, sums[0].reshape(6, -1), out=dW.reshape(3, -1))
    return dW, biases[0]
