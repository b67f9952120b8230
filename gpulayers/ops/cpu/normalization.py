"""Normalisation on the CPU: blocks in the cache, sums as products with ones, threads over rows.

Mean and variance take two passes over the data: mean(x**2) - mean(x)**2 would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import blocks, fold, ones, repeated, row_by_row, row_shares
from gpulayers.ops.reference.normalization import ReferenceNormalization
from gpulayers.threads import Work, run_shares

BLOCK = (
    1 << 18
)  # elements that a pass takes at a time: memory is slow, and calls wait for one another
_LONGEST = 1 << 14  # numbers of a row whose float32 sum by BLAS is as exact as NumPy's


def _run(work: Work, parts: list[slice], width: int) -> None:
    """`run_shares`, for work on rows of `width` numbers."""
    with row_by_row(width):
        run_shares(work, parts)


class _Columns:
    """Columns of (m, ch) added up block by block; the sums of the blocks in float64.

    Several rows are seen as one, so that it is long enough for NumPy's inner loop.
    """

    def __init__(self, m: int, ch: int, dtype: np.dtype) -> None:
        self.m, self.ch, self.dtype = m, ch, dtype
        self.k = fold(m, ch)
        self.rows, self.width = m // self.k, self.k * ch
        self.step = max(1, BLOCK // self.width)
        self.parts = row_shares(self.rows, self.width, 4)
        self.one = ones(max(min(self.step, self.rows), self.k), dtype)
        self.free = [
            workspace.empty((min(self.step, p.stop - p.start), self.width), dtype)
            for p in self.parts
        ]

    def wide(self, array: Array) -> Array:
        return array.reshape(self.rows, self.width)

    def tiled(self, vector: Array) -> Array:
        return repeated(vector.astype(self.dtype, copy=False), self.k)

    def zeros(self, count: int) -> list[Array]:
        """Zeros for `count` sums of each share."""
        return [np.zeros((count, self.ch)) for _ in self.parts]

    def total(self, block: Array) -> Array:
        """The sums (ch,) of a block of wide rows."""
        wide = self.one[: len(block)] @ block
        return self.one[: self.k] @ wide.reshape(self.k, self.ch) if self.k > 1 else wide

    def moments(self, found: list[tuple[int, Array, Array]]) -> tuple[Array, Array]:
        """Mean and variance of each channel in float64, from blocks of rows: how many there are,
        their mean, and the sum of the squares around it (Chan, Golub & LeVeque, "Updating formulae
        and a pairwise algorithm for computing sample variances", 1979)."""
        rows = np.array([[count] for count, _, _ in found], np.float64)
        centres = np.stack([centre for _, centre, _ in found]).astype(np.float64)
        squares = np.stack([square for _, _, square in found]).astype(np.float64)
        mean = (rows * centres).sum(axis=0) / self.m
        squares += rows * (centres - mean) ** 2
        return mean, squares.sum(axis=0) / self.m


class CpuNormalization(ReferenceNormalization):
    """Batch normalisation, and standardisation over the last axes, in float32 and float64."""

    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]:
        if X.dtype.itemsize < 4 or not X.size:
            return super().batchnorm_forward(X, scaler, intercept, eps)
        cut = _Columns(X.shape[0], X.shape[1], X.dtype)
        Y, X_hat = (workspace.empty(X.shape, X.dtype) for _ in range(2))
        x, x_hat, y = cut.wide(X), cut.wide(X_hat), cut.wide(Y)

        found: list[list[tuple[int, Array, Array]]] = [[] for _ in cut.parts]

        def add_up(i: int, part: slice) -> None:
            """Each block by itself, while it is in the cache: its mean, the squares around it."""
            for block in blocks(part, cut.step):
                rows = x[block]
                count, centred = len(rows) * cut.k, cut.free[i][: len(rows)]
                centre = cut.total(rows)
                np.divide(centre, count, out=centre)
                np.subtract(rows, cut.tiled(centre), out=centred)
                np.multiply(centred, centred, out=centred)
                found[i].append((count, centre, cut.total(centred)))

        _run(add_up, cut.parts, cut.width)
        mean, exact = cut.moments([block for share in found for block in share])
        inv_std = (1.0 / np.sqrt(exact + eps)).astype(X.dtype)
        middle = mean.astype(X.dtype)
        centre, scale = cut.tiled(middle), cut.tiled(inv_std)
        gain, shift = cut.tiled(scaler), cut.tiled(intercept)

        def normalize(i: int, part: slice) -> None:
            for block in blocks(part, cut.step):
                np.subtract(x[block], centre, out=x_hat[block])
                np.multiply(x_hat[block], scale, out=x_hat[block])
                np.multiply(x_hat[block], gain, out=y[block])
                np.add(y[block], shift, out=y[block])

        _run(normalize, cut.parts, cut.width)
        return Y, X_hat, middle, exact.astype(X.dtype), inv_std

    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        # mean and variance depend on every row, hence the two averages taken out of dY
        if dY.dtype.itemsize < 4 or not dY.size:
            return super().batchnorm_backward(dY, X_hat, scaler, inv_std)
        cut = _Columns(dY.shape[0], dY.shape[1], dY.dtype)
        dX = workspace.empty(dY.shape, dY.dtype)
        dy, x_hat, dx = cut.wide(dY), cut.wide(X_hat), cut.wide(dX)
        sums = cut.zeros(2)

        def add_up(i: int, part: slice) -> None:
            for block in blocks(part, cut.step):
                products = cut.free[i][: block.stop - block.start]
                sums[i][0] += cut.total(dy[block])
                np.multiply(dy[block], x_hat[block], out=products)
                sums[i][1] += cut.total(products)

        _run(add_up, cut.parts, cut.width)
        for more in sums[1:]:
            sums[0] += more
        dintercept, dscaler = sums[0]
        # dX = factor * dY + slope * X_hat + shift
        factor = scaler * inv_std
        scale = cut.tiled(factor)
        slope, shift = (cut.tiled(-factor * total / cut.m) for total in (dscaler, dintercept))

        def put_together(i: int, part: slice) -> None:
            for block in blocks(part, cut.step):
                free, out = cut.free[i][: block.stop - block.start], dx[block]
                np.multiply(x_hat[block], slope, out=free)
                np.add(free, shift, out=free)
                np.multiply(dy[block], scale, out=out)
                np.add(out, free, out=out)

        _run(put_together, cut.parts, cut.width)
        return dX, dscaler.astype(dY.dtype), dintercept.astype(dY.dtype)

    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]:
        length = _row_length(X, axes)
        if length == 0:
            return super().standardize_forward(X, axes, eps)
        X_hat = workspace.empty(X.shape, X.dtype)
        x, x_hat = X.reshape(-1, length), X_hat.reshape(-1, length)
        inv_std = np.empty((len(x), 1), X.dtype)
        cut, small = _Rows(x), X.dtype.type(eps)

        def work(i: int, part: slice) -> None:
            for block, _ in cut.each(i, part):
                _standardize(x[block], x_hat[block], inv_std[block], cut.average, small)

        _run(work, cut.parts, length)
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(X.shape))
        return X_hat, inv_std.reshape(kept)

    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        length = _row_length(X, (1,))
        if length == 0:
            return super().layernorm_forward(X, scaler, intercept, eps)
        Y, X_hat = (workspace.empty(X.shape, X.dtype) for _ in range(2))
        inv_std = np.empty((len(X), 1), X.dtype)
        cut, small = _Rows(X), X.dtype.type(eps)
        gain, shift = cut.tiled(scaler), cut.tiled(intercept)

        def work(i: int, part: slice) -> None:
            for block, _ in cut.each(i, part):
                _standardize(X[block], X_hat[block], inv_std[block], cut.average, small)
                y = cut.wide(Y[block])
                np.multiply(cut.wide(X_hat[block]), gain, out=y)
                np.add(y, shift, out=y)

        _run(work, cut.parts, length)
        return Y, X_hat, inv_std

    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        # As `standardize_backward` of dX_hat = dY * scaler, whose means are products with scaler.
        length = _row_length(dY, (1,))
        if length == 0:
            return super().layernorm_backward(dY, X_hat, scaler, inv_std)
        dX = workspace.empty(dY.shape, dY.dtype)
        cut = _Rows(dY)
        gain, weights = cut.tiled(scaler), cut.average * scaler[:, None]
        one, sums = ones(cut.step, dY.dtype), [np.zeros((2, length)) for _ in cut.parts]

        def work(i: int, part: slice) -> None:
            dscaler, dintercept = sums[i]
            for block, products in cut.each(i, part):
                d, x, out = dY[block], X_hat[block], dX[block]
                np.multiply(d, x, out=products)
                dscaler += one[: len(d)] @ products
                dintercept += one[: len(d)] @ d
                slope = products @ weights
                np.multiply(cut.wide(d), gain, out=cut.wide(out))
                np.subtract(out, d @ weights, out=out)
                np.multiply(x, slope, out=products)
                np.subtract(out, products, out=out)
                np.multiply(out, inv_std[block], out=out)

        _run(work, cut.parts, length)
        for more in sums[1:]:
            sums[0] += more
        dscaler, dintercept = sums[0].astype(dY.dtype)
        return dX, dscaler, dintercept

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        # mean and variance depend on every element, hence the two averages taken out
        length = _row_length(X_hat, axes)
        if length == 0:
            return super().standardize_backward(dX_hat, X_hat, inv_std, axes)
        dX = workspace.empty(X_hat.shape, X_hat.dtype)
        dx_hat, x_hat, dx = (a.reshape(-1, length) for a in (dX_hat, X_hat, dX))
        scale = inv_std.reshape(-1, 1)
        cut = _Rows(x_hat)

        def work(i: int, part: slice) -> None:
            for block, products in cut.each(i, part):
                d, x, out = dx_hat[block], x_hat[block], dx[block]
                np.multiply(d, x, out=products)
                slope = products @ cut.average
                np.subtract(d, d @ cut.average, out=out)
                np.multiply(x, slope, out=products)
                np.subtract(out, products, out=out)
                np.multiply(out, scale[block], out=out)

        _run(work, cut.parts, length)
        return dX


def _standardize(x: Array, x_hat: Array, inv_std: Array, average: Array, eps: Array) -> None:
    """Rows of x into x_hat and inv_std."""
    np.subtract(x, x @ average, out=x_hat)
    np.vecdot(x_hat, x_hat, out=inv_std[:, 0])
    np.multiply(inv_std, average[0], out=inv_std)
    np.add(inv_std, eps, out=inv_std)
    np.sqrt(inv_std, out=inv_std)
    np.divide(x.dtype.type(1), inv_std, out=inv_std)
    np.multiply(x_hat, inv_std, out=x_hat)


def _row_length(X: Array, axes: tuple[int, ...]) -> int:
    """The length of the rows if `axes` are the last ones and rows suit this way; else 0."""
    length = math.prod(X.shape[axis] for axis in axes)
    last = axes == tuple(range(X.ndim - len(axes), X.ndim))
    return length if last and X.dtype.itemsize >= 4 and X.size and length <= _LONGEST else 0


class _Rows:
    """Rows of (m, length) cut for threads and cache, with what all of them need."""

    def __init__(self, rows: Array) -> None:
        m, self.length = rows.shape
        self.k = fold(m, self.length)  # rows seen as one where all have the same factors
        self.step = max(1, BLOCK // (self.k * self.length)) * self.k
        self.parts = [
            slice(self.k * part.start, self.k * part.stop)
            for part in row_shares(m // self.k, self.k * self.length, 6)
        ]
        self._free = [
            workspace.empty((min(self.step, p.stop - p.start), self.length), rows.dtype)
            for p in self.parts
        ]
        self.average = np.full((self.length, 1), 1.0 / self.length, rows.dtype)

    def each(self, i: int, part: slice) -> Iterator[tuple[slice, Array]]:
        """Blocks of a share, each with an array of its size to work in."""
        for block in blocks(part, self.step):
            yield block, self._free[i][: block.stop - block.start]

    def wide(self, block: Array) -> Array:
        return block.reshape(-1, self.k * self.length)

    def tiled(self, vector: Array) -> Array:
        return repeated(vector, self.k)
