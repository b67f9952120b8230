"""Softmax over the rows of (m, classes), alone and with the cross-entropy loss."""

from __future__ import annotations

import math

import numpy as np


def softmax(Z) -> np.ndarray:
    Z = np.asarray(Z, np.float64)
    Y = np.zeros(Z.shape)
    for m in range(Z.shape[0]):
        row = [float(z) for z in Z[m]]
        if any(math.isnan(z) for z in row) or math.isinf(max(row)):
            Y[m] = math.nan  # NaN anywhere, infinity over infinity, or nothing but -infinity
            continue
        top = max(row)
        e = [math.exp(z - top) for z in row]
        for j, value in enumerate(e):
            Y[m, j] = value / math.fsum(e)
    return Y


def softmax_grad(dY, Y) -> np.ndarray:
    """dZ_j = sum_i dY_i dY_i/dZ_j with the whole Jacobian y_i ([i = j] - y_j)."""
    dY, Y = np.asarray(dY, np.float64), np.asarray(Y, np.float64)
    dZ = np.zeros(Y.shape)
    for m in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            for i in range(Y.shape[1]):
                dZ[m, j] += dY[m, i] * Y[m, i] * ((1.0 if i == j else 0.0) - Y[m, j])
    return dZ


def cross_entropy(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """(loss of each row = -log of the probability of its label, probabilities)."""
    logits = np.asarray(logits, np.float64)
    losses = np.zeros(logits.shape[0])
    for m in range(logits.shape[0]):
        row = [float(z) for z in logits[m]]
        top = max(row)
        losses[m] = top + math.log(math.fsum(math.exp(z - top) for z in row)) - row[int(labels[m])]
    return losses, softmax(logits)


def cross_entropy_grad(probs, labels, scale: float) -> np.ndarray:
    probs = np.asarray(probs, np.float64)
    grad = np.zeros(probs.shape)
    for m, j in np.ndindex(probs.shape):
        grad[m, j] = (probs[m, j] - (1.0 if j == int(labels[m]) else 0.0)) * scale
    return grad
