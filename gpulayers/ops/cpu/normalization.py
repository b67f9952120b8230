"""Normalisation on the CPU: blocks in the cache, sums as products with ones, threads over rows.

Mean and variance take two passes over the data: mean(x**2) - mean(x)**2 would cancel, except where
the mean is no larger than the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu import _blas
from gpulayers.ops.cpu._blocks import (
    averaging,
    block_lengths,
    blocks,
    fold,
    ones,
    repeated,
    row_by_row,
    row_shares,
)
from gpulayers.ops.reference.normalization import ReferenceNormalization
from gpulayers.threads import Work, run_shares, shares_at_most

BLOCK = (
    1 << 18
)  # elements that a pass takes at a time: memory is slow, and calls wait for one another
_ALONE = 1 << 13  # numbers of a matrix whose product with a vector BLAS leaves to one thread
_ALIKE = 2.0**-20  # variance by squared mean below which a row's numbers are all but the same
_LONGEST = 1 << 14  # numbers of a row whose float32 sum by BLAS is as exact as NumPy's


def _run(work: Work, parts: list[slice], width: int) -> None:
    """`run_shares`, for work on rows of `width` numbers."""
    with row_by_row(width):
        run_shares(work, parts, blas=parts[-1].stop * width > _ALONE)


class _Columns:
    """Columns of (m, ch) added up block by block; the sums of the blocks in float64.

    Several rows are seen as one, so that it is long enough for NumPy's inner loop.
    """

    def __init__(self, m: int, ch: int, dtype: np.dtype) -> None:
        self.m, self.ch, self.dtype = m, ch, dtype
        self.k = fold(m, ch)
        self.rows, self.width = m // self.k, self.k * ch
        self.parts = row_shares(self.rows, self.width, 4)
        self.steps = block_lengths(self.parts, max(1, BLOCK // self.width))
        self.one = ones(max(*self.steps, self.k), dtype)
        self.free = [workspace.empty((step, self.width), dtype) for step in self.steps]

    def wide(self, array: Array) -> Array:
        return array.reshape(self.rows, self.width)

    def tiled(self, vector: Array) -> Array:
        return repeated(vector.astype(self.dtype, copy=False), self.k)

    def zeros(self, count: int) -> list[Array]:
        """Zeros for `count` sums of each share."""
        return [np.zeros((count, self.ch)) for _ in self.parts]

    def total(self, block: Array) -> Array:
        """The sums (ch,) of a block of wide rows."""
        return self._narrow(self.one[: len(block)] @ block)

    def total_of_products(self, a: Array, b: Array) -> Array:
        """The sums (ch,) of the products of two blocks, which are not kept."""
        return self._narrow(np.einsum("ij,ij->j", a, b))

    def _narrow(self, wide: Array) -> Array:
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
            for block in blocks(part, cut.steps[i]):
                rows = x[block]
                count, centre = len(rows) * cut.k, cut.total(rows)
                np.divide(centre, count, out=centre)
                of_mean = count * centre * centre
                # a difference that loses one bit at most, where the mean is small
                square = cut.total_of_products(rows, rows) - of_mean
                if not (of_mean <= square).all():
                    centred = cut.free[i][: len(rows)]
                    np.subtract(rows, cut.tiled(centre), out=centred)
                    square = cut.total_of_products(centred, centred)
                found[i].append((count, centre, square))

        _run(add_up, cut.parts, cut.width)
        mean, exact = cut.moments([block for share in found for block in share])
        inv_std = (1.0 / np.sqrt(exact + eps)).astype(X.dtype)
        middle = mean.astype(X.dtype)
        centre, scale = cut.tiled(middle), cut.tiled(inv_std)
        gain, shift = cut.tiled(scaler), cut.tiled(intercept)

        def normalize(i: int, part: slice) -> None:
            for block in blocks(part, cut.steps[i]):
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
            for block in blocks(part, cut.steps[i]):
                sums[i][0] += cut.total(dy[block])
                sums[i][1] += cut.total_of_products(dy[block], x_hat[block])

        _run(add_up, cut.parts, cut.width)
        for more in sums[1:]:
            sums[0] += more
        dintercept, dscaler = sums[0]
        # dX = factor * dY + slope * X_hat + shift
        factor = scaler * inv_std
        scale = cut.tiled(factor)
        slope, shift = (cut.tiled(-factor * total / cut.m) for total in (dscaler, dintercept))

        def put_together(i: int, part: slice) -> None:
            for block in blocks(part, cut.steps[i]):
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
        x = _as_rows(X, axes)
        if x is None:
            return super().standardize_forward(X, axes, eps)
        X_hat = workspace.empty(X.shape, X.dtype)
        x_hat = X_hat.reshape(x.shape)
        inv_std = np.empty((len(x), 1), X.dtype)
        cut, small = _Rows(x_hat), X.dtype.type(eps)

        def work(i: int, part: slice) -> None:
            for block, _ in cut.each(i, part):
                cut.standardize(i, block, x[block], x_hat[block], inv_std[block], small)

        _run(work, cut.parts, cut.length)
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(X.shape))
        return X_hat, inv_std.reshape(kept)

    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        length = _row_length(X)
        if length == 0:
            return super().layernorm_forward(X, scaler, intercept, eps)
        Y, X_hat = (workspace.empty(X.shape, X.dtype) for _ in range(2))
        inv_std = np.empty((len(X), 1), X.dtype)
        cut, small = _Rows(X_hat), X.dtype.type(eps)
        gain, shift = cut.tiled(scaler), cut.tiled(intercept)

        def work(i: int, part: slice) -> None:
            for block, _ in cut.each(i, part):
                cut.standardize(i, block, X[block], X_hat[block], inv_std[block], small)
                y = cut.wide(Y[block])
                np.multiply(cut.wide(X_hat[block]), gain, out=y)
                np.add(y, shift, out=y)

        _run(work, cut.parts, cut.length)
        return Y, X_hat, inv_std

    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        # As `standardize_backward` of dX_hat = dY * scaler.
        length = _row_length(dY)
        if length == 0:
            return super().layernorm_backward(dY, X_hat, scaler, inv_std)
        dX = workspace.empty(dY.shape, dY.dtype)
        cut = _Rows(dX)
        gain, one = cut.tiled(scaler), ones(max(cut.steps), dY.dtype)
        sums = [np.zeros((2, length)) for _ in cut.parts]

        def work(i: int, part: slice) -> None:
            dscaler, dintercept = sums[i]
            for block, free in cut.each(i, part):
                d, x, out = dY[block], X_hat[block], dX[block]
                dscaler += np.einsum("ij,ij->j", d, x)
                dintercept += one[: len(d)] @ d
                np.multiply(cut.wide(d), gain, out=cut.wide(out))
                cut.averages(i, out, x)
                cut.carry_back(i, block, out, x, inv_std[block], free)

        _run(work, cut.parts, cut.length)
        for more in sums[1:]:
            sums[0] += more
        dscaler, dintercept = sums[0].astype(dY.dtype)
        return dX, dscaler, dintercept

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        # mean and variance depend on every element, hence the two averages taken out
        x_hat = _as_rows(X_hat, axes)
        if x_hat is None:
            return super().standardize_backward(dX_hat, X_hat, inv_std, axes)
        dX = workspace.empty(X_hat.shape, X_hat.dtype)
        dx_hat, dx = dX_hat.reshape(x_hat.shape), dX.reshape(x_hat.shape)
        scale = inv_std.reshape(-1, 1)
        cut = _Rows(dx)

        def work(i: int, part: slice) -> None:
            for block, free in cut.each(i, part):
                d, x = dx_hat[block], x_hat[block]
                cut.averages(i, d, x)
                cut.carry_back(i, block, d, x, scale[block], free)

        _run(work, cut.parts, cut.length)
        return dX


def _row_length(rows: Array) -> int:
    """The length of the rows of a matrix if they suit this way; else 0."""
    length = rows.shape[1]
    return length if rows.size and length <= _LONGEST and rows.dtype.itemsize >= 4 else 0


def _as_rows(X: Array, axes: tuple[int, ...]) -> Array | None:
    """X as rows of what `axes` hold, if these are the last ones and rows suit this way."""
    if not X.size or axes != tuple(range(X.ndim - len(axes), X.ndim)):
        return None
    rows = X.reshape(-1, math.prod(X.shape[axis] for axis in axes))
    return rows if _row_length(rows) else None


@lru_cache(maxsize=256)
def _cut(m: int, length: int, threads: int) -> tuple[int, list[slice], list[int]]:
    """How rows are cut for `threads` threads: how many are seen as one where all have the same
    factors, the shares, and how many rows of its share each thread takes at a time."""
    k = fold(m, length)
    parts = [slice(k * part.start, k * part.stop) for part in row_shares(m // k, k * length, 6)]
    return k, parts, block_lengths(parts, max(1, BLOCK // length), k)


class _Rows:
    """Rows of (m, length) cut for threads and cache, with what all of them need; `rows` is the
    array that the result goes to."""

    def __init__(self, rows: Array) -> None:
        m, self.length = rows.shape
        self._rows = rows
        self.k, self.parts, self.steps = _cut(m, self.length, shares_at_most())
        free = (max(self.steps), self.length)
        self._free = [workspace.empty(free, rows.dtype) for _ in self.parts]
        self._column, self._of_products = (
            [np.empty((free[0], 1), rows.dtype) for _ in self.parts] for _ in range(2)
        )
        self.average = averaging(self.length, rows.dtype)
        self._one = ones(self.length, rows.dtype)
        self._blas = _blas.serves([rows], [])
        if self._blas is not None:
            self._places = [_blas.address(array) for array in (rows, self._one, *self._column)]
            self._row_bytes = self.length * rows.itemsize

    def each(self, i: int, part: slice) -> Iterator[tuple[slice, Array]]:
        """Blocks of a share, each with an array of its size to work in."""
        for block in blocks(part, self.steps[i]):
            yield block, self._free[i][: block.stop - block.start]

    def wide(self, block: Array) -> Array:
        return block.reshape(-1, self.k * self.length)

    def tiled(self, vector: Array) -> Array:
        return repeated(vector, self.k)

    def columns(self, i: int, m: int) -> tuple[Array, Array]:
        """A share's two columns (m, 1): what is taken off its rows, and what `carry_back`
        multiplies x_hat by."""
        return self._column[i][:m], self._of_products[i][:m]

    def _less_column(self, i: int, block: slice, rows: Array, out: Array) -> None:
        """out = rows - the share's column of numbers; `out`, which may be `rows`, is a block of
        the result."""
        m = len(rows)
        if self._blas is None:
            np.subtract(rows, self._column[i][:m], out=out)
            return
        if out is not rows:  # a copy and BLAS's pass take less than a subtraction row by row
            np.copyto(out, rows)
        result, one, column = self._places[0], self._places[1], self._places[2 + i]
        result += block.start * self._row_bytes
        n = self.length
        self._blas.ger(_blas.ROWS, m, n, -1.0, column, 1, one, 1, result, n)

    def _variance(self, x_hat: Array, out: Array) -> None:
        np.vecdot(x_hat, x_hat, out=out[:, 0])
        np.multiply(out, self.average[0], out=out)

    def standardize(
        self, i: int, block: slice, x: Array, x_hat: Array, inv_std: Array, eps: Array
    ) -> None:
        """A block of rows of x into x_hat and inv_std."""
        mean, bound = self.columns(i, len(x))
        np.matmul(x, self.average, out=mean)
        self._less_column(i, block, x, out=x_hat)
        self._variance(x_hat, inv_std)
        np.multiply(mean, mean, out=bound)
        np.multiply(bound, _ALIKE, out=bound)
        if np.less(inv_std, bound).any():  # what the mean is off by is not small any more
            np.matmul(x_hat, self.average, out=mean)
            self._less_column(i, block, x_hat, out=x_hat)
            self._variance(x_hat, inv_std)
        np.add(inv_std, eps, out=inv_std)
        np.sqrt(inv_std, out=inv_std)
        np.divide(x.dtype.type(1), inv_std, out=inv_std)
        np.multiply(x_hat, inv_std, out=x_hat)

    def averages(self, i: int, d: Array, x_hat: Array) -> None:
        """Into the share's columns: mean(d) and mean(d * x_hat) of each row."""
        mean, of_products = self.columns(i, len(d))
        np.matmul(d, self.average, out=mean)
        np.vecdot(d, x_hat, out=of_products[:, 0])
        np.multiply(of_products, self.average[0], out=of_products)

    def carry_back(
        self, i: int, block: slice, d: Array, x_hat: Array, inv_std: Array, free: Array
    ) -> None:
        """inv_std * (d - mean(d) - x_hat * mean(d * x_hat)) into the result, where `d` may be; the
        averages are those in the share's columns."""
        out = self._rows[block]
        np.multiply(x_hat, self._of_products[i][: len(d)], out=free)
        self._less_column(i, block, d, out=out)
        np.subtract(out, free, out=out)
        np.multiply(out, inv_std, out=out)
