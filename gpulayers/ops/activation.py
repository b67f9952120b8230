"""Bias and activation together, so that a GPU reads and writes the array once."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._protocol import Activation


def bias_activation(Z: Array, b: Array | None, act: Activation) -> Array:
    """Add the bias to `Z` IN PLACE and return ``act(Z)``.

    Parameters
    ----------
    Z : (..., ch), floating, C-contiguous
        The caller's fresh product; afterwards it holds the pre-activation Z + b.
    b : array of ch elements, or None
    act : activation (`gpulayers.activations`)

    Returns
    -------
    Y : like Z; a new array, but `Z` itself for the identity

    Raises
    ------
    ShapeError
        If b has not ch elements or Z is not C-contiguous (a copy could not be changed in place).
    DTypeError, BackendError
    """
    check.array("bias_activation", "Z", Z)
    if not Z.flags.c_contiguous:
        raise ShapeError("bias_activation: Z must be C-contiguous, it is changed in place")
    if b is not None:
        check.array("bias_activation", "b", b)
        if Z.ndim == 0 or b.size != Z.shape[-1]:
            raise ShapeError(
                f"bias_activation: b must have {Z.shape[-1:]} elements for Z {Z.shape}, "
                f"got {b.shape}"
            )
        b = b.reshape(-1)
    Z, b = check.same_float("bias_activation", Z=Z, b=b)
    return kernels_for(Z).bias_activation(Z, b, act)


def activation_backward(dY: Array, Z: Array, act: Activation) -> Array:
    """Chain rule through an activation: dZ = dY * act'(Z).

    Parameters
    ----------
    dY, Z : arrays of one shape, floating
        Z is the pre-activation.
    act : activation

    Returns
    -------
    dZ : like Z (may be dY itself for the identity)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    check.array("activation_backward", "Z", Z)
    check.shape("activation_backward", "dY", dY, Z.shape)
    dY, Z = check.same_float("activation_backward", dY=dY, Z=Z)
    return kernels_for(dY).activation_backward(dY, Z, act)
