"""Normalisation of columns and rows with statistics that do not cancel."""

from __future__ import annotations

from ctypes import c_int

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.reference.normalization import ReferenceNormalization

__all__ = ["CompiledNormalization"]

_batchnorm_forward = bind("gl_batchnorm_forward", "ppppppppiif", c_int)
_batchnorm_backward = bind("gl_batchnorm_backward", "pppppppii", c_int)
_standardize_forward = bind("gl_standardize_forward", "pppiif")
_standardize_backward = bind("gl_standardize_backward", "ppppii")
_layernorm_forward = bind("gl_layernorm_forward", "ppppppiif")
_layernorm_backward = bind("gl_layernorm_backward", "pppppppii", c_int)


def _rows(X: Array, axes: tuple[int, ...]) -> tuple[int, int] | None:
    """(rows, width) where `axes` are the last ones of X, so that rows are contiguous; else None."""
    if axes != tuple(range(X.ndim - len(axes), X.ndim)):
        return None
    width = 1
    for axis in axes:
        width *= X.shape[axis]
    return X.size // width, width


class CompiledNormalization(ReferenceNormalization):
    """float32 and float64; standardisation where the axes are the last ones."""

    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]:
        if X.dtype not in DTYPES:
            return super().batchnorm_forward(X, scaler, intercept, eps)
        m, ch = X.shape
        Y, X_hat = workspace.empty(X.shape, X.dtype), workspace.empty(X.shape, X.dtype)
        mean, var, inv_std = (workspace.empty((ch,), X.dtype) for _ in range(3))
        arrays = (X, scaler, intercept, Y, X_hat, mean, var, inv_std)
        if _batchnorm_forward(X.dtype, *arrays, m, ch, eps):
            raise MemoryError("batchnorm_forward: no memory for the sums of columns")
        return Y, X_hat, mean, var, inv_std

    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        if dY.dtype not in DTYPES or not len(dY):
            return super().batchnorm_backward(dY, X_hat, scaler, inv_std)
        m, ch = dY.shape
        dX = workspace.empty(dY.shape, dY.dtype)
        dscaler, dintercept = (workspace.empty((ch,), dY.dtype) for _ in range(2))
        arrays = (dY, X_hat, scaler, inv_std, dX, dscaler, dintercept)
        if _batchnorm_backward(dY.dtype, *arrays, m, ch):
            raise MemoryError("batchnorm_backward: no memory for the sums of columns")
        return dX, dscaler, dintercept

    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]:
        size = _rows(X, axes)
        if X.dtype not in DTYPES or size is None:
            return super().standardize_forward(X, axes, eps)
        X_hat = workspace.empty(X.shape, X.dtype)
        kept = tuple(1 if k in axes else n for k, n in enumerate(X.shape))
        inv_std = workspace.empty(kept, X.dtype)
        _standardize_forward(X.dtype, X, X_hat, inv_std, *size, eps)
        return X_hat, inv_std

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        size = _rows(X_hat, axes)
        if X_hat.dtype not in DTYPES or size is None:
            return super().standardize_backward(dX_hat, X_hat, inv_std, axes)
        dX = workspace.empty(X_hat.shape, X_hat.dtype)
        _standardize_backward(X_hat.dtype, dX_hat, X_hat, inv_std, dX, *size)
        return dX

    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        if X.dtype not in DTYPES:
            return super().layernorm_forward(X, scaler, intercept, eps)
        Y, X_hat = workspace.empty(X.shape, X.dtype), workspace.empty(X.shape, X.dtype)
        inv_std = workspace.empty((len(X), 1), X.dtype)
        _layernorm_forward(X.dtype, X, scaler, intercept, Y, X_hat, inv_std, *X.shape, eps)
        return Y, X_hat, inv_std

    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        if dY.dtype not in DTYPES:
            return super().layernorm_backward(dY, X_hat, scaler, inv_std)
        dX = workspace.empty(dY.shape, dY.dtype)
        dscaler, dintercept = (workspace.empty(dY.shape[1:], dY.dtype) for _ in range(2))
        arrays = (dY, X_hat, scaler, inv_std, dX, dscaler, dintercept)
        if _layernorm_backward(dY.dtype, *arrays, *dY.shape):
            raise MemoryError("layernorm_backward: no memory for the sums of columns")
        return dX, dscaler, dintercept
