"""Sums and products of several arrays, one number at a time."""

from __future__ import annotations

import math

import numpy as np


def merge(Xs, kind: str) -> np.ndarray:
    """The elementwise "sum" or "product" of the arrays."""
    Z = np.zeros(Xs[0].shape)
    for index in np.ndindex(Z.shape):
        numbers = [float(X[index]) for X in Xs]
        Z[index] = math.fsum(numbers) if kind == "sum" else math.prod(numbers)
    return Z


def merge_grads(Xs, dZ, kind: str) -> list[np.ndarray]:
    """One gradient per array: dZ, times all the other factors for a product."""
    dXs = [np.zeros(X.shape) for X in Xs]
    for k, dX in enumerate(dXs):
        for index in np.ndindex(dX.shape):
            others = [float(X[index]) for j, X in enumerate(Xs) if j != k]
            dX[index] = float(dZ[index]) * (1.0 if kind == "sum" else math.prod(others))
    return dXs
