"""Random variations of training images, given the random numbers: crops, flips, squares cut out,
mixtures of two images. They have no backward pass: nothing learns through them.

The draws come from outside (`gpulayers.training.transforms`), so that the same numbers give the
same images on every backend, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError, ParameterError, ShapeError, suggest
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for

__all__ = ["crop", "cut_squares", "flip_columns", "mix"]

_IMAGES = "(n, rows, cols, channels)"
_MODES = ("constant", "reflect")


def crop(
    images: Array,
    tops: Array,
    lefts: Array,
    size: tuple[int, int],
    mode: str = "constant",
    fill: float | Array = 0,
) -> Array:
    """Cut one window out of each image; it may reach over the edge.

    Y[k, i, j] = X[k, tops[k] + i, lefts[k] + j], and beyond the edge `fill` ("constant") or the
    image mirrored at its edge pixel, again and again if need be ("reflect").

    With tops and lefts in -4..4 and the image's own size this is the training crop of He et al.,
    "Deep residual learning for image recognition" (2016), section 4.2.

    Parameters
    ----------
    images : (n, rows, cols, channels), uint8 or floating
    tops, lefts : (n,) integer
        The window's upper left corner in the image; negative is above or left of it.
    size : (rows, cols) of the window, each at least 1
    mode : {"constant", "reflect"}
    fill : number, or array (channels,) of the images' dtype

    Returns
    -------
    Y : (n, *size, channels), a new array

    Raises
    ------
    ShapeError, DTypeError, BackendError, ParameterError
    """
    name = "crop"
    X = _images(name, images)
    tops, lefts = (_vector(name, w, v, X, "iu") for w, v in (("tops", tops), ("lefts", lefts)))
    if mode not in _MODES:
        raise ParameterError(
            f"{name}: mode must be one of {', '.join(_MODES)}, got {mode!r}"
            + suggest(str(mode), _MODES)
        )
    rows, cols = (int(v) for v in size)
    if rows < 1 or cols < 1:
        raise ParameterError(f"{name}: size must be at least 1 x 1, got {rows} x {cols}")
    _pixels(name, X)
    return kernels_for(X).crop(
        X, tops, lefts, (rows, cols), mode == "reflect", _fill(name, fill, X)
    )


def flip_columns(images: Array, chosen: Array) -> Array:
    """Mirror the chosen images left to right: Y[k, i, j] = X[k, i, cols - 1 - j].

    Parameters
    ----------
    images : (n, rows, cols, channels), uint8 or floating
    chosen : (n,) bool

    Returns
    -------
    Y : like `images`, a new array

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "flip_columns"
    X = _images(name, images)
    return kernels_for(X).flip_columns(X, _vector(name, "chosen", chosen, X, "b"))


def cut_squares(
    images: Array, rows: Array, cols: Array, side: int, fill: float | Array = 0
) -> Array:
    """Overwrite a square of each image: cutout.

    The square covers rows r - side // 2 ... r - side // 2 + side - 1 and columns likewise; what
    lies outside the image is left out, so fewer pixels go near the edge.
    (DeVries & Taylor, "Improved regularization of convolutional neural networks with cutout",
    2017, section 3.2)

    Parameters
    ----------
    images : (n, rows, cols, channels), uint8 or floating
    rows, cols : (n,) integer
        Where the square's centre is.
    side : int >= 0
        0 changes nothing.
    fill : number, or array (channels,) of the images' dtype

    Returns
    -------
    Y : like `images`, a new array

    Raises
    ------
    ShapeError, DTypeError, BackendError, ParameterError
    """
    name = "cut_squares"
    X = _images(name, images)
    rows, cols = (_vector(name, w, v, X, "iu") for w, v in (("rows", rows), ("cols", cols)))
    if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < 0:
        raise ParameterError(f"{name}: side must be an integer >= 0, got {side!r}")
    return kernels_for(X).cut_squares(X, rows, cols, int(side), _fill(name, fill, X))


def mix(images: Array, partners: Array, weight: float) -> Array:
    """Blend each image with a partner: Y[k] = weight X[k] + (1 - weight) X[partners[k]].

    (Zhang et al., "mixup: beyond empirical risk minimization", 2018, equation 1 of section 2)

    Parameters
    ----------
    images : (n, ...), floating
    partners : (n,) integer, 0 <= partner < n
    weight : float in [0, 1]

    Returns
    -------
    Y : like `images`, a new array

    Raises
    ------
    ParameterError
        If the weight is out of range; on NumPy also if a partner is (on a GPU that is not looked
        at).
    ShapeError, DTypeError, BackendError
    """
    name = "mix"
    check.array(name, "images", images)
    if images.ndim < 1:
        raise ShapeError(f"{name}: images must have shape (n, ...), got ()")
    (X,) = check.same_float(name, images=images)
    partners = _vector(name, "partners", partners, X, "iu")
    if not 0.0 <= weight <= 1.0:
        raise ParameterError(f"{name}: weight must be in [0, 1], got {weight!r}")
    n = len(X)
    if xp_of(X) is np and n and not 0 <= partners.min() <= partners.max() < n:
        raise ParameterError(
            f"{name}: partners must be in 0..{n - 1}, got {partners.min()}..{partners.max()}"
        )
    return kernels_for(X).mix(X, partners, float(weight))


# ---------------------------------------------------------------------------------------- checks


def _images(op: str, images: Array) -> Array:
    """`images` in one piece, after a look at shape and dtype."""
    check.rank(op, "images", images, 4, _IMAGES)
    if images.dtype != np.uint8 and not is_floating(images.dtype):
        raise DTypeError(f"{op}: images must be uint8 or floating, got {images.dtype}")
    if images.dtype == np.uint8:
        return xp_of(images).ascontiguousarray(images)
    return check.same_float(op, images=images)[0]


def _pixels(op: str, X: Array) -> None:
    if X.shape[0] and not (X.shape[1] and X.shape[2]):
        raise ShapeError(f"{op}: images need at least one row and column, got shape {X.shape}")


def _vector(op: str, name: str, value: Array, X: Array, kinds: str) -> Array:
    """A value for each image, on the images' library; integers become int64."""
    check.array(op, name, value)
    check.one_library(op, X, value)
    if value.dtype.kind not in kinds:
        wanted = "bool" if kinds == "b" else "integers"
        raise DTypeError(f"{op}: {name} must be {wanted}, got {value.dtype}")
    check.shape(op, name, value, (X.shape[0],))
    return value if kinds == "b" else value.astype(np.int64, copy=False)


def _fill(op: str, fill: Any, X: Array) -> Any:
    """A scalar of the images' dtype, or the array given."""
    if isinstance(fill, (list, tuple, Sequence)):
        raise DTypeError(f"{op}: fill must be a number or an array (channels,), got {fill!r}")
    if getattr(fill, "ndim", 0):
        check.one_library(op, X, fill)
        check.shape(op, "fill", fill, (X.shape[3],))
        if fill.dtype != X.dtype:
            raise DTypeError(f"{op}: fill is {fill.dtype}, the images are {X.dtype}")
        return fill
    if X.dtype == np.uint8 and not (0 <= fill <= 255 and fill == int(fill)):
        raise ParameterError(f"{op}: fill for bytes must be an integer in 0..255, got {fill!r}")
    return X.dtype.type(fill)
