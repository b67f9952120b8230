"""Convolution (cross-correlation, as everywhere in deep learning) and its gradients.

Images are (n, rows, cols, ch), weights (fr, fc, in_ch, out_ch). With X_pad the padded input,

    Z[n, r, c, o] = b[o] + sum_{i,j,k} X_pad[n, r*sr + i*dr, c*sc + j*dc, k] * W[i, j, k, o]

Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016);
im2col: Chellapilla, Puri & Simard (2006). A 1-D convolution is one on images of a single row; a
transposed convolution ("deconvolution") is `conv2d_input_grad` used as a forward pass.
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window

_IMAGE = "(n, rows, cols, ch)"


def im2col(X: Array, window: Window) -> Array:
    """Unroll the windows of an image batch into rows.

    Parameters
    ----------
    X : (n, rows, cols, ch), floating
    window : Window

    Returns
    -------
    columns : (n * out_rows * out_cols, fr * fc * ch)
        Row (n, r, c) holds what output pixel (r, c) of example n sees, tap by tap, channels
        fastest; so ``columns @ W.reshape(fr * fc * ch, out_ch)`` is the convolution.

    Raises
    ------
    ShapeError, DTypeError
    """
    check.rank("im2col", "X", X, 4, _IMAGE)
    (X,) = check.same_float("im2col", X=X)
    window.output_size(X.shape[1], X.shape[2], name="im2col")
    return kernels_for(X).im2col(X, window)


def col2im(columns: Array, x_shape: Shape4, window: Window, mode: str = "gather") -> Array:
    """The adjoint of `im2col`: add every entry of `columns` to the pixel it was read from.

    <im2col(X), C> = <X, col2im(C)> for all X and C, which is why it carries gradients back.

    Parameters
    ----------
    columns : (n * out_rows * out_cols, fr * fc * ch), floating
    x_shape : (n, rows, cols, ch)
    window : Window
    mode : ``"gather"`` or ``"scatter"``
        How a GPU does it: each pixel gathers its entries (deterministic, the default), or each
        entry is added atomically (order, and so the last bits, vary from run to run). On NumPy
        both are the same.

    Returns
    -------
    X : x_shape

    Raises
    ------
    ShapeError, DTypeError
    ParameterError
        For an unknown mode.
    """
    if mode not in ("gather", "scatter"):
        raise ParameterError(f"col2im: mode must be 'gather' or 'scatter', got {mode!r}")
    if len(x_shape) != 4:
        raise ShapeError(f"col2im: x_shape must be {_IMAGE}, got {tuple(x_shape)}")
    n, rows, cols, ch = x_shape
    out_rows, out_cols = window.output_size(rows, cols, name="col2im")
    check.shape("col2im", "columns", columns, (n * out_rows * out_cols, window.taps * ch))
    (columns,) = check.same_float("col2im", columns=columns)
    return kernels_for(columns).col2im(columns, (n, rows, cols, ch), window, mode)


def conv2d_forward(X: Array, W: Array, b: Array | None, window: Window) -> Array:
    """Convolve.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), floating
    W : (fr, fc, in_ch, out_ch), X's dtype
    b : (out_ch,) or None
    window : Window

    Returns
    -------
    Z : (n, out_rows, out_cols, out_ch)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    _check_weights("conv2d_forward", X, W, window)
    if b is not None:
        check.shape("conv2d_forward", "b", b, (W.shape[3],))
    X, W, b = check.same_float("conv2d_forward", X=X, W=W, b=b)
    return kernels_for(X).conv2d_forward(X, W, b, window)


def conv2d_input_grad(dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
    """Gradient with respect to the input: dX = col2im(dZ W^T); also the transposed convolution.

    Parameters
    ----------
    dZ : (n, out_rows, out_cols, out_ch), floating
    W : (fr, fc, in_ch, out_ch)
    x_shape : (n, rows, cols, in_ch)
    window : Window

    Returns
    -------
    dX : x_shape

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "conv2d_input_grad"
    check.rank(name, "W", W, 4, "(fr, fc, in_ch, out_ch)")
    if len(x_shape) != 4:
        raise ShapeError(f"{name}: x_shape must be {_IMAGE}, got {tuple(x_shape)}")
    n, rows, cols, ch = x_shape
    out = window.output_size(rows, cols, name=name)
    check.shape(name, "dZ", dZ, (n, *out, W.shape[3]))
    check.shape(name, "W", W, (*window.kernel, ch, W.shape[3]))
    dZ, W = check.same_float(name, dZ=dZ, W=W)
    return kernels_for(dZ).conv2d_input_grad(dZ, W, (n, rows, cols, ch), window)


def conv2d_weight_grad(X: Array, dZ: Array, window: Window) -> Array:
    """Gradient with respect to the weights: dW = im2col(X)^T dZ.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), floating
    dZ : (n, out_rows, out_cols, out_ch)
    window : Window

    Returns
    -------
    dW : (fr, fc, in_ch, out_ch), summed over the examples

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    X, dZ = _check_gradient("conv2d_weight_grad", X, dZ, window)
    return kernels_for(X).conv2d_weight_grad(X, dZ, window)


def conv2d_param_grads(X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
    """Gradients with respect to weights and bias, `conv2d_weight_grad` and `bias_grad`, in one pass
    over dZ where that is faster.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), floating
    dZ : (n, out_rows, out_cols, out_ch)
    window : Window

    Returns
    -------
    dW : (fr, fc, in_ch, out_ch)
    db : (out_ch,)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    X, dZ = _check_gradient("conv2d_param_grads", X, dZ, window)
    return kernels_for(X).conv2d_param_grads(X, dZ, window)


def conv2d_grads(X: Array, dZ: Array, W: Array, window: Window) -> tuple[Array, Array, Array]:
    """All gradients, those of `conv2d_input_grad` and `conv2d_param_grads`, in one pass over dZ
    where that is faster.

    Parameters
    ----------
    X : (n, rows, cols, in_ch), floating
    dZ : (n, out_rows, out_cols, out_ch)
    W : (fr, fc, in_ch, out_ch)
    window : Window

    Returns
    -------
    dX : X's shape
    dW : (fr, fc, in_ch, out_ch)
    db : (out_ch,)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "conv2d_grads"
    X, dZ = _check_gradient(name, X, dZ, window)
    check.shape(name, "W", W, (*window.kernel, X.shape[3], dZ.shape[3]))
    X, dZ, W = check.same_float(name, X=X, dZ=dZ, W=W)
    return kernels_for(X).conv2d_grads(X, dZ, W, window)


def bias_grad(dZ: Array) -> Array:
    """Gradient with respect to a bias on the last axis: the sum over all other axes.

    Parameters
    ----------
    dZ : (..., out_ch), floating, at least 2-D

    Returns
    -------
    db : (out_ch,)

    Raises
    ------
    ShapeError, DTypeError
    """
    check.array("bias_grad", "dZ", dZ)
    if dZ.ndim < 2:
        raise ShapeError(f"bias_grad: dZ must have shape (..., out_ch), got {dZ.shape}")
    (dZ,) = check.same_float("bias_grad", dZ=dZ)
    return kernels_for(dZ).bias_grad(dZ)


def _check_weights(name: str, X: Array, W: Array, window: Window) -> None:
    check.rank(name, "X", X, 4, _IMAGE)
    check.rank(name, "W", W, 4, "(fr, fc, in_ch, out_ch)")
    check.shape(name, "W", W, (*window.kernel, X.shape[3], W.shape[3]))
    window.output_size(X.shape[1], X.shape[2], name=name)


def _check_gradient(name: str, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
    check.rank(name, "X", X, 4, _IMAGE)
    check.rank(name, "dZ", dZ, 4, "(n, out_rows, out_cols, out_ch)")
    out = window.output_size(X.shape[1], X.shape[2], name=name)
    check.shape(name, "dZ", dZ, (X.shape[0], *out, dZ.shape[3]))
    X, dZ = check.same_float(name, X=X, dZ=dZ)
    return X, dZ
