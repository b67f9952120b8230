"""Pooling on the CPU: each tap is copied into one contiguous array, the rest are fast passes.

The examples are cut into shares for the threads and blocks for the cache; a tap's pixels are copied
as raw items (`pixels`), since few channels make loops too short for NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.cpu._blocks import blocks, pixels, row_by_row
from gpulayers.ops.reference.conv import taps
from gpulayers.ops.reference.pool import ReferencePool
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares, shares

BLOCK = 1 << 18  # outputs that are gone over at a time: calls cost more than the cache saves
_SCATTERED = 1 << 16  # outputs whose places, and the pixels they go to, the cache holds
_FEW_TAPS = 3  # for each thread: fewer of them are faster masked than their winners looked up
_SHARE = 1 << 20  # pixels seen by windows from which a second thread pays
Gradient = Callable[[slice, int, Array, Array], Array]  # of a block, by tap; two arrays to use


class _Cut:
    """Shares and blocks of the examples of a pooling, and padded images where there is padding."""

    def __init__(self, x_shape: Shape4, dtype: np.dtype, window: Window) -> None:
        self.n, self.rows, self.cols, self.ch = x_shape
        self.window, self.dtype = window, dtype
        self.out = window.output_size(self.rows, self.cols)
        self.each = self.out[0] * self.out[1] * self.ch
        self.step = max(1, BLOCK // self.each)
        self.parts = shares(self.n, -(-_SHARE // (self.each * window.taps)))
        self.taps = [(i * window.kernel[1] + j, r, c) for i, j, r, c in taps(window, self.out)]

    def run(self, work: Callable[[int, slice], None]) -> None:
        """Do all shares."""
        run_shares(work, self.parts, blas=False)

    def outputs(self, part: slice) -> Array:
        """Memory for the outputs of a block."""
        count = min(self.step, part.stop - part.start)
        return workspace.empty((count, *self.out, self.ch), self.dtype)

    def padded(self, part: slice, value: float) -> Array | None:
        """Memory for the padded images of a block; None without padding."""
        if not any(self.window.pad):
            return None
        count = min(self.step, part.stop - part.start)
        size = (count, *self.window.padded_size(self.rows, self.cols), self.ch)
        images = workspace.empty(size, self.dtype)
        images.fill(value)
        return images

    def inside(self, padded: Array) -> Array:
        """The images without their padding."""
        top, _, left, _ = self.window.pad
        return padded[:, top : top + self.rows, left : left + self.cols]

    def seen(self, X: Array, padded: Array | None) -> Array:
        """A block of images with the padding around them."""
        if padded is None:
            return X
        padded = padded[: len(X)]
        np.copyto(self.inside(padded), X)
        return padded


def _overlaps(window: Window) -> bool:
    return window.stride[0] < window.span[0] or window.stride[1] < window.span[1]


def _covers(cut: _Cut) -> bool:
    """Whether windows that do not overlap leave no pixel unseen."""
    window = cut.window
    return (
        window.stride == window.kernel
        and window.dilation == (1, 1)
        and (cut.out[0] * window.stride[0], cut.out[1] * window.stride[1])
        == window.padded_size(cut.rows, cut.cols)
    )


class CpuPool(ReferencePool):
    """Windows whose winner fits a byte; the others are the reference's."""

    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]:
        if window.taps > 256 or not X.size:
            return super().max_pool2d_forward(X, window)
        cut = _Cut(X.shape, X.dtype, window)
        Y = workspace.empty((cut.n, *cut.out, cut.ch), X.dtype)
        argmax = workspace.empty(Y.shape, np.uint8)
        values = [cut.outputs(part) for part in cut.parts]
        wins = [workspace.empty(value.shape, np.bool_) for value in values]
        padded = [cut.padded(part, -float("inf")) for part in cut.parts]
        plain = [True] * len(cut.parts)

        def work(i: int, part: slice) -> None:
            for block in blocks(part, cut.step):
                images, count = cut.seen(X[block], padded[i]), block.stop - block.start
                y, winner = Y[block], argmax[block]
                value, win = values[i][:count], wins[i][:count]
                place = win.view(np.uint8)
                source, target, best = pixels(images), pixels(value), pixels(y)
                for k, r, c in cut.taps:
                    np.copyto(best if k == 0 else target, source[:, r, c])
                    if k == 0:
                        if window.taps == 1:
                            winner.fill(0)
                        continue
                    np.greater(value, y, out=winner.view(np.bool_) if k == 1 else win)
                    np.maximum(y, value, out=y)
                    if k > 1:  # taps come in rising order: the last winner has the largest number
                        np.multiply(place, k, out=place)
                        np.maximum(winner, place, out=winner)
                least = 0.0 if padded[i] is None else y.min()
                plain[i] &= not (np.isnan(y.max()) or np.isneginf(least))

        cut.run(work)
        if not all(plain):  # comparisons alone tell neither NaN nor padding from -inf
            return super().max_pool2d_forward(X, window)
        return Y, argmax

    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array:
        overlap = _overlaps(window)
        if not dY.size or argmax.dtype != np.uint8 or (overlap and dY.dtype.itemsize < 4):
            return super().max_pool2d_backward(dY, argmax, x_shape, window)
        cut = _Cut(x_shape, dY.dtype, window)
        if overlap and window.taps >= _FEW_TAPS * len(cut.parts):
            return _scatter(cut, dY, argmax)
        # a product of integers: a gradient that is not finite, times 0, must be 0
        whole = np.dtype(f"u{dY.dtype.itemsize}")

        def gradient(block: slice, k: int, free: Array, mask: Array) -> Array:
            np.equal(argmax[block], k, out=mask)
            np.multiply(dY[block].view(whole), mask, out=free.view(whole))
            return free

        return _spread(cut, gradient, overlap)

    def avg_pool2d_forward(self, X: Array, window: Window) -> Array:
        if not X.size or X.dtype.itemsize < 4:
            return super().avg_pool2d_forward(X, window)
        cut = _Cut(X.shape, X.dtype, window)
        Y = workspace.empty((cut.n, *cut.out, cut.ch), X.dtype)
        values = [cut.outputs(part) for part in cut.parts]
        padded = [cut.padded(part, 0.0) for part in cut.parts]
        (fr, fc), (dr, dc), (sr, sc) = window.kernel, window.dilation, window.stride
        width = window.padded_size(cut.rows, cut.cols)[1]
        long = (cut.out[0], width * cut.ch)
        sums = [workspace.empty((len(value), *long), X.dtype) for value in values]
        share = X.dtype.type(1.0 / window.taps)

        def work(i: int, part: slice) -> None:
            for block in blocks(part, cut.step):
                images, y = cut.seen(X[block], padded[i]), Y[block]
                # whole rows first, which lie side by side; then what is left of the columns
                lines, total = images.reshape(len(y), -1, long[1]), sums[i][: len(y)]
                rows = [lines[:, r * dr :: sr][:, : cut.out[0]] for r in range(fr)]
                if fr == 1:
                    np.copyto(total, rows[0])
                for r in range(1, fr):
                    np.add(rows[0] if r == 1 else total, rows[r], out=total)
                source = pixels(total.reshape(len(y), cut.out[0], width, cut.ch))
                value = values[i][: len(y)]
                for k in range(fc):
                    np.copyto(
                        pixels(value if k else y), source[:, :, k * dc :: sc][:, :, : cut.out[1]]
                    )
                    if k:
                        np.add(y, value, out=y)
                np.multiply(y, share, out=y)

        with row_by_row(long[1]):
            cut.run(work)
        return Y

    def avg_pool2d_backward(self, dY: Array, x_shape: Shape4, window: Window) -> Array:
        if not dY.size or dY.dtype.itemsize < 4:
            return super().avg_pool2d_backward(dY, x_shape, window)
        cut = _Cut(x_shape, dY.dtype, window)
        share = dY.dtype.type(1.0 / window.taps)
        if _covers(cut) and not any(window.pad):
            return _repeat(cut, dY, share)

        def gradient(block: slice, k: int, free: Array, mask: Array) -> Array:
            return np.multiply(dY[block], share, out=free) if k == 0 else free

        return _spread(cut, gradient, _overlaps(window))


def _spread(cut: _Cut, gradient: Gradient, overlap: bool) -> Array:
    """dX, to which tap k of every window contributes ``gradient(block, k, free, mask)``."""
    if overlap:
        return _add_up(cut, gradient)
    dX = workspace.empty((cut.n, cut.rows, cut.cols, cut.ch), cut.dtype)
    values = [cut.outputs(part) for part in cut.parts]
    masks = [workspace.empty(value.shape, np.bool_) for value in values]
    padded = [cut.padded(part, 0.0) for part in cut.parts]
    clear = not _covers(cut)

    def work(i: int, part: slice) -> None:
        for block in blocks(part, cut.step):
            dx, count = dX[block], block.stop - block.start
            around = padded[i]
            images = dx if around is None else around[:count]
            if clear:
                images.fill(0)
            places = pixels(images)
            for k, r, c in cut.taps:
                of_tap = gradient(block, k, values[i][:count], masks[i][:count])
                np.copyto(places[:, r, c], pixels(of_tap))
            if around is not None:
                np.copyto(dx, cut.inside(images))

    cut.run(work)
    return dX


def _repeat(cut: _Cut, dY: Array, share: np.floating) -> Array:
    """dX of windows side by side that leave no pixel out: all pixels of a window have the same.

    They are repeated along the row first, so that the copies to dX are of whole rows.
    """
    fr, fc = cut.window.kernel
    dX = workspace.empty((cut.n, cut.rows, cut.cols, cut.ch), cut.dtype)
    values = [cut.outputs(part) for part in cut.parts]
    lines = [workspace.empty((len(v), cut.out[0], cut.cols, cut.ch), cut.dtype) for v in values]

    def work(i: int, part: slice) -> None:
        for block in blocks(part, cut.step):
            count = block.stop - block.start
            value, line = values[i][:count], lines[i][:count]
            np.multiply(dY[block], share, out=value)
            for k in range(fc):
                np.copyto(pixels(line)[:, :, k::fc], pixels(value))
            rows = dX[block].reshape(count, cut.out[0], fr, -1)
            np.copyto(rows, line.reshape(count, cut.out[0], 1, -1))

    cut.run(work)
    return dX


def _add_up(cut: _Cut, gradient: Gradient) -> Array:
    """`_spread` for windows that overlap.

    Pixels whose rows and columns leave the same remainders by the stride are summed in an array of
    their own, in which what a tap contributes lies side by side.
    """
    window = cut.window
    (sr, sc), (span_r, span_c) = window.stride, window.span
    dX = workspace.empty((cut.n, cut.rows, cut.cols, cut.ch), cut.dtype)
    grid = (cut.out[0] + (span_r - 1) // sr, cut.out[1] + (span_c - 1) // sc)
    values = [cut.outputs(part) for part in cut.parts]
    masks = [workspace.empty(value.shape, np.bool_) for value in values]
    sums = [workspace.empty((sr, sc, len(v), *grid, cut.ch), cut.dtype) for v in values]
    top, _, left, _ = window.pad

    def work(i: int, part: slice) -> None:
        for block in blocks(part, cut.step):
            count = block.stop - block.start
            sums[i].fill(0)
            for k, r, c in cut.taps:
                of_tap = gradient(block, k, values[i][:count], masks[i][:count])
                (down, pr), (along, pc) = divmod(r.start, sr), divmod(c.start, sc)
                total = sums[i][pr, pc, :count]
                seen = total[:, down : down + cut.out[0], along : along + cut.out[1]]
                np.add(seen, of_tap, out=seen)
            places = pixels(dX[block])
            for pr in range(sr):
                for pc in range(sc):
                    _place(places, pixels(sums[i][pr, pc, :count]), (pr - top, pc - left), (sr, sc))

    cut.run(work)
    return dX


def _scatter(cut: _Cut, dY: Array, argmax: Array) -> Array:
    """dX of max pooling by one thread, each gradient added where its winner is.

    NumPy keeps Python's lock for that (`add.at`), so threads would not help.
    """
    step = max(1, min(cut.n, _SCATTERED // cut.each))
    size = (*cut.window.padded_size(cut.rows, cut.cols), cut.ch)
    dX = workspace.empty((cut.n, cut.rows, cut.cols, cut.ch), cut.dtype)
    images = workspace.empty((step, *size), cut.dtype) if any(cut.window.pad) else None
    (_, fc), (dr, dc) = cut.window.kernel, cut.window.dilation
    taps = np.arange(cut.window.taps)
    of_tap = (taps // fc * dr * size[1] + taps % fc * dc) * cut.ch
    first, winner, place = (workspace.empty((step, cut.each), np.intp) for _ in range(3))
    (rows, cols), (sr, sc), width = cut.out, cut.window.stride, size[1] * cut.ch
    lines = np.add.outer(np.arange(step) * math.prod(size), np.arange(rows) * sr * width)
    line = np.add.outer(np.arange(cols) * sc * cut.ch, np.arange(cut.ch))
    np.add(lines[:, :, None], line.reshape(-1), out=first.reshape(step, rows, -1))
    for block in blocks(slice(0, cut.n), step):
        n = block.stop - block.start
        target = dX[block] if images is None else images[:n]
        target.fill(0)
        np.copyto(winner[:n], argmax[block].reshape(n, -1))
        np.take(of_tap, winner[:n], out=place[:n], mode="clip")  # "raise" makes a copy
        np.add(place[:n], first[:n], out=place[:n])
        np.add.at(target.reshape(-1), place[:n].reshape(-1), dY[block].reshape(-1))
        if images is not None:
            np.copyto(dX[block], cut.inside(target))
    return dX


def _place(images: Array, source: Array, first: tuple[int, int], stride: tuple[int, int]) -> None:
    """Write source[:, a, b] to images[:, first + (a, b) stride] where that is inside; zero where
    the source ends."""
    slices: list[tuple[slice, slice, slice]] = []
    for start, step, size, length in zip(
        first, stride, images.shape[1:], source.shape[1:], strict=True
    ):
        skip = -(start // step) if start < 0 else 0
        begin = start + skip * step
        count = max(0, min(len(range(begin, size, step)), length - skip))
        end = begin + count * step
        slices.append((slice(begin, end, step), slice(skip, skip + count), slice(end, None, step)))
    (rows, from_rows, no_rows), (cols, from_cols, no_cols) = slices
    images[:, no_rows, cols] = np.zeros((), images.dtype)
    images[:, rows.start :: stride[0], no_cols] = np.zeros((), images.dtype)
    np.copyto(images[:, rows, cols], source[:, from_rows, from_cols])
