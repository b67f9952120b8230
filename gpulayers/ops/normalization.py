"""Batch normalisation of columns, standardisation over any axes, layer normalisation of rows, in
forward/backward pairs.

Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3;
Ba, Kiros & Hinton, "Layer normalization" (2016), section 3.
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import DTypeError, ShapeError
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


def standardize_forward(X: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """X_hat = (X - mean) / sqrt(var + eps), mean and variance over `axes`.

    Parameters
    ----------
    X : any shape, floating
    axes : tuple of int
        At least one; negative ones count from the end. None of them may be empty.
    eps : float

    Returns
    -------
    X_hat : like X
    inv_std : 1 / sqrt(var + eps), with size 1 along `axes`; var is the biased one (divided by the
        number of elements). float32 for a half-precision X, in which nothing is averaged.

    Raises
    ------
    ShapeError
        If X has no such axis, or one is empty.
    DTypeError
    """
    name = "standardize_forward"
    check.array(name, "X", X)
    chosen = _axes(name, "X", X, axes)
    (X,) = check.same_float(name, X=X)
    return kernels_for(X).standardize_forward(X, chosen, float(eps))


def standardize_backward(
    dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
) -> Array:
    """dX = inv_std * (dX_hat - mean(dX_hat) - X_hat * mean(dX_hat * X_hat)), means over `axes`.

    Parameters
    ----------
    dX_hat, X_hat : one shape, floating
    inv_std : as `standardize_forward` returned it
    axes : tuple of int

    Returns
    -------
    dX : like X_hat

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "standardize_backward"
    check.array(name, "X_hat", X_hat)
    chosen = _axes(name, "X_hat", X_hat, axes)
    check.shape(name, "dX_hat", dX_hat, X_hat.shape)
    kept = tuple(1 if k in chosen else n for k, n in enumerate(X_hat.shape))
    check.shape(name, "inv_std", inv_std, kept)
    check.one_library(name, dX_hat, X_hat, inv_std)
    dX_hat, X_hat = check.same_float(name, dX_hat=dX_hat, X_hat=X_hat)
    inv_std = _checked_inv_std(name, X_hat, inv_std)
    return kernels_for(X_hat).standardize_backward(dX_hat, X_hat, inv_std, chosen)


def layernorm_forward(
    X: Array, scaler: Array, intercept: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + eps), row by row.

    Parameters
    ----------
    X : (m, width), floating, width >= 1
    scaler, intercept : (width,)
    eps : float

    Returns
    -------
    Y, X_hat : (m, width)
    inv_std : (m, 1), 1 / sqrt(var + eps) with the biased variance; as `standardize_forward` gives
        it

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "layernorm_forward"
    check.rank(name, "X", X, 2, "(m, width)")
    _axes(name, "X", X, (1,))
    check.shape(name, "scaler", scaler, X.shape[1:])
    check.shape(name, "intercept", intercept, X.shape[1:])
    X, scaler, intercept = check.same_float(name, X=X, scaler=scaler, intercept=intercept)
    return kernels_for(X).layernorm_forward(X, scaler, intercept, float(eps))


def layernorm_backward(
    dY: Array, X_hat: Array, scaler: Array, inv_std: Array
) -> tuple[Array, Array, Array]:
    """dX of `standardize_backward` for dY * scaler, and the two parameters' gradients.

    Parameters
    ----------
    dY, X_hat : (m, width), floating
    scaler : (width,)
    inv_std : (m, 1), as `layernorm_forward` returned it

    Returns
    -------
    dX : (m, width)
    dscaler, dintercept : (width,); sum(dY * X_hat) and sum(dY) over the rows

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "layernorm_backward"
    check.rank(name, "dY", dY, 2, "(m, width)")
    _axes(name, "dY", dY, (1,))
    check.shape(name, "X_hat", X_hat, dY.shape)
    check.shape(name, "scaler", scaler, dY.shape[1:])
    check.shape(name, "inv_std", inv_std, (len(dY), 1))
    check.one_library(name, dY, X_hat, scaler, inv_std)
    dY, X_hat, scaler = check.same_float(name, dY=dY, X_hat=X_hat, scaler=scaler)
    inv_std = _checked_inv_std(name, X_hat, inv_std)
    return kernels_for(dY).layernorm_backward(dY, X_hat, scaler, inv_std)


def _checked_inv_std(name: str, X_hat: Array, inv_std: Array) -> Array:
    (inv_std,) = check.same_float(name, inv_std=inv_std)
    wide = "float32" if X_hat.dtype.itemsize == 2 else X_hat.dtype
    if inv_std.dtype != wide:
        raise DTypeError(
            f"{name}: inv_std must be {wide} for X_hat {X_hat.dtype}, got {inv_std.dtype}"
        )
    return inv_std


def _axes(name: str, what: str, X: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """`axes` counted from the start, in order."""
    if not axes or not all(-X.ndim <= axis < X.ndim for axis in axes):
        raise ShapeError(f"{name}: {what} of shape {X.shape} has no axes {axes}")
    chosen = tuple(sorted({axis % X.ndim for axis in axes}))
    if not all(X.shape[axis] for axis in chosen):
        raise ShapeError(f"{name}: axes {axes} hold no element in {what} of shape {X.shape}")
    return chosen
