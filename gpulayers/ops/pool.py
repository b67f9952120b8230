"""Max and average pooling over windows of (n, rows, cols, ch).

Source: LeCun et al., "Gradient-based learning applied to document recognition" (1998), section II;
max pooling: Scherer, Muller & Behnke, "Evaluation of pooling operations" (2010).
"""

from __future__ import annotations

from gpulayers.backend import Array, xp_of
from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window

_IMAGE = "(n, rows, cols, ch)"


def max_pool2d_forward(X: Array, window: Window) -> tuple[Array, Array]:
    """The largest value of each window, and where it was.

    Padding counts as minus infinity (numpy-ml pads with zeros, which makes negative borders 0).
    The first of equal values in row-major order wins; NaN wins over numbers, the first of them.

    Parameters
    ----------
    X : (n, rows, cols, ch), floating
    window : Window

    Returns
    -------
    Y : (n, out_rows, out_cols, ch)
    argmax : same shape, uint8 (int32 for windows of more than 256 taps)
        Position of the winner inside its window, ``i * fc + j``.

    Raises
    ------
    ShapeError
        If X is not 4-D, the kernel does not fit, or a window sees only padding (a maximum of
        nothing).
    DTypeError
    """
    check.rank("max_pool2d_forward", "X", X, 4, _IMAGE)
    (X,) = check.same_float("max_pool2d_forward", X=X)
    window.output_size(X.shape[1], X.shape[2], name="max_pool2d_forward")
    if any(window.pad) and window.blind_outputs(X.shape[1], X.shape[2]):
        raise ShapeError(
            f"max_pool2d_forward: with kernel {window.kernel}, stride {window.stride} and padding "
            f"{window.pad} on {X.shape[1]} x {X.shape[2]}, some window sees only padding; "
            "use less padding than the kernel is wide"
        )
    return kernels_for(X).max_pool2d_forward(X, window)


def max_pool2d_backward(dY: Array, argmax: Array, x_shape: Shape4, window: Window) -> Array:
    """Route each output's gradient to the pixel that won: dX[p] = sum of dY over windows p won.

    Parameters
    ----------
    dY : (n, out_rows, out_cols, ch), floating
    argmax : as `max_pool2d_forward` returned it
    x_shape : (n, rows, cols, ch)
    window : Window

    Returns
    -------
    dX : x_shape

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "max_pool2d_backward"
    _check_gradient(name, dY, x_shape, window)
    check.shape(name, "argmax", argmax, dY.shape)
    expected = "uint8" if window.taps <= 256 else "int32"
    if argmax.dtype != expected:
        raise DTypeError(f"{name}: argmax must be {expected}, got {argmax.dtype}")
    (dY,) = check.same_float(name, dY=dY)
    n, rows, cols, ch = x_shape
    kernels = kernels_for(dY, argmax)
    if not argmax.flags.c_contiguous:
        argmax = xp_of(argmax).ascontiguousarray(argmax)
    return kernels.max_pool2d_backward(dY, argmax, (n, rows, cols, ch), window)


def avg_pool2d_forward(X: Array, window: Window) -> Array:
    """The mean of each window; padding counts as zeros (divides by fr * fc always).

    Parameters
    ----------
    X : (n, rows, cols, ch), floating
    window : Window

    Returns
    -------
    Y : (n, out_rows, out_cols, ch)

    Raises
    ------
    ShapeError, DTypeError
    """
    check.rank("avg_pool2d_forward", "X", X, 4, _IMAGE)
    (X,) = check.same_float("avg_pool2d_forward", X=X)
    window.output_size(X.shape[1], X.shape[2], name="avg_pool2d_forward")
    return kernels_for(X).avg_pool2d_forward(X, window)


def avg_pool2d_backward(dY: Array, x_shape: Shape4, window: Window) -> Array:
    """Spread each output's gradient evenly over its window: 1 / (fr * fc) to each pixel.

    Parameters
    ----------
    dY : (n, out_rows, out_cols, ch), floating
    x_shape : (n, rows, cols, ch)
    window : Window

    Returns
    -------
    dX : x_shape

    Raises
    ------
    ShapeError, DTypeError
    """
    _check_gradient("avg_pool2d_backward", dY, x_shape, window)
    (dY,) = check.same_float("avg_pool2d_backward", dY=dY)
    n, rows, cols, ch = x_shape
    return kernels_for(dY).avg_pool2d_backward(dY, (n, rows, cols, ch), window)


def _check_gradient(name: str, dY: Array, x_shape: Shape4, window: Window) -> None:
    if len(x_shape) != 4:
        raise ShapeError(f"{name}: x_shape must be {_IMAGE}, got {tuple(x_shape)}")
    n, rows, cols, ch = x_shape
    check.shape(name, "dY", dY, (n, *window.output_size(rows, cols, name=name), ch))
