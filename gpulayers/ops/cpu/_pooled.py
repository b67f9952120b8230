"""Convolution, bias, ReLU and 2x2 max pooling in one pass, for images of few channels.

Few channels make short rows, which NumPy's passes and BLAS are slow on. So the examples of the
batch are the last axis here, and every pass runs along all of them and a row of the image:

- One column of the product's right side is what a window of 2x2 outputs sees, and the kernel
  stands in the left side four times, shifted (a banded matrix): the four outputs that are pooled
  come out as four contiguous blocks. Their maximum is three passes, and bias and ReLU run on a
  quarter of the outputs. It costs (fr + 1) (fc + 1) / (fr fc) times the multiplications.
- The images are kept split by the parity of row and column, so that what the windows see of one
  tap is one block of them.
- All memory is taken once, for batches of one size.

The gradient goes back the same way. Ties in a window go to the first of the row-major order. A zero
of the band times an infinity would be NaN in outputs that do not see it: where a number is not
finite nothing is computed, and the caller takes another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.cpu._blocks import all_finite, blocks
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares, shares

_BLOCK = 64  # examples that are computed at a time
_FEWEST = 8  # examples that are worth a thread
_WIDEST = 192  # numbers that a window sees from which unpooled convolution is as fast

Layer = tuple[Shape4, Window]  # the shape of W, and where it is applied
Weights = Sequence[tuple[Array, Array]]  # W and b of each layer
Gradients = list[tuple[Array, Array]]  # dW and db of each layer
Call = partial[Any]


def serves(layers: Sequence[Layer], x_shape: Shape4) -> bool:
    """Whether a chain of convolutions, each with ReLU and 2x2 pooling, is computed faster so."""
    rows, cols = x_shape[1:3]
    for (fr, fc, ch, _), window in layers:
        rows, cols = (n // 2 for n in window.output_size(rows, cols))
        if window.stride != (1, 1) or window.dilation != (1, 1) or fr * fc * ch > _WIDEST:
            return False
        if min(rows, cols) < 1:
            return False
    return x_shape[0] > 0


class _Stage:
    """One convolution with its pooling, for `count` examples of `rows` x `cols` pixels.

    The passes are lists of calls with all their views made beforehand: threads meet at Python's
    lock, so they must not hold it for long between one call and the next.
    """

    def __init__(self, count: int, rows: int, cols: int, layer: Layer, dtype: np.dtype) -> None:
        (fr, fc, ch, out_ch), window = layer
        self.count, self.ch, self.out_ch, self.kernel = count, ch, out_ch, (fr, fc)
        out_rows, out_cols = (n // 2 for n in window.output_size(rows, cols))
        self.out = (out_ch, out_rows, out_cols, count)
        high, wide = fr // 2 + 1, fc // 2 + 1  # pairs of rows and columns that a tile sees
        grid = (out_rows + high - 1, out_cols + wide - 1)
        self.images = workspace.zeros((2, 2, ch, *grid, count), dtype)
        self.places = list(_places(rows, cols, window.pad, grid))
        top, _, left, _ = window.pad
        # whether there are pixels that no window sees
        self.unseen = 2 * grid[0] - top < rows or 2 * grid[1] - left < cols

        taps, windows = 4 * high * wide * ch, out_rows * out_cols * count
        self.seen_shape = (high, 2, wide, 2, ch, out_rows, out_cols * count)
        self.columns = workspace.empty((taps, windows), dtype)
        self.band = workspace.zeros((2 * high, 2 * wide, ch, 2, 2, out_ch), dtype)
        self.weights = self.band.reshape(taps, 4 * out_ch)
        self.band_grad = workspace.empty(self.weights.shape, dtype)
        self.shifts = [
            (slice(i, i + fr), slice(j, j + fc), slice(None), i, j)
            for i in range(2)
            for j in range(2)
        ]
        # by the place in the 2x2 window
        self.outputs = workspace.empty((2, 2, out_ch * windows), dtype)
        self.pooled = workspace.empty((out_ch, windows), dtype)
        self.grad = workspace.zeros((out_ch, windows), dtype)  # what no window sees stays zero
        self.dW = workspace.empty((fr, fc, ch, out_ch), dtype)
        self.db = np.empty(out_ch, dtype)
        self.bias = np.empty((out_ch, 1), dtype)
        self.spread: Array | None = None  # made when it is needed
        self._plan()
        self._input_grad: list[Call] = []

    def _plan(self) -> None:
        size, dtype = self.pooled.size, self.pooled.dtype
        right_won = workspace.empty((2, size), np.bool_)
        lower_won, above = (workspace.empty((size,), np.bool_) for _ in range(2))
        rows, zeros = workspace.empty((2, size), dtype), workspace.zeros((size,), dtype)
        ones = np.ones(self.columns.shape[1], dtype)
        by_pr, by_pc, by_ch, by_row, by_col, by_n = self.images.strides
        strides = (by_row, by_pr, by_col, by_pc, by_ch, by_row, by_n)
        seen = as_strided(self.images, self.seen_shape, strides)
        pooled, grad, outputs = self.pooled.reshape(-1), self.grad.reshape(-1), self.outputs
        products = outputs.reshape(4 * self.out_ch, -1)
        left, right, upper, lower = outputs[:, 0], outputs[:, 1], rows[0], rows[1]
        self.forward: list[Call] = [
            partial(np.copyto, self.columns.reshape(self.seen_shape), seen),
            partial(np.matmul, self.weights.T, self.columns, out=products),
            partial(np.greater, right, left, out=right_won),
            partial(np.maximum, left, right, out=rows),
            partial(np.greater, lower, upper, out=lower_won),
            partial(np.maximum, upper, lower, out=pooled),
            partial(np.add, self.pooled, self.bias, out=self.pooled),
            partial(np.maximum, pooled, zeros, out=pooled),
        ]
        parts = [self.band_grad.reshape(self.band.shape)[shift] for shift in self.shifts]
        # A gradient is split by masks: the part that goes to the second of two, and the rest.
        self.backward: list[Call] = [
            partial(np.greater, pooled, zeros, out=above),
            partial(np.multiply, grad, above, out=grad),
            partial(np.multiply, grad, lower_won, out=lower),
            partial(np.subtract, grad, lower, out=upper),
            partial(np.multiply, rows, right_won, out=right),
            partial(np.subtract, rows, right, out=left),
            partial(np.matmul, self.columns, products.T, out=self.band_grad),
            partial(np.add, parts[0], parts[1], out=self.dW),
            partial(np.add, self.dW, parts[2], out=self.dW),
            partial(np.add, self.dW, parts[3], out=self.dW),
            partial(np.matmul, self.grad, ones, out=self.db),
        ]

    def set_weights(self, W: Array, b: Array) -> None:
        for shift in self.shifts:
            self.band[shift] = W
        self.bias[:, 0] = b

    def load(self, X: Array) -> list[Call]:
        """The calls that take the images `X` (ch, rows, cols, count), any strides."""
        return [
            partial(np.copyto, self.images[pr, pc, :, *place], X[:, *pixels])
            for pr, pc, pixels, place in self.places
        ]

    def input_grad(self, into: Array) -> list[Call]:
        """The calls that after `backward` write dX into `into` (ch, rows, cols, count)."""
        if not self._input_grad:
            self.spread = spread = workspace.empty(self.images.shape, self.images.dtype)
            columns = self.columns.reshape(self.seen_shape)  # what they hold is done with
            flat, (_, rows, cols, count) = spread.reshape(*spread.shape[:4], -1), self.out
            products = self.outputs.reshape(4 * self.out_ch, -1)
            self._input_grad = [
                partial(np.matmul, self.weights, products, out=self.columns),
                partial(spread.fill, 0),
            ]
            for i in range(columns.shape[0]):
                for j in range(columns.shape[2]):
                    tap = flat[:, :, :, i : i + rows, j * count : (j + cols) * count]
                    self._input_grad.append(partial(np.add, tap, columns[i, :, j], out=tap))
        spread: Any = self.spread
        return self._input_grad + [
            partial(np.copyto, into[:, *pixels], spread[pr, pc, :, *place])
            for pr, pc, pixels, place in self.places
        ]


def _places(
    rows: int, cols: int, pad: tuple[int, int, int, int], grid: tuple[int, int]
) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
    """For each parity of row and column in the padded image: which pixels have it, and where in
    the grid they go. Pixels beyond the grid, that no window sees, are left out."""
    for pr in range(2):
        rows_of, in_rows = _line(rows, pad[0], pr, grid[0])
        for pc in range(2):
            cols_of, in_cols = _line(cols, pad[2], pc, grid[1])
            yield pr, pc, (rows_of, cols_of), (in_rows, in_cols)


def _line(size: int, pad: int, parity: int, length: int) -> tuple[slice, slice]:
    first = (parity - pad) % 2
    place = (first + pad) // 2
    count = max(0, min(len(range(first, size, 2)), length - place))
    return slice(first, first + 2 * count, 2), slice(place, place + count)


class _Chain:
    """The stages one after the other, for one share of a batch."""

    def __init__(
        self, layers: Sequence[Layer], count: int, x_shape: Shape4, dtype: np.dtype
    ) -> None:
        rows, cols = x_shape[1:3]
        self.stages: list[_Stage] = []
        self.between: list[list[Call]] = []  # the calls that hand a stage's outputs on
        self.back: list[list[Call]] = []  # and the next one's gradient to it
        for layer in layers:
            stage = _Stage(count, rows, cols, layer, dtype)
            if self.stages:
                last = self.stages[-1]
                self.between.append(stage.load(last.pooled.reshape(last.out)))
                self.back.append(stage.input_grad(last.grad.reshape(last.out)))
            self.stages.append(stage)
            rows, cols = stage.out[1:3]

    def forward(self, X: Array, weights: Weights, Y: Array) -> bool:
        """Write the outputs of `X` into `Y`; False if a number is not finite."""
        if not all_finite(X):
            return False
        _run(self.stages[0].load(X.transpose(3, 1, 2, 0)))
        for i, (stage, (W, b)) in enumerate(zip(self.stages, weights, strict=True)):
            if i:
                _run(self.between[i - 1])
            stage.set_weights(W, b)
            _run(stage.forward)
            if not all_finite(stage.pooled):
                return False
        last = self.stages[-1]
        np.copyto(Y, last.pooled.reshape(last.out).transpose(3, 1, 2, 0))
        return True

    def backward(self, dY: Array, dX: Array | None) -> bool:
        """Leave the parameters' gradients in the stages, that of the input in `dX`."""
        last = self.stages[-1]
        np.copyto(last.grad.reshape(last.out), dY.transpose(3, 1, 2, 0))
        for i in range(len(self.stages) - 1, -1, -1):
            stage = self.stages[i]
            if (i or dX is not None) and not all_finite(stage.grad):
                return False
            _run(stage.backward)
            if i:
                _run(self.back[i - 1])
            elif dX is not None:
                if stage.unseen:
                    dX.fill(0)
                _run(stage.input_grad(dX.transpose(3, 1, 2, 0)))
        return True


def _run(calls: list[Call]) -> None:
    for call in calls:
        call()


class PooledConvolutions:
    """A chain of convolutions, each with bias, ReLU and 2x2 max pooling, for batches of one size.

    Parameters
    ----------
    layers : pairs (shape of W, Window), of which `serves` says that they fit
    x_shape : (n, rows, cols, ch)
    dtype : float32 or float64
    """

    def __init__(self, layers: Sequence[Layer], x_shape: Shape4, dtype: np.dtype) -> None:
        n = x_shape[0]
        self.shares = shares(n, _FEWEST)
        self.parts: list[list[slice]] = []
        self.chains: list[list[_Chain]] = []
        for share in self.shares:
            cuts = -(-(share.stop - share.start) // _BLOCK)
            parts = list(blocks(share, -(-(share.stop - share.start) // cuts)))
            self.parts.append(parts)
            self.chains.append([_Chain(layers, p.stop - p.start, x_shape, dtype) for p in parts])
        self.x_shape, self.dtype = x_shape, dtype
        out_ch, rows, cols, _ = self.chains[0][0].stages[-1].out
        self.out_shape = (n, rows, cols, out_ch)

    def forward(self, X: Array, weights: Weights) -> Array | None:
        """Return the outputs (n, rows, cols, out_ch); None if there is a number not finite."""
        Y = workspace.empty(self.out_shape, self.dtype)
        done = [True] * len(self.shares)

        def work(i: int, _: slice) -> None:
            for part, chain in zip(self.parts[i], self.chains[i], strict=True):
                done[i] &= chain.forward(X[part], weights, Y[part])

        run_shares(work, self.shares)
        return Y if all(done) else None

    def backward(self, dY: Array, inputs: bool) -> tuple[Gradients, Array | None] | None:
        """Return dW and db of each layer, and dX if `inputs`; None as `forward`.

        Once after each `forward`, whose columns it writes over.
        """
        dX = workspace.empty(self.x_shape, self.dtype) if inputs else None
        done = [True] * len(self.shares)

        def work(i: int, _: slice) -> None:
            for part, chain in zip(self.parts[i], self.chains[i], strict=True):
                done[i] &= chain.backward(dY[part], None if dX is None else dX[part])

        run_shares(work, self.shares)
        if not all(done):
            return None
        first, *others = (chain for chains in self.chains for chain in chains)
        for other in others:
            for stage, more in zip(first.stages, other.stages, strict=True):
                stage.dW += more.dW
                stage.db += more.db
        gradients = [(self._kept(stage.dW), self._kept(stage.db)) for stage in first.stages]
        return gradients, dX

    def _kept(self, array: Array) -> Array:
        """A copy that the next batch does not write over."""
        copy = workspace.empty(array.shape, self.dtype)
        copy[...] = array
        return copy
