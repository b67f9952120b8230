"""Convolution in C: direct for any window, Winograd's F(4x4, 3x3) where it is faster.

Winograd's (kernel 3 x 3, stride 1, any spacing, float32 only) saves up to three quarters of the
multiplications and rounds more: results differ from those in float64 by at most 2e-5 of the largest
of them, for normally distributed numbers. A tile of it mixes its 6 x 6 inputs, so when a result is
not finite everything is computed again directly, and NaN and infinities reach just the outputs that
see them.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.compiled.product import product_into
from gpulayers.ops.cpu import Cpu
from gpulayers.ops.cpu.conv import CpuConv
from gpulayers.ops.window import Window

__all__ = [
    "CompiledConv",
    "conv2d_forward_into",
    "conv2d_input_grad_into",
    "conv2d_weight_grad_into",
    "pointwise_grads_into",
]

_forward = bind("gl_conv_forward", "pppppn", ctypes.c_int)
_input_grad = bind("gl_conv_input_grad", "pppp", ctypes.c_int)
_weight_grad = bind("gl_conv_weight_grad", "ppppp", ctypes.c_int)
_pointwise_grads = bind("gl_pointwise_grads", "ppppppp", ctypes.c_int)
_winograd_forward = bind("gl_winograd_forward", "pppppn", ctypes.c_int)
_winograd_input_grad = bind("gl_winograd_input_grad", "pppp", ctypes.c_int)
_winograd_weight_grad = bind("gl_winograd_weight_grad", "ppppp", ctypes.c_int)
_column_sums = bind("gl_column_sums", "ppii", ctypes.c_int)
_NOT_FINITE = 2  # what _input_grad says of such weights, and _winograd_... of such results
_WINOGRAD_CHANNELS = 8  # fewer leave too little between its transforms to save


@lru_cache(maxsize=1024)
def _described(x_shape: Shape4, out_ch: int, window: Window) -> Array:
    """The numbers of `conv_t` in src/conv.h."""
    n, rows, cols, ch = x_shape
    (top, _, left, _), out = window.pad, window.output_size(rows, cols)
    numbers = (
        *(n, rows, cols, ch, *out, out_ch),
        *(*window.kernel, *window.stride, top, left, *window.dilation),
    )
    return np.array(numbers, dtype=np.int64)


@lru_cache(maxsize=1024)
def _by_winograd(x_shape: Shape4, out_ch: int, window: Window) -> bool:
    """Whether F(4x4, 3x3) is faster: enough channels, and not mostly the padding of its tiles."""
    if (window.kernel, window.stride) != ((3, 3), (1, 1)):
        return False
    n, ch = x_shape[0], x_shape[3]
    tiles, used = 16, 1
    for size, spacing in zip(window.output_size(*x_shape[1:3]), window.dilation, strict=True):
        tiles *= -(-size // (4 * spacing)) * spacing
        used *= size
    return n > 0 and min(ch, out_ch) >= _WINOGRAD_CHANNELS and 2 * used >= tiles


def _check(status: int, name: str) -> None:
    if status:
        raise MemoryError(f"{name}: no memory for packed weights or a padded image")


def conv2d_forward_into(
    X: Array, W: Array, b: Array | None, window: Window, out: Array, relu: bool = False
) -> None:
    """Write the convolution into `out`, max(Z, 0) of it with `relu`.

    In float32 a 3 x 3 convolution of stride 1 may be Winograd's, whose error is at most 2e-5 of the
    largest result for normally distributed numbers; so are the two gradients.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), float32 or float64, C-contiguous as all the others
    W : (fr, fc, in_ch, out_ch)
    b : (out_ch,) or None
    out : (n, out_rows, out_cols, out_ch)

    Raises
    ------
    MemoryError
    """
    ch, out_ch = W.shape[2:]
    if window.is_pointwise:
        product_into(X.reshape(-1, ch), W.reshape(ch, out_ch), out.reshape(-1, out_ch), bias=b,
                     relu=relu)  # fmt: skip
        return
    numbers = _described(X.shape, out_ch, window)
    status = _NOT_FINITE
    if X.dtype == np.float32 and _by_winograd(X.shape, out_ch, window):
        status = _winograd_forward(X.dtype, X, W, b, out, numbers, relu)
    if status == _NOT_FINITE:
        status = _forward(X.dtype, X, W, b, out, numbers, relu)
    _check(status, "conv2d_forward")


def conv2d_input_grad_into(dZ: Array, W: Array, window: Window, out: Array) -> None:
    """Write the gradient with respect to the input into `out`, (n, rows, cols, in_ch).

    Parameters
    ----------
    dZ : (n, out_rows, out_cols, out_ch), float32 or float64, C-contiguous as all the others
    W : (fr, fc, in_ch, out_ch)

    Raises
    ------
    MemoryError
    """
    ch, out_ch = W.shape[2:]
    if window.is_pointwise:
        product_into(
            dZ.reshape(-1, out_ch), W.reshape(ch, out_ch), out.reshape(-1, ch), transpose_b=True
        )
        return
    numbers, status = _described(out.shape, out_ch, window), _NOT_FINITE
    if dZ.dtype == np.float32 and _by_winograd(out.shape, out_ch, window):
        status = _winograd_input_grad(dZ.dtype, dZ, W, out, numbers)
    if status == _NOT_FINITE:
        status = _input_grad(dZ.dtype, dZ, W, out, numbers)
    if status == _NOT_FINITE:  # NumPy's way has no padding zeros for an infinity to meet
        np.copyto(out, Cpu().conv2d_input_grad(dZ, W, out.shape, window))
        return
    _check(status, "conv2d_input_grad")


def conv2d_weight_grad_into(
    X: Array, dZ: Array, window: Window, dW: Array, db: Array | None = None
) -> None:
    """Write the gradients with respect to weights and bias into `dW` and `db`.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), float32 or float64, C-contiguous as all the others
    dZ : (n, out_rows, out_cols, out_ch)
    dW : (fr, fc, in_ch, out_ch)
    db : (out_ch,) or (1, out_ch), optional

    Raises
    ------
    MemoryError
    """
    numbers, status = _described(X.shape, dZ.shape[3], window), _NOT_FINITE
    if X.dtype == np.float32 and _by_winograd(X.shape, dZ.shape[3], window):
        status = _winograd_weight_grad(X.dtype, X, dZ, dW, db, numbers)
    if status == _NOT_FINITE:
        status = _weight_grad(X.dtype, X, dZ, dW, db, numbers)
    _check(status, "conv2d_weight_grad")


def pointwise_grads_into(
    X: Array, dZ: Array, W: Array, window: Window, dX: Array, dW: Array, db: Array
) -> None:
    """Write all gradients of a pointwise convolution (`Window.is_pointwise`), in one pass over dZ.

    Parameters
    ----------
    X, dX : (n, rows, cols, in_ch), float32 or float64, C-contiguous as all the others
    dZ : (n, rows, cols, out_ch)
    W, dW : (1, 1, in_ch, out_ch)
    db : (out_ch,) or (1, out_ch)

    Raises
    ------
    MemoryError
    """
    numbers = _described(X.shape, W.shape[3], window)
    _check(_pointwise_grads(X.dtype, X, dZ, W, dX, dW, db, numbers), "conv2d_grads")


class CompiledConv(CpuConv):
    """Overrides the convolution products and the bias gradient."""

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        if X.dtype not in DTYPES:
            return super().conv2d_forward(X, W, b, window)
        out = window.output_size(X.shape[1], X.shape[2])
        Z = workspace.empty((X.shape[0], *out, W.shape[3]), X.dtype)
        conv2d_forward_into(X, W, b, window, Z)
        return Z

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        if X.dtype not in DTYPES:
            return super().conv2d_weight_grad(X, dZ, window)
        dW = workspace.empty((*window.kernel, X.shape[3], dZ.shape[3]), X.dtype)
        conv2d_weight_grad_into(X, dZ, window, dW)
        return dW

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        if dZ.dtype not in DTYPES:
            return super().conv2d_input_grad(dZ, W, x_shape, window)
        dX = workspace.empty(x_shape, dZ.dtype)
        conv2d_input_grad_into(dZ, W, window, dX)
        return dX

    def bias_grad(self, dZ: Array) -> Array:
        if dZ.dtype not in DTYPES:
            return super().bias_grad(dZ)
        db = workspace.empty(dZ.shape[-1:], dZ.dtype)
        cols = dZ.shape[-1]
        rows = dZ.size // cols if cols else 0
        _check(_column_sums(dZ.dtype, dZ, db, rows, cols), "bias_grad")
        return db
