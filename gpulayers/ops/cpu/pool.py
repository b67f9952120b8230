"""Pooling on the CPU: each tap is copied into one contiguous array, the rest are fast passes."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops._kernels import Shape4
from gpulayers.ops.reference.conv import cropped, pad_image, taps
from gpulayers.ops.reference.pool import ReferencePool
from gpulayers.ops.window import Window


class CpuPool(ReferencePool):
    """Overrides max pooling for windows whose winner fits a byte."""

    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]:
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        if window.taps > 256 or not X.size:
            return super().max_pool2d_forward(X, window)
        padded = pad_image(X, window, value=-float("inf"))
        Y = np.empty((n, *out, ch), dtype=X.dtype)
        argmax = np.zeros(Y.shape, dtype=np.uint8)
        value = np.empty_like(Y)
        wins = np.empty(Y.shape, dtype=bool)
        place = wins.view(np.uint8)
        for k, (_, _, r, c) in enumerate(taps(window, out)):
            if k == 0:
                Y[...] = padded[:, r, c]
                continue
            value[...] = padded[:, r, c]
            np.greater(value, Y, out=wins)
            np.maximum(Y, value, out=Y)
            # taps are visited in rising order, so the last winner has the largest number
            np.multiply(place, k, out=place)
            np.maximum(argmax, place, out=argmax)
        if np.isnan(Y).any() or (any(window.pad) and np.isneginf(Y).any()):
            return super().max_pool2d_forward(X, window)  # comparisons alone do not tell these
        return Y, argmax

    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array:
        n, rows, cols, ch = x_shape
        fc, (sr, sc) = window.kernel[1], window.stride
        if sr < window.span[0] or sc < window.span[1] or not dY.size:
            return super().max_pool2d_backward(dY, argmax, x_shape, window)
        # windows do not overlap: every pixel has at most one gradient, nothing is added up
        out = window.output_size(rows, cols)
        padded = np.zeros((n, *window.padded_size(rows, cols), ch), dtype=dY.dtype)
        zero = dY.dtype.type(0)
        for i, j, r, c in taps(window, out):
            padded[:, r, c] = np.where(argmax == i * fc + j, dY, zero)
        return cropped(padded, window, (rows, cols), dY.dtype)
