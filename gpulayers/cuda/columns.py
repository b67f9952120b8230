"""Convolution on a GPU by a matrix of windows: im2col and col2im kernels around matrix products.

Source: Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing" (2006), section 3.
"""

from __future__ import annotations

import math
from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.geometry import column_blocks, window_arguments
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window


def _vector(dtype: Any, channels: int, *arrays: Array) -> int:
    """Elements a thread moves at once: 16 bytes, if the channels divide and the pointers align."""
    step = table.VECTOR_BYTES // dtype.itemsize
    aligned = all(a.data.ptr % table.VECTOR_BYTES == 0 for a in arrays)
    return step if channels % step == 0 and aligned else 1


class CudaColumns(Reference):
    """im2col, its adjoint, the convolution products and the bias gradient."""

    def im2col(self, X: Array, window: Window) -> Array:
        n, rows, cols, channels = X.shape
        out = window.output_size(rows, cols)
        columns = cupy.empty((n * math.prod(out), window.taps * channels), dtype=X.dtype)
        step = _vector(X.dtype, channels, X, columns)
        launch_elements(
            "im2col" if step == 1 else "im2col_vector",
            X.dtype,
            columns.size // step,
            (X, columns, columns.size // step, *window_arguments(X.shape, window)),
            table.index_for(columns.size, X.size),
        )
        return columns

    def col2im(
        self, columns: Array, x_shape: Shape4, window: Window, mode: str = "gather"
    ) -> Array:
        if mode == "scatter":
            return self._scatter(columns, x_shape, window)
        X = cupy.empty(x_shape, dtype=columns.dtype)
        step = _vector(X.dtype, x_shape[3], X, columns)
        launch_elements(
            "col2im_gather" if step == 1 else "col2im_gather_vector",
            X.dtype,
            X.size // step,
            (columns, X, X.size // step, *window_arguments(x_shape, window)),
            table.index_for(columns.size, X.size),
        )
        return X

    def _scatter(self, columns: Array, x_shape: Shape4, window: Window) -> Array:
        # the atomics add in the arithmetic type, so half precision is rounded once, at the end
        wide = cupy.float64 if columns.dtype == cupy.float64 else cupy.float32
        X = cupy.zeros(x_shape, dtype=wide)
        launch_elements(
            "col2im_scatter",
            columns.dtype,
            columns.size,
            (columns, X, columns.size, *window_arguments(x_shape, window)),
            table.index_for(columns.size, X.size),
        )
        return X.astype(columns.dtype, copy=False)

    def _unrolled(self, X: Array, window: Window) -> Array:
        """The columns of X: X itself where each output sees just its own pixel."""
        return X.reshape(-1, X.shape[3]) if window.is_pointwise else self.im2col(X, window)

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        n, rows, cols, _ = X.shape
        out_ch = W.shape[3]
        Z = product(self._unrolled(X, window), W.reshape(-1, out_ch))
        if b is not None:
            self._add_bias(Z, b)
        return Z.reshape(n, *window.output_size(rows, cols), out_ch)

    def _add_bias(self, Z: Array, b: Array) -> None:
        args = (Z, b, Z.size, Z.shape[-1])
        launch_elements("bias_add", Z.dtype, Z.size, args, table.index_for(Z.size))

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        out_ch = W.shape[3]
        columns = product(dZ.reshape(-1, out_ch), W.reshape(-1, out_ch).T)
        if window.is_pointwise:
            return columns.reshape(x_shape)
        return self.col2im(columns, x_shape, window)

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        channels, out_ch = X.shape[3], dZ.shape[3]
        shape = (*window.kernel, channels, out_ch)
        if dZ.size == 0:
            return cupy.zeros(shape, dtype=X.dtype)
        dW = product(self._unrolled(X, window).T, dZ.reshape(-1, out_ch))
        return dW.reshape(shape)

    def bias_grad(self, dZ: Array) -> Array:
        channels = dZ.shape[-1]
        if dZ.size == 0:
            return cupy.zeros(channels, dtype=dZ.dtype)
        rows = dZ.size // channels
        block = table.KERNELS["column_sums"].block
        width, across, down = column_blocks(rows, channels, block)
        # a thread counts past the last row by one stride of the whole grid
        index = table.index_for(dZ.size, rows + down * block)
        sums = cupy.empty(channels, dtype=dZ.dtype)
        if down == 1:
            launch("column_sums", dZ.dtype, (across, 1), (dZ, sums, rows, channels, width), index)
            return sums
        wide = cupy.float64 if dZ.dtype == cupy.float64 else cupy.float32
        partial = cupy.empty((down, channels), dtype=wide)
        args = (dZ, partial, rows, channels, width)
        launch("column_sums_partial", dZ.dtype, (across, down), args, index)
        args = (partial, sums, down, channels, width)
        launch("column_sums_final", dZ.dtype, (across, 1), args, "int32")
        return sums
