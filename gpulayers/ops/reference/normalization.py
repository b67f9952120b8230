"""Batch normalisation of the columns of (m, ch)."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of


class ReferenceNormalization:
    """Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3."""

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
