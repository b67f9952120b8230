"""Batch normalisation of the columns of (m, ch), in forward/backward pairs.

Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3.
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for


def batchnorm_forward(
    X: Array, scaler: Array, intercept: Array, eps: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + eps), column by column.

    Parameters
    ----------
    X : (m, ch), floating, m >= 1
    scaler, intercept : (ch,)
    eps : float

    Returns
    -------
    Y, X_hat : (m, ch)
    mean, var, inv_std : (ch,); var is the biased one (divided by m)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "batchnorm_forward"
    check.rank(name, "X", X, 2, "(m, ch)")
    if X.shape[0] == 0:
        raise ShapeError(f"{name}: statistics need at least one row, got X of shape {X.shape}")
    check.shape(name, "scaler", scaler, X.shape[1:])
    check.shape(name, "intercept", intercept, X.shape[1:])
    X, scaler, intercept = check.same_float(name, X=X, scaler=scaler, intercept=intercept)
    return kernels_for(X).batchnorm_forward(X, scaler, intercept, float(eps))


def batchnorm_backward(
    dY: Array, X_hat: Array, scaler: Array, inv_std: Array
) -> tuple[Array, Array, Array]:
    """dX = scaler * inv_std * (dY - mean(dY) - X_hat * mean(dY * X_hat)), and the two parameters'.

    Parameters
    ----------
    dY, X_hat : (m, ch), floating
    scaler, inv_std : (ch,)

    Returns
    -------
    dX : (m, ch)
    dscaler, dintercept : (ch,); sum(dY * X_hat) and sum(dY) over the rows

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "batchnorm_backward"
    check.rank(name, "dY", dY, 2, "(m, ch)")
    check.shape(name, "X_hat", X_hat, dY.shape)
    check.shape(name, "scaler", scaler, dY.shape[1:])
    check.shape(name, "inv_std", inv_std, dY.shape[1:])
    dY, X_hat, scaler, inv_std = check.same_float(
        name, dY=dY, X_hat=X_hat, scaler=scaler, inv_std=inv_std
    )
    return kernels_for(dY).batchnorm_backward(dY, X_hat, scaler, inv_std)
