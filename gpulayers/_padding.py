"""numpy-ml's padding helpers; public through `gpulayers.utils`, which explains the arguments."""

from __future__ import annotations

from typing import Any

from gpulayers import _spec
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops.window import Window


def calc_pad_dims_2D(
    X_shape: tuple[int, ...],
    out_dim: tuple[int, int],
    kernel_shape: tuple[int, int],
    stride: int,
    dilation: int = 0,
) -> tuple[int, int, int, int]:
    """Return the padding with which a convolution gives an output of `out_dim`.

    Along each axis the total is stride * (out - 1) + f_eff - size with f_eff = f (d + 1) - d; an
    odd pixel goes to the bottom and right.

    Parameters
    ----------
    X_shape : (n_ex, rows, cols, in_ch)
    out_dim : (out_rows, out_cols)
    kernel_shape : (fr, fc)
    stride, dilation : int

    Returns
    -------
    (top, bottom, left, right)

    Raises
    ------
    ShapeError
        If X_shape is not 4-D, or the output is smaller than the unpadded one.
    ParameterError
        For an argument of the wrong type or range.
    """
    name = "calc_pad_dims_2D"
    rank(name, "X_shape", X_shape, 4, "(n_ex, rows, cols, in_ch)")
    if not isinstance(out_dim, (tuple, list)) or len(out_dim) != 2:
        raise ParameterError(f"{name}: out_dim must be (out_rows, out_cols), got {out_dim!r}")
    window = Window.make(kernel_shape, stride, 0, dilation, name=name)
    return (
        *_pad_for(name, X_shape[1], out_dim[0], window.span[0], window.stride[0]),
        *_pad_for(name, X_shape[2], out_dim[1], window.span[1], window.stride[1]),
    )


def calc_pad_dims_1D(
    X_shape: tuple[int, ...],
    l_out: int,
    kernel_width: int,
    stride: int,
    dilation: int = 0,
    causal: bool = False,
) -> tuple[int, int]:
    """Return the padding with which a 1-D convolution gives an output of length `l_out`.

    Parameters
    ----------
    X_shape : (n_ex, l_in, in_ch)
    l_out, kernel_width, stride, dilation : int
    causal : bool
        Put all of it on the left.

    Returns
    -------
    (left, right)

    Raises
    ------
    ShapeError, ParameterError
        As `calc_pad_dims_2D`.
    """
    name = "calc_pad_dims_1D"
    rank(name, "X_shape", X_shape, 3, "(n_ex, l_in, in_ch)")
    window = Window.make_1d(kernel_width, stride, 0, dilation, name=name)
    left, right = _pad_for(name, X_shape[1], l_out, window.span[1], window.stride[1])
    return (left + right, 0) if _spec.flag(name, "causal", causal) else (left, right)


def _pad_for(name: str, size: int, out: Any, span: int, stride: int) -> tuple[int, int]:
    total = stride * (_spec.integer(name, "the output size", out, 1) - 1) + span - size
    if total <= -stride:
        raise ShapeError(
            f"{name}: no padding makes {size} pixels give {out} (the kernel spans {span}, stride "
            f"{stride}): without padding there are {(size - span) // stride + 1} already"
        )
    total = max(total, 0)  # up to stride - 1 pixels at the end may go unseen
    return total // 2, total - total // 2


def pad2D(
    X: Array,
    pad: Any,
    kernel_shape: tuple[int, int] | None = None,
    stride: int | None = None,
    dilation: int = 0,
) -> tuple[Array, tuple[int, int, int, int]]:
    """Put zeros around images.

    Parameters
    ----------
    X : (n_ex, rows, cols, in_ch)
    pad : int, (rows, cols), (top, bottom, left, right) or ``"same"``
        ``"same"`` needs `kernel_shape` and `stride`.

    Returns
    -------
    X_pad : (n_ex, rows + top + bottom, cols + left + right, in_ch), a new array
    pad : (top, bottom, left, right)

    Raises
    ------
    ShapeError, ParameterError, DTypeError
    """
    check.array("pad2D", "X", X)
    rank("pad2D", "X", X.shape, 4, "(n_ex, rows, cols, in_ch)")
    xp = xp_of(X)
    if isinstance(pad, str) and (kernel_shape is None or stride is None):
        raise ParameterError(f"pad2D: pad={pad!r} needs kernel_shape and stride")
    # without 'same' the padding is that of any kernel
    kernel, step = (
        ((1, 1), 1) if kernel_shape is None else (kernel_shape, 1 if stride is None else stride)
    )
    size = (X.shape[1], X.shape[2]) if isinstance(pad, str) else None
    top, bottom, left, right = Window.make(kernel, step, pad, dilation, size, "pad2D").pad
    padded = xp.pad(X, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return padded, (top, bottom, left, right)


def pad1D(
    X: Array,
    pad: Any,
    kernel_width: int | None = None,
    stride: int | None = None,
    dilation: int = 0,
) -> tuple[Array, tuple[int, int]]:
    """Put zeros before and after sequences.

    Parameters
    ----------
    X : (n_ex, l_in, in_ch)
    pad : int, (left, right), ``"same"`` or ``"causal"``
        The last two need `kernel_width` and `stride`.

    Returns
    -------
    X_pad : (n_ex, l_in + left + right, in_ch), a new array
    pad : (left, right)

    Raises
    ------
    ShapeError, ParameterError, DTypeError
    """
    check.array("pad1D", "X", X)
    rank("pad1D", "X", X.shape, 3, "(n_ex, l_in, in_ch)")
    xp = xp_of(X)
    named = isinstance(pad, str)
    if named and (kernel_width is None or stride is None):
        raise ParameterError(f"pad1D: pad={pad!r} needs kernel_width and stride")
    kernel, step = (
        (1, 1) if kernel_width is None else (kernel_width, 1 if stride is None else stride)
    )
    length = X.shape[1] if named else None
    _, _, left, right = Window.make_1d(kernel, step, pad, dilation, length, "pad1D").pad
    return xp.pad(X, ((0, 0), (left, right), (0, 0))), (left, right)


def dilate(X: Array, d: int) -> Array:
    """Insert `d` rows and columns of zeros between neighbours.

    Parameters
    ----------
    X : (n_ex, rows, cols, in_ch)
    d : int >= 0

    Returns
    -------
    (n_ex, rows + d (rows - 1), cols + d (cols - 1), in_ch), a new array

    Raises
    ------
    ShapeError, ParameterError, DTypeError
    """
    check.array("dilate", "X", X)
    rank("dilate", "X", X.shape, 4, "(n_ex, rows, cols, in_ch)")
    xp = xp_of(X)
    step = _spec.integer("dilate", "d", d, 0) + 1
    n_ex, rows, cols, in_ch = X.shape
    out = max(step * (rows - 1) + 1, 0), max(step * (cols - 1) + 1, 0)
    spread = xp.zeros((n_ex, *out, in_ch), dtype=X.dtype)
    spread[:, ::step, ::step] = X
    return spread


def rank(name: str, what: str, shape: Any, ndim: int, axes: str) -> None:
    sizes = _spec.sizes(shape)
    if sizes is None or len(sizes) != ndim:
        raise ShapeError(f"{name}: {what} must be {axes}, got {shape!r}")
