"""Batch normalisation of the columns of (m, ch); standardisation over any axes; layer normalisation
of rows."""

from __future__ import annotations

from typing import cast

from gpulayers.backend import Array, xp_of
from gpulayers.ops._protocol import Kernels
from gpulayers.ops._sums import sum_dtype


class ReferenceNormalization:
    """Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3; Ba, Kiros &
    Hinton, "Layer normalization" (2016), section 3."""

    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]:
        xp = xp_of(X)
        wide = X.astype(sum_dtype(X), copy=False)
        mean = wide.mean(axis=0)
        centred = wide - mean
        var = (centred * centred).mean(axis=0)
        inv_std = 1 / xp.sqrt(var + var.dtype.type(eps))
        X_hat = centred * inv_std
        Y = scaler * X_hat + intercept
        Y, X_hat, mean, var, inv_std = (
            a.astype(X.dtype, copy=False) for a in (Y, X_hat, mean, var, inv_std)
        )
        return Y, X_hat, mean, var, inv_std

    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        # mean and variance depend on every row, hence the two averages taken out of dY
        dtype, m = dY.dtype, X_hat.shape[0]
        dY, X_hat = (a.astype(sum_dtype(a), copy=False) for a in (dY, X_hat))
        dintercept = dY.sum(axis=0)
        dscaler = (dY * X_hat).sum(axis=0)
        dX = (scaler * inv_std) * (dY - (dintercept + X_hat * dscaler) * X_hat.dtype.type(1.0 / m))
        dX, dscaler, dintercept = (a.astype(dtype, copy=False) for a in (dX, dscaler, dintercept))
        return dX, dscaler, dintercept

    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]:
        xp = xp_of(X)
        wide = X.astype(sum_dtype(X), copy=False)
        centred = wide - wide.mean(axis=axes, keepdims=True)
        var = (centred * centred).mean(axis=axes, keepdims=True)
        inv_std = 1 / xp.sqrt(var + var.dtype.type(eps))
        return (centred * inv_std).astype(X.dtype, copy=False), inv_std

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        # mean and variance depend on every element, hence the two averages taken out
        dtype = X_hat.dtype
        dX_hat, X_hat = (a.astype(sum_dtype(a), copy=False) for a in (dX_hat, X_hat))
        shift = dX_hat.mean(axis=axes, keepdims=True)
        slope = (dX_hat * X_hat).mean(axis=axes, keepdims=True)
        return (inv_std * (dX_hat - shift - X_hat * slope)).astype(dtype, copy=False)

    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        X_hat, inv_std = self.standardize_forward(X, (1,), eps)
        return scaler * X_hat + intercept, X_hat, inv_std

    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        dX = self.standardize_backward(dY * scaler, X_hat, inv_std, (1,))
        column_sums = cast(Kernels, self).bias_grad  # of another family
        return dX, column_sums(dY * X_hat), column_sums(dY)
