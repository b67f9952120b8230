"""numpy-ml's helper functions: padding, im2col, convolutions as plain functions, minibatches.

Same names, argument order, layouts and return values as in numpy-ml; they run on NumPy and CuPy
arrays. Layers do not use them: `gpulayers.ops` has faster layouts. Pads may be ints, tuples, lists
and array-library integers everywhere, and ``"same"`` / ``"causal"`` where a size is known (numpy-ml
fails on some of these).

Shared argument names: `stride` is an int (or one per axis), `dilation` counts the zeros between a
kernel's taps (one less than PyTorch's). `pad` is an int, (rows, cols), (top, bottom, left, right)
or ``"same"``; in 1-D an int, (left, right), ``"same"`` or ``"causal"``. ``"same"`` keeps the size
of the input for any stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpulayers import _spec, random
from gpulayers._padding import (
    calc_pad_dims_1D,
    calc_pad_dims_2D,
    dilate,
    pad1D,
    pad2D,
    rank,
)
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.initializers import (
    calc_fan,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    truncated_normal,
)
from gpulayers.ops import _checks as check
from gpulayers.ops import conv
from gpulayers.ops._product import product
from gpulayers.ops.window import Window

__all__ = [
    "calc_conv_out_dims",
    "calc_fan",
    "calc_pad_dims_1D",
    "calc_pad_dims_2D",
    "col2im",
    "conv1D",
    "conv2D",
    "conv2D_naive",
    "deconv2D_naive",
    "dilate",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "im2col",
    "minibatch",
    "pad1D",
    "pad2D",
    "truncated_normal",
]


def minibatch(X: Array, batchsize: int = 256, shuffle: bool = True) -> tuple[Iterator[Array], int]:
    """Split the examples into batches.

    Parameters
    ----------
    X : array (n_ex, ...)
    batchsize : int >= 1
    shuffle : bool
        Draw the order from the default generator (`gpulayers.random.seed`).

    Returns
    -------
    batches : iterator over index arrays, on X's backend, to be used as ``X[batch]``
        The last one may be short.
    n_batches : int

    Raises
    ------
    ParameterError
        If batchsize is no positive integer, or shuffle no bool.
    DTypeError
        If X is no array.
    ShapeError
        If X has no axes.
    """
    size = _spec.integer("minibatch", "batchsize", batchsize, 1)
    shuffle = _spec.flag("minibatch", "shuffle", shuffle)
    check.array("minibatch", "X", X)
    xp = xp_of(X)
    if X.ndim == 0:
        raise ShapeError("minibatch: X must have shape (n_ex, ...), got ()")
    n = X.shape[0]
    order = xp.asarray(random.default_generator().permutation(n)) if shuffle else xp.arange(n)
    return (order[i : i + size] for i in range(0, n, size)), -(-n // size)


# ---- convolution


def calc_conv_out_dims(
    X_shape: tuple[int, ...],
    W_shape: tuple[int, ...],
    stride: int = 1,
    pad: Any = 0,
    dilation: int = 0,
) -> tuple[int, ...]:
    """Return the output shape of a convolution.

    Parameters
    ----------
    X_shape : (n_ex, l_in, in_ch) or (n_ex, rows, cols, in_ch)
    W_shape : (fw, in_ch, out_ch) or (fr, fc, in_ch, out_ch)

    Returns
    -------
    (n_ex, l_out, out_ch) or (n_ex, out_rows, out_cols, out_ch)

    Raises
    ------
    ShapeError
        If the ranks or channels do not fit, or the kernel exceeds the padded input.
    ParameterError
    """
    name = "calc_conv_out_dims"
    _channels(name, X_shape, W_shape)
    if len(X_shape) == 3:
        n_ex, l_in, _ = X_shape
        window = Window.make_1d(W_shape[0], stride, pad, dilation, l_in, name)
        return n_ex, window.output_size(1, l_in, name)[1], W_shape[-1]
    n_ex, rows, cols, _ = X_shape
    window = Window.make(tuple(W_shape[:2]), stride, pad, dilation, (rows, cols), name)
    return n_ex, *window.output_size(rows, cols, name), W_shape[-1]


def im2col(
    X: Array, W_shape: tuple[int, ...], pad: Any, stride: int, dilation: int = 0
) -> tuple[Array, tuple[int, int, int, int]]:
    """Unroll the windows of images into columns, numpy-ml's layout.

    Parameters
    ----------
    X : (n_ex, rows, cols, in_ch), floating
    W_shape : (fr, fc, in_ch, out_ch)

    Returns
    -------
    X_col : (in_ch * fr * fc, out_rows * out_cols * n_ex)
        ``X_col[(k*fr + i)*fc + j, (r*out_cols + c)*n_ex + m]`` is what tap (i, j) of output pixel
        (r, c) sees in channel k of example m: channels slowest in a column, examples fastest along
        a row. (`gpulayers.ops.conv.im2col` has the layout that copies whole runs of memory.)
    pad : (top, bottom, left, right)

    Raises
    ------
    ShapeError, ParameterError, DTypeError
    """
    check.array("im2col", "X", X)
    window = _window("im2col", X.shape, W_shape, stride, pad, dilation)
    n_ex, rows, cols, in_ch = X.shape
    out = window.output_size(rows, cols)
    taps = conv.im2col(X, window).reshape(n_ex, *out, *window.kernel, in_ch)
    columns = taps.transpose(5, 3, 4, 1, 2, 0)  # (in_ch, fr, fc, out_rows, out_cols, n_ex)
    return columns.reshape(in_ch * window.taps, out[0] * out[1] * n_ex), window.pad


def col2im(
    X_col: Array,
    X_shape: tuple[int, ...],
    W_shape: tuple[int, ...],
    pad: Any,
    stride: int,
    dilation: int = 0,
) -> Array:
    """The adjoint of `im2col`: add every entry to the pixel it was read from.

    Parameters
    ----------
    X_col : (in_ch * fr * fc, out_rows * out_cols * n_ex), floating
    X_shape : (n_ex, rows, cols, in_ch)
    W_shape : (fr, fc, in_ch, out_ch)
    pad : as for `im2col` (numpy-ml takes a 4-tuple only)

    Returns
    -------
    X : (n_ex, in_ch, rows, cols), channels FIRST, as in numpy-ml

    Raises
    ------
    ShapeError, ParameterError, DTypeError
    """
    check.array("col2im", "X_col", X_col)
    window = _window("col2im", X_shape, W_shape, stride, pad, dilation)
    n_ex, rows, cols, in_ch = X_shape
    out = window.output_size(rows, cols)
    expected = (in_ch * window.taps, out[0] * out[1] * n_ex)
    if X_col.shape != expected:
        raise ShapeError(f"col2im: X_col must have shape {expected}, got {X_col.shape}")
    taps = X_col.reshape(in_ch, *window.kernel, *out, n_ex).transpose(5, 3, 4, 1, 2, 0)
    rows_of_taps = taps.reshape(n_ex * out[0] * out[1], window.taps * in_ch)
    X = conv.col2im(rows_of_taps, (n_ex, rows, cols, in_ch), window)
    return X.transpose(0, 3, 1, 2)


def conv2D(X: Array, W: Array, stride: int, pad: Any, dilation: int = 0) -> Array:
    """Convolve images (cross-correlation).

    Parameters
    ----------
    X : (n_ex, rows, cols, in_ch), floating
    W : (fr, fc, in_ch, out_ch), X's dtype

    Returns
    -------
    Z : (n_ex, out_rows, out_cols, out_ch)

    Raises
    ------
    ShapeError, ParameterError, DTypeError, BackendError
    """
    _arrays("conv2D", X, W)
    window = _window("conv2D", X.shape, W.shape, stride, pad, dilation)
    return conv.conv2d_forward(X, W, None, window)


def conv1D(X: Array, W: Array, stride: int, pad: Any, dilation: int = 0) -> Array:
    """Convolve sequences (cross-correlation).

    Parameters
    ----------
    X : (n_ex, l_in, in_ch), floating
    W : (fw, in_ch, out_ch), X's dtype

    Returns
    -------
    Z : (n_ex, l_out, out_ch)

    Raises
    ------
    ShapeError, ParameterError, DTypeError, BackendError
    """
    _arrays("conv1D", X, W)
    rank("conv1D", "X", X.shape, 3, "(n_ex, l_in, in_ch)")
    _channels("conv1D", X.shape, W.shape)
    window = Window.make_1d(W.shape[0], stride, pad, dilation, X.shape[1], "conv1D")
    return conv.conv2d_forward(X[:, None], W[None], None, window)[:, 0]


def conv2D_naive(X: Array, W: Array, stride: int, pad: Any, dilation: int = 0) -> Array:
    """`conv2D` in loops, to read: one output number at a time."""
    _arrays("conv2D_naive", X, W)
    window = _window("conv2D_naive", X.shape, W.shape, stride, pad, dilation)
    (fr, fc), (sr, sc), (dr, dc) = window.kernel, window.stride, window.dilation
    n_ex, rows, cols, _ = X.shape
    out_rows, out_cols = window.output_size(rows, cols)
    xp = xp_of(X, W)

    X_pad, _ = pad2D(X, window.pad)
    Z = xp.zeros((n_ex, out_rows, out_cols, W.shape[3]), dtype=X.dtype)
    for n in range(n_ex):
        for r in range(out_rows):
            for c in range(out_cols):
                for i in range(fr):
                    for j in range(fc):
                        pixel = X_pad[n, r * sr + i * dr, c * sc + j * dc]
                        Z[n, r, c] += (pixel[:, None] * W[i, j]).sum(axis=0)
    return Z


def deconv2D_naive(X: Array, W: Array, stride: int, pad: Any, dilation: int = 0) -> Array:
    """Transposed convolution, tap by tap: every input pixel paints the kernel into the output.

    Equals PyTorch's conv_transpose2d with weight ``W.transpose(2, 3, 0, 1)`` for every padding;
    numpy-ml refuses pads beyond f - 1 and shifts the image when they are uneven.

    Parameters
    ----------
    X : (n_ex, rows, cols, in_ch)
    W : (fr, fc, in_ch, out_ch)
    stride : int
        How far neighbouring pixels are moved apart.
    pad : as everywhere
        Cut off the painted image; ``"same"`` leaves stride * (rows - 1) + 1 rows.

    Returns
    -------
    Z : (n_ex, out_rows, out_cols, out_ch), out = stride * (size - 1) + f_eff - padding

    Raises
    ------
    ShapeError
        If the shapes do not fit or nothing is left of the output.
    ParameterError, DTypeError, BackendError
    """
    name = "deconv2D_naive"
    _arrays(name, X, W)
    rank(name, "X", X.shape, 4, "(n_ex, rows, cols, in_ch)")
    _channels(name, X.shape, W.shape)
    (sr, sc) = Window.make((1, 1), stride, name=name).stride
    n_ex, rows, cols, _ = X.shape
    spread = sr * (rows - 1) + 1, sc * (cols - 1) + 1
    size = spread if isinstance(pad, str) else None
    window = Window.make(tuple(W.shape[:2]), 1, pad, dilation, size, name)
    (fr, fc), (dr, dc), (top, bottom, left, right) = window.kernel, window.dilation, window.pad
    painted = spread[0] + window.span[0] - 1, spread[1] + window.span[1] - 1
    out = painted[0] - top - bottom, painted[1] - left - right
    if rows < 1 or cols < 1 or min(out) < 1:
        raise ShapeError(
            f"{name}: {rows} x {cols} pixels leave an output of {out[0]} x {out[1]} "
            f"(kernel {window.kernel}, stride {(sr, sc)}, pad {window.pad})"
        )

    Z = xp_of(X, W).zeros((n_ex, *painted, W.shape[3]), dtype=X.dtype)
    pixels = X.reshape(-1, X.shape[3])
    for i in range(fr):
        for j in range(fc):
            r, c = i * dr, j * dc
            part = product(pixels, W[i, j]).reshape(n_ex, rows, cols, -1)
            Z[:, r : r + spread[0] : sr, c : c + spread[1] : sc] += part
    return Z[:, top : top + out[0], left : left + out[1]]


# ---- checks


def _arrays(name: str, X: Any, W: Any) -> None:
    check.array(name, "X", X)
    check.array(name, "W", W)
    check.one_library(name, X, W)


def _window(name: str, X_shape: Any, W_shape: Any, stride: Any, pad: Any, dilation: Any) -> Window:
    rank(name, "X", X_shape, 4, "(n_ex, rows, cols, in_ch)")
    _channels(name, X_shape, W_shape)
    kernel, size = tuple(W_shape[:2]), (X_shape[1], X_shape[2])
    return Window.make(kernel, stride, pad, dilation, size, name)


def _channels(name: str, X_shape: Any, W_shape: Any) -> None:
    X, W = _spec.sizes(X_shape), _spec.sizes(W_shape)
    if X is None or W is None or len(X) not in (3, 4) or len(W) != len(X) or W[-2] != X[-1]:
        raise ShapeError(
            f"{name}: expected X (n_ex, ..., in_ch) and W (kernel..., in_ch, out_ch) with 3 or 4 "
            f"axes each, got {X_shape!r} and {W_shape!r}"
        )
