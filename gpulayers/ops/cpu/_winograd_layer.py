"""The products of a 3x3 convolution by one of Winograd's algorithms, `_winograd` or `_winograd2d`.

The examples are cut into one share for each thread, and a share into blocks, which take turns in
its buffers; the calling thread makes them, since a workspace belongs to one thread.

dX is the convolution of dZ with the kernel turned by 180 degrees. dW, turned, is that convolution's
weight gradient: what it reads is dZ, and what its outputs are multiplied by is X. So all gradients
together take B^T dZ once, and of X only the cheaper transform of an output gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import all_finite, blocks, ones, relu, row_by_row
from gpulayers.ops.cpu._columns import example_shares
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares


class _Cut:
    """Shares of the examples and their blocks, all of one size but for the last ones."""

    def __init__(self, way: Any, X: Array, out_ch: int, window: Window) -> None:
        n, rows, cols, ch = X.shape
        out_rows, out_cols = window.output_size(rows, cols)
        self.parts = example_shares(n, out_rows * out_cols * out_ch * 9 * ch // 2)
        one = way.Geometry(1, window, rows, cols)
        most = max(1, way.BLOCK_BYTES // (4 * (one.numbers(ch) + one.numbers(out_ch))))
        count = max(part.stop - part.start for part in self.parts)
        self.step = -(-count // -(-count // most))
        counts = {b.stop - b.start for part in self.parts for b in blocks(part, self.step)}
        self.geometry = {count: way.Geometry(count, window, rows, cols) for count in counts}
        self.full = self.geometry[max(counts)]

    def blocks(self, part: slice) -> Iterator[tuple[slice, Any]]:
        for block in blocks(part, self.step):
            yield block, self.geometry[block.stop - block.start]


def forward(
    way: Any, X: Array, W: Array, b: Array | None, window: Window, rectify: bool
) -> Array | None:
    """Z = X * W + b with max(Z, 0) if `rectify`; None if X or W is not finite.

    An infinity would make NaN of all outputs of its tile, also of those that do not see it.
    """
    if not all_finite(W):
        return None
    out_ch, out_cols = W.shape[3], window.output_size(*X.shape[1:3])[1]
    Z = workspace.empty((len(X), *window.output_size(*X.shape[1:3]), out_ch), X.dtype)
    cut = _Cut(way, X, out_ch, window)
    buffers = [(way.Input(cut.full, X), way.Output(cut.full, Z, b)) for _ in cut.parts]
    finite = [True] * len(cut.parts)
    weights = way.transformed(W)

    def work(i: int, part: slice) -> None:
        to_points, from_points = buffers[i]
        for block, g in cut.blocks(part):
            from_points(to_points(block, g), weights, block, g)
            if not all_finite(to_points.witness):
                finite[i] = False
                return
            if rectify:
                relu(Z[block], Z[block])

    # the direct way will warn
    with np.errstate(over="ignore", invalid="ignore"), row_by_row(out_cols * out_ch):
        run_shares(work, cut.parts)
    return Z if all(finite) else None


def weight_grad(way: Any, X: Array, dZ: Array, window: Window) -> tuple[Array, Array] | None:
    """(dW, db); None if X or dZ is not finite."""
    out_ch = dZ.shape[3]
    cut = _Cut(way, X, out_ch, window)
    buffers = [(way.Input(cut.full, X), way.Gradient(cut.full, dZ)) for _ in cut.parts]
    sums = _Sums(way, buffers, cut, dZ)

    def work(i: int, part: slice) -> None:
        to_points, of_outputs = buffers[i]
        for block, g in cut.blocks(part):
            sums.add(i, to_points(block, g), of_outputs(block, g), block)

    with np.errstate(over="ignore", invalid="ignore"):  # the direct way will warn
        run_shares(work, cut.parts)
    return sums.results(way.weights_of)


def gradients(
    way: Any, X: Array, dZ: Array, turned: Array, window: Window
) -> tuple[Array, Array, Array] | None:
    """(dX, dW, db); None if a number is not finite.

    `turned` (3, 3, out_ch, ch) is the kernel turned by 180 degrees, `window` leads from dZ to X.
    """
    if not all_finite(turned):
        return None
    dX = workspace.empty(X.shape, X.dtype)
    cut = _Cut(way, dZ, X.shape[3], window)
    buffers = [
        (way.Input(cut.full, dZ), way.Output(cut.full, dX, None), way.Gradient(cut.full, X))
        for _ in cut.parts
    ]
    sums = _Sums(way, [(right, left) for left, _, right in buffers], cut, dZ)
    finite = [True] * len(cut.parts)
    weights = way.transformed(turned)

    def work(i: int, part: slice) -> None:
        to_points, from_points, of_outputs = buffers[i]
        for block, g in cut.blocks(part):
            seen = to_points(block, g)
            from_points(seen, weights, block, g)
            if not all_finite(to_points.witness):
                finite[i] = False
                return
            sums.add(i, of_outputs(block, g), seen, block)

    with np.errstate(over="ignore", invalid="ignore"):  # the direct way will warn
        run_shares(work, cut.parts)
    rest = sums.results(way.turned_weights_of) if all(finite) else None
    return None if rest is None else (dX, *rest)


class _Sums:
    """The gradients of the kernel at the points, and db: a sum for each share, and one of all.

    `buffers` are pairs of those that give the left and the right side of the products of a share.
    """

    def __init__(self, way: Any, buffers: list[tuple[Any, Any]], cut: _Cut, dZ: Array) -> None:
        left, right = buffers[0]
        size, self._dZ = (*way.POINTS, left.width, right.width), dZ
        self._points = [workspace.zeros(size, dZ.dtype) for _ in buffers]
        # The parts of a point follow one another: BLAS takes them in turn, out of the cache.
        parts = (*way.POINTS, way.PARTS, *size[-2:])
        self._products = [np.moveaxis(workspace.empty(parts, dZ.dtype), -3, 0) for _ in buffers]
        self._db = [np.zeros(dZ.shape[3], dZ.dtype) for _ in buffers]
        self._ones = ones(cut.step * dZ.shape[1] * dZ.shape[2], dZ.dtype)

    def add(self, share: int, left: Array, right: Array, block: slice) -> None:
        total, product = self._points[share], self._products[share]
        np.matmul(left.swapaxes(-1, -2), right, out=product)
        for part in product:
            np.add(total, part, out=total)
        rows = self._dZ[block].reshape(-1, self._dZ.shape[3])
        self._db[share] += self._ones[: len(rows)] @ rows

    def results(self, weights_of: Callable[[Array], Array]) -> tuple[Array, Array] | None:
        """dW and db. Every transformed number of X meets every one of dZ at its place, if only as a
        zero: what is not finite in either is left in the sums, and then there is no result."""
        points, db = self._points[0], self._db[0]
        with np.errstate(over="ignore", invalid="ignore"):
            for more in self._points[1:]:
                np.add(points, more, out=points)
        if not all_finite(points):
            return None
        for more in self._db[1:]:
            np.add(db, more, out=db)
        gradient = weights_of(points)
        dW = workspace.empty(gradient.shape, gradient.dtype)
        np.copyto(dW, gradient)
        return dW, db
