"""Fully connected product, flatten, dropout with a given mask."""

from __future__ import annotations

import numpy as np


def dense(X, W, b) -> np.ndarray:
    """Z[m, o] = b[o] + sum_k X[m, k] W[k, o]."""
    X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
    Z = np.zeros((X.shape[0], W.shape[1]))
    for m, o in np.ndindex(Z.shape):
        Z[m, o] = 0.0 if b is None else float(b[o])
        for k in range(X.shape[1]):
            Z[m, o] += X[m, k] * W[k, o]
    return Z


def dense_grads(X, W, dZ):
    """(dX, dW, db)."""
    X, W, dZ = (np.asarray(a, np.float64) for a in (X, W, dZ))
    dX, dW, db = np.zeros(X.shape), np.zeros(W.shape), np.zeros(W.shape[1])
    for m, o in np.ndindex(dZ.shape):
        db[o] += dZ[m, o]
        for k in range(X.shape[1]):
            dX[m, k] += dZ[m, o] * W[k, o]
            dW[k, o] += dZ[m, o] * X[m, k]
    return dX, dW, db


def flatten(X, keep: str | int) -> np.ndarray:
    """'first': (n, rest); 'last': (rest, last); -1: (1, all). Row-major order throughout."""
    X = np.asarray(X, np.float64)
    numbers = [float(X[index]) for index in np.ndindex(X.shape)]
    if keep == "first":
        height = X.shape[0]
    elif keep == "last":
        height = len(numbers) // X.shape[-1]
    else:
        height = 1
    width = len(numbers) // height
    Y = np.zeros((height, width))
    for position, number in enumerate(numbers):
        Y[position // width, position % width] = number
    return Y


def unflatten(dY, x_shape) -> np.ndarray:
    dY = np.asarray(dY, np.float64)
    dX = np.zeros(x_shape)
    for target, source in zip(np.ndindex(dX.shape), np.ndindex(dY.shape), strict=True):
        dX[target] = dY[source]
    return dX


def dropout(X, mask, p: float) -> np.ndarray:
    """Kept entries are divided by the probability of being kept, the others are zero."""
    X = np.asarray(X, np.float64)
    Y = np.zeros(X.shape)
    for index in np.ndindex(X.shape):
        Y[index] = X[index] / (1.0 - p) if mask[index] else 0.0
    return Y
