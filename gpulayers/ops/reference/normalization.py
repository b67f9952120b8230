"""Batch normalisation of the columns of (m, ch); standardisation over any axes."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of


class ReferenceNormalization:
    """Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3; Ba, Kiros &
    Hinton, "Layer normalization" (2016), section 3."""

    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]:
        xp = xp_of(X)
        mean = X.mean(axis=0)
        centred = X - mean
        var = (centred * centred).mean(axis=0)
        inv_std = 1 / xp.sqrt(var + X.dtype.type(eps))
        X_hat = centred * inv_std
        return scaler * X_hat + intercept, X_hat, mean, var, inv_std

    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        # mean and variance depend on every row, hence the two averages taken out of dY
        m = X_hat.shape[0]
        dintercept = dY.sum(axis=0)
        dscaler = (dY * X_hat).sum(axis=0)
        dX = (scaler * inv_std) * (dY - (dintercept + X_hat * dscaler) * X_hat.dtype.type(1.0 / m))
        return dX, dscaler, dintercept

    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]:
        xp = xp_of(X)
        wide = X.astype(_averaging_dtype(X), copy=False)
        centred = wide - wide.mean(axis=axes, keepdims=True)
        var = (centred * centred).mean(axis=axes, keepdims=True)
        inv_std = 1 / xp.sqrt(var + var.dtype.type(eps))
        return (centred * inv_std).astype(X.dtype, copy=False), inv_std

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        # mean and variance depend on every element, hence the two averages taken out
        dtype = X_hat.dtype
        dX_hat, X_hat = (a.astype(_averaging_dtype(a), copy=False) for a in (dX_hat, X_hat))
        shift = dX_hat.mean(axis=axes, keepdims=True)
        slope = (dX_hat * X_hat).mean(axis=axes, keepdims=True)
        return (inv_std * (dX_hat - shift - X_hat * slope)).astype(dtype, copy=False)


def _averaging_dtype(X: Array) -> Any:
    """Half precision loses sums of more than a few hundred numbers, and squares overflow."""
    return "float32" if X.dtype.itemsize == 2 else X.dtype
