"""Averaging, enlarging and padding of images, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def global_average(X) -> np.ndarray:
    n, rows, cols, ch = X.shape
    Y = np.zeros((n, ch))
    for m, k in np.ndindex(n, ch):
        Y[m, k] = math.fsum(float(x) for x in X[m, :, :, k].ravel()) / (rows * cols)
    return Y


def global_average_grad(dY, x_shape) -> np.ndarray:
    dX = np.zeros(x_shape)
    for m, r, c, k in np.ndindex(*x_shape):
        dX[m, r, c, k] = float(dY[m, k]) / (x_shape[1] * x_shape[2])
    return dX


def upsample(X, factor: tuple[int, int]) -> np.ndarray:
    n, rows, cols, ch = X.shape
    Y = np.zeros((n, rows * factor[0], cols * factor[1], ch))
    for m, r, c, k in np.ndindex(*Y.shape):
        Y[m, r, c, k] = X[m, r // factor[0], c // factor[1], k]
    return Y


def upsample_grad(dY, x_shape, factor: tuple[int, int]) -> np.ndarray:
    dX = np.zeros(x_shape)
    for m, r, c, k in np.ndindex(*dY.shape):
        dX[m, r // factor[0], c // factor[1], k] += dY[m, r, c, k]
    return dX


def zero_pad(X, pad: tuple[int, int, int, int]) -> np.ndarray:
    n, rows, cols, ch = X.shape
    Y = np.zeros((n, rows + pad[0] + pad[1], cols + pad[2] + pad[3], ch))
    for m, r, c, k in np.ndindex(*X.shape):
        Y[m, r + pad[0], c + pad[2], k] = X[m, r, c, k]
    return Y


def zero_pad_grad(dY, x_shape, pad: tuple[int, int, int, int]) -> np.ndarray:
    dX = np.zeros(x_shape)
    for m, r, c, k in np.ndindex(*x_shape):
        dX[m, r, c, k] = dY[m, r + pad[0], c + pad[2], k]
    return dX
