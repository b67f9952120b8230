"""Pooling over any windows of (n, rows, cols, ch)."""

from __future__ import annotations

from ctypes import c_int
from functools import lru_cache

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.cpu.pool import CpuPool
from gpulayers.ops.window import Window

__all__ = [
    "CompiledPool",
    "avg_pool2d_backward_into",
    "avg_pool2d_forward_into",
    "max_pool2d_forward_into",
    "max_pool2d_relu_backward_into",
]

_MOST_TAPS = 256  # a winner is a byte
_MOST_VIEWS = 256  # MOST_VIEWS in src/pool_gradient.c

_max_forward = bind("gl_max_pool_forward", "pppp")
_avg_forward = bind("gl_avg_pool_forward", "ppp")
_max_backward = bind("gl_max_pool_backward", "ppppp", c_int)
_avg_backward = bind("gl_avg_pool_backward", "ppp", c_int)


@lru_cache(maxsize=256)
def _described(x_shape: Shape4, window: Window) -> tuple[Array, Shape4]:
    """The numbers of `window_t` in src/pool.h, and the outputs' shape."""
    n, rows, cols, ch = x_shape
    out_rows, out_cols = window.output_size(rows, cols)
    top, _, left, _ = window.pad
    numbers = (
        *(n, rows, cols, ch, out_rows, out_cols),
        *(*window.kernel, *window.stride, *window.dilation, top, left),
    )
    return np.array(numbers, dtype=np.int64), (n, out_rows, out_cols, ch)


def serves(X: Array, window: Window) -> bool:
    """Whether the max pooling kernels take this array and window."""
    return X.dtype in DTYPES and window.taps <= _MOST_TAPS


def max_pool2d_forward_into(X: Array, window: Window, Y: Array, argmax: Array) -> None:
    """`max_pool2d_forward` into given arrays; float32 or float64, at most 256 taps, unchecked."""
    _max_forward(X.dtype, X, Y, argmax, _described(X.shape, window)[0])


def avg_pool2d_forward_into(X: Array, window: Window, Y: Array) -> None:
    """`avg_pool2d_forward` into a given array; float32 or float64, unchecked."""
    _avg_forward(X.dtype, X, Y, _described(X.shape, window)[0])


def max_pool2d_relu_backward_into(
    dY: Array, argmax: Array, Y: Array | None, dZ: Array, window: Window
) -> None:
    """Chain rule through max pooling of a ReLU: dY * (Y > 0), sent to the pixels that won.

    Y is the pooled output: since ReLU does not change the order, the winner's pre-activation is
    positive where Y is. With ``Y=None`` the pooling alone. float32 or float64, at most 256 taps,
    unchecked; dZ is overwritten.

    Raises
    ------
    MemoryError
    """
    if _max_backward(dY.dtype, dY, argmax, Y, dZ, _described(dZ.shape, window)[0]):
        raise MemoryError("max_pool2d_backward: no memory for the columns' windows")


def avg_pool2d_backward_into(dY: Array, dX: Array, window: Window) -> None:
    """`avg_pool2d_backward` into a given array; float32 or float64, unchecked.

    Raises
    ------
    MemoryError
    """
    if _avg_backward(dY.dtype, dY, dX, _described(dX.shape, window)[0]):
        raise MemoryError("avg_pool2d_backward: no memory for the columns' windows")


class CompiledPool(CpuPool):
    """A vector of channels at a time; gradients gather, so their order is fixed."""

    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]:
        if not serves(X, window):
            return super().max_pool2d_forward(X, window)
        shape = _described(X.shape, window)[1]
        Y, argmax = workspace.empty(shape, X.dtype), workspace.empty(shape, np.uint8)
        max_pool2d_forward_into(X, window, Y, argmax)
        return Y, argmax

    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array:
        if not serves(dY, window):
            return super().max_pool2d_backward(dY, argmax, x_shape, window)
        dX = workspace.empty(x_shape, dY.dtype)
        max_pool2d_relu_backward_into(dY, argmax, None, dX, window)
        return dX

    def avg_pool2d_forward(self, X: Array, window: Window) -> Array:
        if X.dtype not in DTYPES:
            return super().avg_pool2d_forward(X, window)
        Y = workspace.empty(_described(X.shape, window)[1], X.dtype)
        avg_pool2d_forward_into(X, window, Y)
        return Y

    def avg_pool2d_backward(self, dY: Array, x_shape: Shape4, window: Window) -> Array:
        # the kernel lists the windows that see a pixel
        views = min(window.kernel[0], dY.shape[1]) * min(window.kernel[1], dY.shape[2])
        if dY.dtype not in DTYPES or views > _MOST_VIEWS:
            return super().avg_pool2d_backward(dY, x_shape, window)
        dX = workspace.empty(x_shape, dY.dtype)
        avg_pool2d_backward_into(dY, dX, window)
        return dX
