"""Convolution on the CPU: which of the algorithms computes what.

Pointwise windows are one product, 3x3 windows over enough channels go through Winograd's
(`_winograd`, many channels `_winograd2d`), also with spacing between the taps (`_spaced`),
everything else is columns in blocks (`_columns`).
"""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Shape4
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.cpu import _columns, _spaced, _winograd, _winograd2d, _winograd_layer
from gpulayers.ops.cpu._blocks import add_bias, column_sums, relu_in_place
from gpulayers.ops.reference.conv import cropped
from gpulayers.ops.window import Window

_FLIP_CHANNELS = 16  # input channels from which the flipped convolution beats col2im


def _pad(X: Array, window: Window) -> Array:
    """`X` with zeros around it; `X` itself when there is no padding."""
    top, _, left, _ = window.pad
    if not any(window.pad):
        return X
    n, rows, cols, ch = X.shape
    padded = workspace.zeros((n, *window.padded_size(rows, cols), ch), X.dtype)
    padded[:, top : top + rows, left : left + cols] = X
    return padded


def _flips(window: Window, ch: int) -> bool:
    """Whether the input gradient is best had as a convolution of dZ with the flipped kernel.

    It saves adding up overlapping columns; with few channels its product is too narrow to pay.
    """
    (span_r, span_c), (top, bottom, left, right) = window.span, window.pad
    return (
        window.stride == (1, 1)
        and ch >= _FLIP_CHANNELS
        and max(top, bottom) < span_r
        and max(left, right) < span_c
    )


def _flipped(W: Array) -> Array:
    """The kernel turned by 180 degrees, input and output channels exchanged."""
    turned = workspace.empty((*W.shape[:2], W.shape[3], W.shape[2]), W.dtype)
    turned[...] = W[::-1, ::-1].transpose(0, 1, 3, 2)
    return turned


def _flipped_window(window: Window) -> Window:
    """The padding that leads from dZ back to the size of X: span - 1 - pad, on each side."""
    (span_r, span_c), (top, bottom, left, right) = window.span, window.pad
    pad = (span_r - 1 - top, span_r - 1 - bottom, span_c - 1 - left, span_c - 1 - right)
    return Window(window.kernel, (1, 1), pad, window.dilation)


class CpuConv:
    """Overrides the convolution products of the reference."""

    def im2col(self, X: Array, window: Window) -> Array:
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        columns = workspace.empty((n * out[0] * out[1], window.taps * ch), X.dtype)
        _columns.copy_windows(_pad(X, window), window, out, columns)
        return columns

    def col2im(
        self, columns: Array, x_shape: Shape4, window: Window, mode: str = "gather"
    ) -> Array:
        n, rows, cols, ch = x_shape
        out = window.output_size(rows, cols)
        columns = columns.reshape(n, *out, *window.kernel, ch)
        padded = workspace.zeros((n, *window.padded_size(rows, cols), ch), sum_dtype(columns))
        _columns.scatter(columns, padded, window)
        return cropped(padded, window, (rows, cols), columns.dtype)

    def bias_grad(self, dZ: Array) -> Array:
        rows = dZ.reshape(-1, dZ.shape[-1])
        if dZ.dtype.itemsize < 4:  # BLAS has no half precision
            return rows.sum(axis=0, dtype=sum_dtype(dZ)).astype(dZ.dtype)
        return column_sums(rows)

    # --------------------------------------------------------------- the layer's three products

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        return convolve(X, W, b, window, rectify=False)

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        if window.is_pointwise:
            ch, out_ch = X.shape[3], dZ.shape[3]
            dW = product(X.reshape(-1, ch).T, dZ.reshape(-1, out_ch))
            return dW.reshape(1, 1, ch, out_ch)
        return (param_grads(X, dZ, window) or _columns.param_grads(X, dZ, window))[0]

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        ch, out_ch = W.shape[2:]
        if window.is_pointwise:
            return product(dZ.reshape(-1, out_ch), W.reshape(ch, out_ch).T).reshape(x_shape)
        if _flips(window, ch):
            return convolve(dZ, _flipped(W), None, _flipped_window(window), rectify=False)
        return _columns.input_grad(dZ, W, x_shape, window)


def convolve(X: Array, W: Array, b: Array | None, window: Window, rectify: bool) -> Array:
    """Z = X * W + b, with max(Z, 0) if `rectify`."""
    ch, out_ch = W.shape[2:]
    if window.is_pointwise:
        Z = product(X.reshape(-1, ch), W.reshape(ch, out_ch))
        if b is not None:
            add_bias(Z, b)
        if rectify:
            relu_in_place(Z)
        return Z.reshape(*X.shape[:3], out_ch)
    dense = _dense(X, out_ch, window)
    if dense is not None:
        parts = _spaced.apart(X, window.dilation)
        return _spaced.together(convolve(parts, W, b, dense, rectify), window.dilation)
    way = _way(X, out_ch, window)
    Z = None if way is None else _winograd_layer.forward(way, X, W, b, window, rectify)
    return _columns.forward(X, W, b, window, rectify) if Z is None else Z


def _way(X: Array, out_ch: int, window: Window) -> Any:
    """Winograd's algorithm that convolves `X` the fastest; None where none of them does."""
    return next((way for way in (_winograd2d, _winograd) if way.serves(X, out_ch, window)), None)


def _dense(X: Array, out_ch: int, window: Window) -> Window | None:
    """The window without spacing between its taps on the parts of `X` of which `_spaced` tells, if
    Winograd's algorithm serves there."""
    dense = _spaced.dense_window(window, X.shape[1:3])
    if dense is None:
        return None
    parts = X.reshape(_spaced.shape_apart(X.shape, window.dilation))  # of their size alone
    return None if _way(parts, out_ch, dense) is None else dense


def param_grads(X: Array, dZ: Array, window: Window) -> tuple[Array, Array] | None:
    """(dW, db) by Winograd's algorithm; None where it does not serve."""
    dense = _dense(X, dZ.shape[3], window)
    if dense is not None:
        apart = _spaced.apart
        return param_grads(apart(X, window.dilation), apart(dZ, window.dilation), dense)
    way = _way(X, dZ.shape[3], window)
    return None if way is None else _winograd_layer.weight_grad(way, X, dZ, window)


def all_grads(X: Array, dZ: Array, W: Array, window: Window) -> tuple[Array, Array, Array] | None:
    """(dX, dW, db) by Winograd's algorithm; None where it does not serve."""
    ch, out_ch = W.shape[2:]
    dense = _dense(X, out_ch, window)
    if dense is not None:
        apart = _spaced.apart
        gradients = all_grads(apart(X, window.dilation), apart(dZ, window.dilation), W, dense)
        if gradients is None:
            return None
        dX, dW, db = gradients
        return _spaced.together(dX, window.dilation), dW, db
    if not _flips(window, ch):
        return None
    back = _flipped_window(window)
    way = _way(dZ, ch, back)
    if way is None or way is not _way(X, out_ch, window):
        return None
    return _winograd_layer.gradients(way, X, dZ, _flipped(W), back)
