"""Softmax, and softmax with cross-entropy.

Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990);
Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.2.2.3.
"""

from __future__ import annotations

from collections.abc import Callable

from gpulayers.backend import Array, backend_of, xp_of
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for


def softmax_forward(Z: Array, axis: int = -1) -> Array:
    """Y = exp(Z - max) / sum exp(Z - max) along `axis`.

    Parameters
    ----------
    Z : floating, at least 1-D; the axis must not be empty unless the array is
    axis : int

    Returns
    -------
    Y : like Z

    Raises
    ------
    ShapeError, DTypeError
    """
    axis = _axis("softmax_forward", Z, axis)
    rows, back = _as_rows("softmax_forward", Z, axis)
    return back(kernels_for(rows).softmax_forward(rows)) if rows.size else rows.reshape(Z.shape)


def softmax_backward(dY: Array, Y: Array, axis: int = -1) -> Array:
    """dZ = Y * (dY - sum(dY * Y)) along `axis`, the product with the Jacobian diag(y) - y y^T.

    Parameters
    ----------
    dY, Y : arrays of one shape, floating
        Y is the softmax's output.
    axis : int

    Returns
    -------
    dZ : like Y

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    check.array("softmax_backward", "Y", Y)
    check.shape("softmax_backward", "dY", dY, Y.shape)
    axis = _axis("softmax_backward", Y, axis)
    check.same_float("softmax_backward", dY=dY, Y=Y)
    rows_dY, back = _as_rows("softmax_backward", dY, axis)
    rows_Y, _ = _as_rows("softmax_backward", Y, axis)
    if not rows_Y.size:
        return rows_Y.reshape(Y.shape)
    return back(kernels_for(rows_dY, rows_Y).softmax_backward(rows_dY, rows_Y))


def softmax_cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Loss of each example, log(sum_j exp z_j) - z_label, and the probabilities.

    Parameters
    ----------
    logits : (m, classes), floating
    labels : (m,), integer, 0 <= label < classes

    Returns
    -------
    losses : (m,)
    probs : (m, classes)

    Raises
    ------
    ShapeError
    DTypeError
        If logits are not floating or labels not integer.
    ParameterError
        On NumPy, for a label out of range. On a GPU looking would stall the device: there the
        loss of that example is NaN.
    BackendError
    """
    name = "softmax_cross_entropy_forward"
    _check_labels(name, "logits", logits, labels)
    (logits,) = check.same_float(name, logits=logits)
    if logits.shape[1] == 0:
        raise ShapeError(f"{name}: logits need at least one class, got shape {logits.shape}")
    on_host = backend_of(labels) == "numpy"
    if on_host and labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ParameterError(
            f"{name}: labels must be in 0..{logits.shape[1] - 1}, "
            f"got {labels.min()}..{labels.max()}"
        )
    return kernels_for(logits, labels).softmax_cross_entropy_forward(logits, labels)


def softmax_cross_entropy_backward(probs: Array, labels: Array, scale: float = 1.0) -> Array:
    """Gradient of the loss with respect to the logits: (probs - onehot(labels)) * scale.

    Parameters
    ----------
    probs : (m, classes), as the forward pass returned them
    labels : (m,), integer
    scale : float
        1 for the sum of the losses, 1 / m for their mean.

    Returns
    -------
    dlogits : (m, classes)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "softmax_cross_entropy_backward"
    _check_labels(name, "probs", probs, labels)
    (probs,) = check.same_float(name, probs=probs)
    return kernels_for(probs, labels).softmax_cross_entropy_backward(probs, labels, float(scale))


def _axis(name: str, Z: Array, axis: int) -> int:
    check.array(name, "Z", Z)
    if not -Z.ndim <= axis < Z.ndim:
        raise ShapeError(f"{name}: axis {axis} does not exist in an array of shape {Z.shape}")
    return axis % Z.ndim


def _as_rows(name: str, Z: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
    """`Z` as contiguous rows along `axis`, and the way back."""
    (contiguous,) = check.same_float(name, Z=Z)
    if axis == Z.ndim - 1:
        width = Z.shape[-1]
        count = Z.size // width if width else 0

        def reshaped(rows: Array) -> Array:
            return rows.reshape(Z.shape)

        return contiguous.reshape(count, width), reshaped
    xp = xp_of(Z)
    moved = xp.ascontiguousarray(xp.moveaxis(contiguous, axis, -1))
    shape = moved.shape
    rows = moved.reshape(moved.size // shape[-1] if shape[-1] else 0, shape[-1])

    def moved_back(rows: Array) -> Array:
        return xp.ascontiguousarray(xp.moveaxis(rows.reshape(shape), -1, axis))

    return rows, moved_back


def _check_labels(name: str, what: str, scores: Array, labels: Array) -> None:
    check.rank(name, what, scores, 2, "(m, classes)")
    check.array(name, "labels", labels)
    check.one_library(name, scores, labels)
    if labels.dtype.kind not in "iu":
        raise DTypeError(f"{name}: labels must be integers, got {labels.dtype}")
    check.shape(name, "labels", labels, (scores.shape[0],))
