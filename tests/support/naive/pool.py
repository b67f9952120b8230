"""Max and average pooling, forward and backward."""

from __future__ import annotations

import math

import numpy as np

from tests.support.naive.conv import Pad, Pair, output_size


def _winners(X, kernel: Pair, stride: Pair, pad: Pad):
    """Yield (output index, i, j, pixel index) of each window's winner.

    Only real pixels compete (padding is minus infinity and less than anything). The first in
    row-major order wins ties; the first NaN wins outright.
    """
    n, rows, cols, ch = X.shape
    out_rows, out_cols = output_size(rows, cols, kernel, stride, pad, (1, 1))
    for m, r, c, k in np.ndindex(n, out_rows, out_cols, ch):
        best = None
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                y, x = r * stride[0] + i - pad[0], c * stride[1] + j - pad[2]
                if not (0 <= y < rows and 0 <= x < cols):
                    continue
                value = float(X[m, y, x, k])
                if (
                    best is None
                    or (math.isnan(value) and not math.isnan(best[0]))
                    or value > best[0]
                ):
                    best = (value, i, j, (m, y, x, k))
        if best is None:
            raise ValueError("a window sees only padding: its maximum is undefined")
        yield (m, r, c, k), *best[1:]


def max_pool2d(X, kernel: Pair, stride: Pair, pad: Pad) -> tuple[np.ndarray, np.ndarray]:
    """(Y, argmax) with argmax = i * fc + j inside the window."""
    X = np.asarray(X, np.float64)
    out = output_size(X.shape[1], X.shape[2], kernel, stride, pad, (1, 1))
    Y = np.zeros((X.shape[0], *out, X.shape[3]))
    argmax = np.zeros(Y.shape, np.int64)
    for index, i, j, pixel in _winners(X, kernel, stride, pad):
        Y[index] = X[pixel]
        argmax[index] = i * kernel[1] + j
    return Y, argmax


def max_pool2d_grad(X, dY, kernel: Pair, stride: Pair, pad: Pad) -> np.ndarray:
    X, dY = np.asarray(X, np.float64), np.asarray(dY, np.float64)
    dX = np.zeros(X.shape)
    for index, _, _, pixel in _winners(X, kernel, stride, pad):
        dX[pixel] += dY[index]
    return dX


def avg_pool2d(X, kernel: Pair, stride: Pair, pad: Pad) -> np.ndarray:
    """The mean over all fr * fc taps; padding counts as zeros."""
    X = np.asarray(X, np.float64)
    n, rows, cols, ch = X.shape
    out = output_size(rows, cols, kernel, stride, pad, (1, 1))
    Y = np.zeros((n, *out, ch))
    for m, r, c, k in np.ndindex(Y.shape):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                y, x = r * stride[0] + i - pad[0], c * stride[1] + j - pad[2]
                if 0 <= y < rows and 0 <= x < cols:
                    Y[m, r, c, k] += X[m, y, x, k] / (kernel[0] * kernel[1])
    return Y


def avg_pool2d_grad(dY, x_shape, kernel: Pair, stride: Pair, pad: Pad) -> np.ndarray:
    dY = np.asarray(dY, np.float64)
    dX = np.zeros(x_shape)
    for m, r, c, k in np.ndindex(dY.shape):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                y, x = r * stride[0] + i - pad[0], c * stride[1] + j - pad[2]
                if 0 <= y < x_shape[1] and 0 <= x < x_shape[2]:
                    dX[m, y, x, k] += dY[m, r, c, k] / (kernel[0] * kernel[1])
    return dX
