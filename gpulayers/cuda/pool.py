"""Max and average pooling on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.cuda.geometry import window_arguments
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

# the kernels keep the winning tap in a byte
_BYTE_TAPS = 256


class CudaPool(Reference):
    """Backward passes gather: a pixel looks at the windows that hold it, so no atomics."""

    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]:
        if window.taps > _BYTE_TAPS:
            return super().max_pool2d_forward(X, window)
        n, rows, cols, channels = X.shape
        Y = cupy.empty((n, *window.output_size(rows, cols), channels), dtype=X.dtype)
        argmax = cupy.empty(Y.shape, dtype=cupy.uint8)
        launch_elements(
            "max_pool2d_forward",
            X.dtype,
            Y.size,
            (X, Y, argmax, Y.size, *window_arguments(X.shape, window)),
            table.index_for(X.size, Y.size),
        )
        return Y, argmax

    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array:
        if argmax.dtype != cupy.uint8:
            return super().max_pool2d_backward(dY, argmax, x_shape, window)
        dX = cupy.empty(x_shape, dtype=dY.dtype)
        launch_elements(
            "max_pool2d_backward",
            dY.dtype,
            dX.size,
            (dY, cupy.ascontiguousarray(argmax), dX, dX.size, *window_arguments(x_shape, window)),
            table.index_for(dX.size, dY.size),
        )
        return dX

    def avg_pool2d_forward(self, X: Array, window: Window) -> Array:
        n, rows, cols, channels = X.shape
        Y = cupy.empty((n, *window.output_size(rows, cols), channels), dtype=X.dtype)
        launch_elements(
            "avg_pool2d_forward",
            X.dtype,
            Y.size,
            (X, Y, Y.size, *window_arguments(X.shape, window)),
            table.index_for(X.size, Y.size),
        )
        return Y

    def avg_pool2d_backward(self, dY: Array, x_shape: Shape4, window: Window) -> Array:
        dX = cupy.empty(x_shape, dtype=dY.dtype)
        launch_elements(
            "avg_pool2d_backward",
            dY.dtype,
            dX.size,
            (dY, dX, dX.size, *window_arguments(x_shape, window)),
            table.index_for(dX.size, dY.size),
        )
        return dX
