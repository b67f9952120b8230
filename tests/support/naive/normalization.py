"""Batch normalisation of the columns of (m, ch), step by step as in Ioffe & Szegedy (2015);
standardisation of rows as in Ba, Kiros & Hinton (2016)."""

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


def standardize(X, eps: float):
    """(X_hat, 1 / sqrt(biased variance + eps)) of the rows of (m, k)."""
    X = np.asarray(X, np.float64)
    m, k = X.shape
    X_hat, inv_std = np.zeros(X.shape), np.zeros(m)
    for i in range(m):
        mean = math.fsum(X[i]) / k
        var = math.fsum((x - mean) ** 2 for x in X[i]) / k
        inv_std[i] = 1.0 / math.sqrt(var + eps)
        for j in range(k):
            X_hat[i, j] = (X[i, j] - mean) * inv_std[i]
    return X_hat, inv_std


def standardize_grad(X, dX_hat, eps: float):
    """dX of (m, k): the Jacobian d x_hat_j / d x_t of each row, entry by entry."""
    X, dX_hat = np.asarray(X, np.float64), np.asarray(dX_hat, np.float64)
    X_hat, inv_std = standardize(X, eps)
    m, k = X.shape
    dX = np.zeros(X.shape)
    for i in range(m):
        for t in range(k):
            for j in range(k):
                jacobian = (j == t) - 1.0 / k - X_hat[i, j] * X_hat[i, t] / k
                dX[i, t] += dX_hat[i, j] * jacobian * inv_std[i]
    return dX


def layernorm(X, dY, scaler, intercept, eps: float):
    """(Y, dX, dscaler, dintercept) of examples of any shape, a scaler for each element."""
    shape, rows = X.shape, (len(X), -1)
    X_hat, _ = standardize(X.reshape(rows), eps)
    X_hat = X_hat.reshape(shape)
    Y, dX_hat = np.zeros(shape), np.zeros(shape)
    dscaler, dintercept = np.zeros(scaler.shape), np.zeros(scaler.shape)
    for index in np.ndindex(shape):
        k = index[1:]
        Y[index] = scaler[k] * X_hat[index] + intercept[k]
        dX_hat[index] = dY[index] * scaler[k]
        dscaler[k] += dY[index] * X_hat[index]
        dintercept[k] += dY[index]
    dX = standardize_grad(X.reshape(rows), dX_hat.reshape(rows), eps).reshape(shape)
    return Y, dX, dscaler, dintercept


def groupnorm(X, dY, scaler, intercept, n_groups: int, eps: float):
    """(Y, dX, dscaler, dintercept) of images (n, rows, cols, ch), group by group."""
    n, ch = X.shape[0], X.shape[3]
    width = ch // n_groups
    Y, dX = np.zeros(X.shape), np.zeros(X.shape)
    dscaler, dintercept = np.zeros(ch), np.zeros(ch)
    for m, g in np.ndindex(n, n_groups):
        group = (m, slice(None), slice(None), slice(g * width, (g + 1) * width))
        part, given = X[group], dY[group]
        X_hat = standardize(part.reshape(1, -1), eps)[0].reshape(part.shape)
        dX_hat = np.zeros(part.shape)
        for r, c, j in np.ndindex(*part.shape):
            k = g * width + j
            Y[m, r, c, k] = scaler[k] * X_hat[r, c, j] + intercept[k]
            dX_hat[r, c, j] = given[r, c, j] * scaler[k]
            dscaler[k] += given[r, c, j] * X_hat[r, c, j]
            dintercept[k] += given[r, c, j]
        rows = part.reshape(1, -1), dX_hat.reshape(1, -1)
        dX[group] = standardize_grad(*rows, eps).reshape(part.shape)
    return Y, dX, dscaler, dintercept
