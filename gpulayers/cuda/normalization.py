"""Batch normalisation of columns, standardisation and layer normalisation of rows, on a GPU."""

from __future__ import annotations

import math
from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.geometry import column_blocks, launch_rows
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference import Reference

_Rows = tuple[int, int, int, int]


def _rows(shape: tuple[int, ...], axes: tuple[int, ...]) -> _Rows | None:
    """(rows, width, groups, chunk) of standardize.cu; None for axes that its kernels do not take:
    they take the last axes, and the pixels and channels of (examples, pixels, groups, channels).
    """
    width = math.prod(shape[axis] for axis in axes)
    if width > table.INT32_LIMIT:
        return None
    if axes == tuple(range(axes[0], len(shape))):
        return math.prod(shape[: axes[0]]), width, 1, width
    if axes == (1, 3) and len(shape) == 4:
        return shape[0] * shape[2], width, shape[2], shape[3]
    return None


class CudaNormalization(Reference):
    """Moments are taken of distances from a number of the data, so nothing cancels far from zero,
    and added up in a fixed order."""

    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]:
        rows, channels = X.shape
        Y, X_hat = (cupy.empty(X.shape, dtype=X.dtype) for _ in range(2))
        mean, var, inv_std = (cupy.empty(channels, dtype=X.dtype) for _ in range(3))
        if not channels:
            return Y, X_hat, mean, var, inv_std
        width, across, span, parts = _spans(rows, channels)
        wide = sum_dtype(X)
        sums, squares = (cupy.empty((channels, parts), dtype=wide) for _ in range(2))
        shift, inverse = (cupy.empty(channels, dtype=wide) for _ in range(2))
        index = table.index_for(X.size, channels * parts)
        args = (X, sums, squares, rows, channels, width, span)
        launch("column_moments", X.dtype, (across, parts), args, index)
        args = (X, sums, squares, shift, inverse, mean, var, inv_std, rows, span, parts, eps)
        launch("batchnorm_statistics", X.dtype, (channels,), args, index)
        args = (X, scaler, intercept, shift, inverse, X_hat, Y, X.size, channels)
        launch_elements("batchnorm_forward", X.dtype, X.size, args, index)
        return Y, X_hat, mean, var, inv_std

    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        dX = cupy.empty(dY.shape, dtype=dY.dtype)
        sums = _gradient_sums(dY, X_hat)
        if dY.size:
            rows, channels = dY.shape
            args = (dY, X_hat, scaler, inv_std, sums, dX, dY.size, channels, 1.0 / rows)
            index = table.index_for(dY.size, sums.size)
            launch_elements("batchnorm_backward", dY.dtype, dY.size, args, index)
        return (dX, *_parameter_gradients(sums, dY.dtype))

    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]:
        numbers = _rows(X.shape, axes)
        if numbers is None:
            return super().standardize_forward(X, axes, eps)
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(X.shape))
        X_hat, inv_std = cupy.empty(X.shape, dtype=X.dtype), cupy.empty(kept, dtype=sum_dtype(X))
        none = cupy.empty(0, dtype=X.dtype)  # for scaler, intercept and Y
        launch_rows(
            "standardize_forward",
            X.dtype,
            (X, none, none, X_hat, inv_std, none, *numbers, eps, False),
            *numbers[:2],
        )
        return X_hat, inv_std

    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array:
        numbers = _rows(X_hat.shape, axes)
        if numbers is None:
            return super().standardize_backward(dX_hat, X_hat, inv_std, axes)
        dX = cupy.empty(X_hat.shape, dtype=X_hat.dtype)
        none = cupy.empty(0, dtype=X_hat.dtype)  # for scaler
        launch_rows(
            "standardize_backward",
            X_hat.dtype,
            (dX_hat, X_hat, none, inv_std, dX, *numbers, False),
            *numbers[:2],
        )
        return dX

    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        m, width = X.shape
        Y, X_hat = (cupy.empty(X.shape, dtype=X.dtype) for _ in range(2))
        inv_std = cupy.empty((m, 1), dtype=sum_dtype(X))
        launch_rows(
            "standardize_forward",
            X.dtype,
            (X, scaler, intercept, X_hat, inv_std, Y, m, width, 1, width, eps, True),
            *(m, width),
        )
        return Y, X_hat, inv_std

    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]:
        m, width = dY.shape
        dX = cupy.empty(dY.shape, dtype=dY.dtype)
        launch_rows(
            "standardize_backward",
            dY.dtype,
            (dY, X_hat, scaler, inv_std, dX, m, width, 1, width, True),
            *(m, width),
        )
        return (dX, *_parameter_gradients(_gradient_sums(dY, X_hat), dY.dtype))


def _spans(rows: int, channels: int) -> tuple[int, int, int, int]:
    """(width, blocks across, rows of a span, spans) for the sums of batchnorm.cu."""
    width, across, down = column_blocks(rows, channels, table.KERNELS["column_moments"].block)
    span = -(-rows // down)
    return width, across, span, -(-rows // span)  # none of the spans is empty


def _gradient_sums(dY: Array, X_hat: Array) -> Array:
    """The columns' sums of dY and, after those, of dY * X_hat, in the type sums are kept in."""
    rows, channels = dY.shape
    if not dY.size:
        return cupy.zeros(2 * channels, dtype=sum_dtype(dY))
    width, across, span, parts = _spans(rows, channels)
    sums = cupy.empty((parts, 2 * channels), dtype=sum_dtype(dY))
    args = (dY, X_hat, sums, rows, channels, width, span)
    index = table.index_for(dY.size, sums.size)
    launch("gradient_sums", dY.dtype, (across, parts), args, index)
    if parts == 1:
        return sums.reshape(-1)
    total = cupy.empty(2 * channels, dtype=sums.dtype)
    block = table.KERNELS["column_sums"].block
    width, across, _ = column_blocks(1, 2 * channels, block)
    # a thread counts past the last row by the height of a block
    index = table.index_for(sums.size, parts + block)
    args = (sums, total, parts, 2 * channels, width)
    launch("column_sums", sums.dtype, (across, 1), args, index)
    return total


def _parameter_gradients(sums: Array, dtype: Any) -> tuple[Array, Array]:
    """dscaler and dintercept."""
    sums, channels = sums.astype(dtype, copy=False), sums.size // 2
    return sums[channels:], sums[:channels]
