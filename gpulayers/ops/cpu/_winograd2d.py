"""Convolution by a 3x3 kernel with a quarter of the multiplications: Winograd's F(4x4, 3x3).

What `_winograd` does along the rows is done along rows and columns here: 16 outputs of a channel
take 36 products instead of 144,

    Y = A^T [(G W G^T) * (B^T d B)] A,

where * is a product by element, here one matrix product over channels for each of the 36. The
transforms cost more passes, which many channels pay for.

The error, relative to the largest output, is up to 2e-5 in float32 (1e-6 without the transforms).
Only float32 is computed so.

Source: Winograd, "Arithmetic complexity of computations" (1980); Lavin & Gray, "Fast algorithms
for convolutional neural networks" (2016), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._kernels import Shape4
from gpulayers.ops.cpu._blocks import add_bias, all_finite, blocks, relu
from gpulayers.ops.cpu._columns import example_shares
from gpulayers.ops.cpu._winograd import G, is_plain
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares

_BLOCK_BYTES = 16 << 20  # transformed images of one block, in and out
_FEWEST = 192  # channels from which it beats the transform along the rows alone
_WASTE = 1.7  # outputs computed for one that is wanted, from which that is as fast
_TWO, _FOUR = np.float32(2), np.float32(4)


def serves(X: Array, out_ch: int, window: Window) -> bool:
    """Whether convolving `X` with this window is faster so than by `_winograd` or directly."""
    rows, cols = window.output_size(X.shape[1], X.shape[2])
    if not is_plain(X, window) or min(rows, cols) < 4 or min(X.shape[3], out_ch) < _FEWEST:
        return False
    return -(-rows // 4) * -(-cols // 4) * 16 <= _WASTE * rows * cols


def _transformed(W: Array) -> Array:
    """G W G^T: (3, 3, a, b) to (36, a, b)."""
    a, b = W.shape[2:]  # channels in and out
    rows = workspace.empty((6, 3 * a * b), W.dtype)
    np.matmul(G, W.reshape(3, -1), out=rows)
    out = workspace.empty((6, 6, a * b), W.dtype)
    return np.matmul(G, rows.reshape(6, 3, a * b), out=out).reshape(36, a, b)


# Six pixels d in a line to the six points and so on, in the order of `_winograd`: 0, infinity, 1,
# -1, 2, -2. Each of the arrays is one pixel (or point) of all tiles.


def _to_points(d: Sequence[Array], t: Sequence[Array], free: Array) -> None:
    """t = B^T d."""
    odd, even = free[:2]
    np.subtract(d[3], d[1], out=odd)
    np.subtract(d[4], d[2], out=even)
    np.multiply(odd, _TWO, out=t[0])
    np.add(even, t[0], out=t[4])
    np.subtract(even, t[0], out=t[5])
    np.subtract(d[2], d[0], out=t[0])
    np.multiply(t[0], _FOUR, out=t[0])
    np.subtract(even, t[0], out=t[0])  # 4 d0 - 5 d2 + d4
    np.multiply(odd, _FOUR, out=odd)
    np.subtract(d[5], d[3], out=even)
    np.subtract(even, odd, out=t[1])  # 4 d1 - 5 d3 + d5
    np.multiply(d[1], _FOUR, out=odd)
    np.subtract(d[3], odd, out=odd)
    np.multiply(d[2], _FOUR, out=even)
    np.subtract(d[4], even, out=even)
    np.add(even, odd, out=t[2])
    np.subtract(even, odd, out=t[3])


def _from_points(m: Sequence[Array], y: Sequence[Array], free: Array) -> None:
    """y = A^T m; writes over m[0]."""
    plus, minus, plus2, minus2 = free
    np.add(m[2], m[3], out=plus)
    np.subtract(m[2], m[3], out=minus)
    np.add(m[4], m[5], out=plus2)
    np.subtract(m[4], m[5], out=minus2)
    np.add(m[0], plus, out=m[0])
    np.add(m[0], plus2, out=y[0])
    np.multiply(plus2, _FOUR, out=plus2)
    np.add(plus, plus2, out=y[2])
    np.multiply(minus2, _TWO, out=minus2)
    np.add(minus, minus2, out=y[1])
    np.multiply(minus2, _FOUR, out=minus2)
    np.add(minus2, m[1], out=minus2)
    np.add(minus, minus2, out=y[3])


def _gradient_points(q: Sequence[Array], t: Sequence[Array], free: Array) -> None:
    """t = A q, of four output gradients in a line."""
    even, odd = free[:2]
    np.copyto(t[0], q[0])
    np.copyto(t[1], q[3])
    np.add(q[0], q[2], out=even)
    np.add(q[1], q[3], out=odd)
    np.add(even, odd, out=t[2])
    np.subtract(even, odd, out=t[3])
    np.multiply(q[2], _FOUR, out=even)
    np.add(even, q[0], out=even)
    np.multiply(q[3], _FOUR, out=odd)
    np.add(odd, q[1], out=odd)
    np.multiply(odd, _TWO, out=odd)
    np.add(even, odd, out=t[4])
    np.subtract(even, odd, out=t[5])


class _Tiles:
    """How `count` images are cut into tiles of 4x4 outputs."""

    def __init__(self, count: int, window: Window, size: tuple[int, int]) -> None:
        self.count, self.rows, self.cols = count, *size
        self.top, self.left = window.pad[0], window.pad[2]
        self.out = window.output_size(*size)
        self.down, self.along = -(-self.out[0] // 4), -(-self.out[1] // 4)
        self.all = count * self.down * self.along

    def shape(self, ch: int) -> tuple[int, ...]:
        return (self.count, self.down, self.along, ch)

    def padded_outputs(self, ch: int) -> Array | None:
        """Zeros for outputs and what tiles compute beyond them; None where they end alike."""
        size = (4 * self.down, 4 * self.along)
        return None if self.out == size else workspace.zeros((self.count, *size, ch), np.float32)


class _Input:
    """B^T d B of a block of images: (36, tiles, ch)."""

    def __init__(self, tiles: _Tiles, ch: int) -> None:
        t, f32 = tiles, np.float32
        width = 4 * t.along + 2
        padded = workspace.zeros((t.count, 4 * t.down + 2, width, ch), f32)
        rows, cols = slice(t.top, t.top + t.rows), slice(t.left, t.left + t.cols)
        self.inside = padded[:, rows, cols]  # pixels that no output sees may not fit
        lines = workspace.empty((6, t.count, t.down, width, ch), f32)
        points = workspace.empty((6, 6, *t.shape(ch)), f32)
        self.points = points.reshape(36, t.all, ch)
        self.by_row = (
            [padded[:, k : k + 4 * t.down - 3 : 4] for k in range(6)],
            lines,
            workspace.empty((2, t.count, t.down, width, ch), f32),
        )
        self.by_col = (
            [lines[:, :, :, k : k + 4 * t.along - 3 : 4] for k in range(6)],
            [points[:, k] for k in range(6)],
            workspace.empty((2, 6, *t.shape(ch)), f32),
        )

    def __call__(self, images: Array) -> Array:
        _, rows, cols, _ = self.inside.shape
        np.copyto(self.inside, images[:, :rows, :cols])
        _to_points(*self.by_row)
        _to_points(*self.by_col)
        return self.points


class _Output:
    """Y = A^T M A of a block, M being the 36 products."""

    def __init__(self, tiles: _Tiles, ch: int) -> None:
        t, f32 = tiles, np.float32
        self.tiles, self.ch = tiles, ch
        self.products = workspace.empty((36, t.all, ch), f32)
        lines = workspace.empty((4, 6, *t.shape(ch)), f32)
        products = self.products.reshape(6, 6, *t.shape(ch))
        self.by_row = (products, lines, workspace.empty((4, 6, *t.shape(ch)), f32))
        self.by_col = ([lines[:, k] for k in range(6)], workspace.empty((4, 4, *t.shape(ch)), f32))
        self.padded = t.padded_outputs(ch)

    def __call__(self, points: Array, weights: Array, Y: Array) -> None:
        t, (lines, free) = self.tiles, self.by_col
        np.matmul(points, weights, out=self.products)
        _from_points(*self.by_row)
        whole = Y if self.padded is None else self.padded
        y = whole.reshape(t.count, t.down, 4, t.along, 4, self.ch).transpose(4, 2, 0, 1, 3, 5)
        _from_points(lines, y, free)
        if self.padded is not None:
            np.copyto(Y, whole[:, : Y.shape[1], : Y.shape[2]])


class _Gradient:
    """A dY A^T of a block of output gradients: (36, tiles, ch)."""

    def __init__(self, tiles: _Tiles, ch: int) -> None:
        t, f32 = tiles, np.float32
        self.tiles, self.ch = tiles, ch
        self.lines = workspace.empty((6, 4, *t.shape(ch)), f32)
        self.free = workspace.empty((2, 4, *t.shape(ch)), f32)
        points = workspace.empty((6, 6, *t.shape(ch)), f32)
        self.points = points.reshape(36, t.all, ch)
        self.by_col = (
            [self.lines[:, k] for k in range(4)],
            [points[:, k] for k in range(6)],
            workspace.empty((2, 6, *t.shape(ch)), f32),
        )
        self.padded = t.padded_outputs(ch)

    def __call__(self, dZ: Array) -> Array:
        t = self.tiles
        if self.padded is not None:
            np.copyto(self.padded[:, : dZ.shape[1], : dZ.shape[2]], dZ)
            dZ = self.padded
        q = dZ.reshape(t.count, t.down, 4, t.along, 4, self.ch).transpose(2, 4, 0, 1, 3, 5)
        _gradient_points(q, self.lines, self.free)
        _gradient_points(*self.by_col)
        return self.points


# ---------------------------------------------------------------------- the products of a layer


def _cut(x_shape: Shape4, out_ch: int, window: Window) -> tuple[list[slice], int]:
    """Shares of the examples, and how many of them make a block."""
    n, rows, cols, ch = x_shape
    tiles = _Tiles(1, window, (rows, cols))
    parts = example_shares(n, tiles.all * 36 * ch * out_ch)
    most = max(1, _BLOCK_BYTES // (4 * 36 * tiles.all * (ch + out_ch)))
    count = max(part.stop - part.start for part in parts)
    return parts, -(-count // -(-count // most))


def _tiles_of(part: slice, step: int, x_shape: Shape4, window: Window) -> dict[int, _Tiles]:
    """The tiles of the blocks of a share, by their number of examples."""
    counts = {block.stop - block.start for block in blocks(part, step)}
    return {count: _Tiles(count, window, x_shape[1:3]) for count in counts}


def forward(X: Array, W: Array, b: Array | None, window: Window, rectify: bool) -> Array | None:
    """Z = X * W + b with max(Z, 0) if `rectify`; None if X or W is not finite.

    An infinity would make NaN of all outputs of its tile, also of those that do not see it.
    """
    if not all_finite(W):
        return None
    n, rows, cols, ch = X.shape
    out_ch = W.shape[3]
    Z = workspace.empty((n, *window.output_size(rows, cols), out_ch), X.dtype)
    weights, (parts, step) = _transformed(W), _cut(X.shape, out_ch, window)
    memory = [
        {k: (_Input(t, ch), _Output(t, out_ch)) for k, t in tiles.items()}
        for tiles in (_tiles_of(part, step, X.shape, window) for part in parts)
    ]
    finite = [True] * len(parts)

    def work(i: int, part: slice) -> None:
        for block in blocks(part, step):
            if not all_finite(X[block]):
                finite[i] = False
                return
            to_tiles, from_tiles = memory[i][block.stop - block.start]
            from_tiles(to_tiles(X[block]), weights, Z[block])
            if b is not None:
                add_bias(Z[block].reshape(-1, out_ch), b)
            if rectify:
                relu(Z[block], Z[block])

    with np.errstate(over="ignore", invalid="ignore"):  # the direct way will warn
        run_shares(work, parts)
    return Z if all(finite) else None


def weight_grad(X: Array, dZ: Array, window: Window) -> Array | None:
    """dW; None if X or dZ is not finite."""
    ch, out_ch = X.shape[3], dZ.shape[3]
    parts, step = _cut(X.shape, out_ch, window)
    memory = [
        {k: (_Input(t, ch), _Gradient(t, out_ch)) for k, t in tiles.items()}
        for tiles in (_tiles_of(part, step, X.shape, window) for part in parts)
    ]
    sums = [workspace.zeros((36, ch, out_ch), X.dtype) for _ in parts]
    products = [workspace.empty((36, ch, out_ch), X.dtype) for _ in parts]

    def work(i: int, part: slice) -> None:
        for block in blocks(part, step):
            to_tiles, gradient = memory[i][block.stop - block.start]
            seen, dz = to_tiles(X[block]), gradient(dZ[block])
            np.matmul(seen.transpose(0, 2, 1), dz, out=products[i])
            np.add(sums[i], products[i], out=sums[i])

    with np.errstate(over="ignore", invalid="ignore"):  # the direct way will warn
        run_shares(work, parts)
        for more in sums[1:]:
            sums[0] += more
    # Every transformed number of X meets every one of dZ at its place, if only as a zero: what is
    # not finite in either is left in the sums.
    if not all_finite(sums[0]):
        return None
    rows = workspace.empty((3, 6, ch * out_ch), X.dtype)
    np.matmul(G.T, sums[0].reshape(6, -1), out=rows.reshape(3, -1))
    dW = workspace.empty((3, 3, ch, out_ch), X.dtype)
    np.matmul(G.T, rows, out=dW.reshape(3, 3, -1))
    return dW
