"""Batch normalisation of the columns of (m, ch), step by step as in Ioffe & Szegedy (2015)."""

from __future__ import annotations

import math

import numpy as np


def batchnorm(X, scaler, intercept, eps: float):
    """(Y, X_hat, mean, biased variance, 1 / sqrt(variance + eps))."""
    X = np.asarray(X, np.float64)
    m, ch = X.shape
    Y, X_hat = np.zeros(X.shape), np.zeros(X.shape)
    mean, var, inv_std = np.zeros(ch), np.zeros(ch), np.zeros(ch)
    for k in range(ch):
        mean[k] = math.fsum(float(X[i, k]) for i in range(m)) / m
        var[k] = math.fsum((float(X[i, k]) - mean[k]) ** 2 for i in range(m)) / m
        inv_std[k] = 1.0 / math.sqrt(var[k] + eps)
        for i in range(m):
            X_hat[i, k] = (X[i, k] - mean[k]) * inv_std[k]
            Y[i, k] = float(scaler[k]) * X_hat[i, k] + float(intercept[k])
    return Y, X_hat, mean, var, inv_std


def batchnorm_grads(X, dY, scaler, eps: float):
    """(dX, dscaler, dintercept), by the chain rule through variance and mean (section 3)."""
    X, dY = np.asarray(X, np.float64), np.asarray(dY, np.float64)
    m, ch = X.shape
    _, X_hat, mean, var, inv_std = batchnorm(X, scaler, np.zeros(ch), eps)
    dX, dscaler, dintercept = np.zeros(X.shape), np.zeros(ch), np.zeros(ch)
    for k in range(ch):
        dvar = dmean = 0.0
        for i in range(m):
            dintercept[k] += dY[i, k]
            dscaler[k] += dY[i, k] * X_hat[i, k]
            dx_hat = dY[i, k] * float(scaler[k])
            dvar += dx_hat * (X[i, k] - mean[k]) * -0.5 * (var[k] + eps) ** -1.5
            dmean += -dx_hat * inv_std[k]
        dmean += dvar * math.fsum(-2.0 * (float(X[i, k]) - mean[k]) for i in range(m)) / m
        for i in range(m):
            dX[i, k] = (
                dY[i, k] * float(scaler[k]) * inv_std[k]
                + dvar * 2.0 * (X[i, k] - mean[k]) / m
                + dmean / m
            )
    return dX, dscaler, dintercept
