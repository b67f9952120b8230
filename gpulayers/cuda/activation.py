"""Bias and activation on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.cuda.fusible import Formula
from gpulayers.errors import BackendError, suggest
from gpulayers.ops._protocol import Activation
from gpulayers.ops.reference import Reference


def activation_arguments(kernel: Formula) -> tuple[int, float, float]:
    """Return (number, alpha, beta) for the kernels of an activation's ``kernel`` entry.

    Raises
    ------
    BackendError
        If the kernels have no activation of that name.
    """
    name, alpha, beta = kernel
    if name not in table.ACTIVATIONS:
        raise BackendError(
            f"no CUDA code for the activation {name!r}, expected one of {table.ACTIVATIONS}"
            + suggest(name, table.ACTIVATIONS)
        )
    return table.ACTIVATIONS.index(name), alpha, beta


def value(Z: Array, formula: Formula) -> Array:
    """Return act(Z)."""
    Y = cupy.empty(Z.shape, dtype=Z.dtype)
    args = (Z, Y, Z.size, *activation_arguments(formula))
    launch_elements("activation_forward", Z.dtype, Z.size, args, table.index_for(Z.size))
    return Y


def backward_by_value(dY: Array, Y: Array, formula: Formula) -> Array:
    """Return dZ of Y = act(Z), for an activation that is told by its value."""
    dZ = cupy.empty(Y.shape, dtype=Y.dtype)
    args = (dY, Y, dZ, Y.size, *activation_arguments(formula))
    index = table.index_for(Y.size)
    launch_elements("activation_backward_by_value", Y.dtype, Y.size, args, index)
    return dZ


class CudaActivation(Reference):
    """A user's own activation (`act.kernel` None) takes the array formulas instead."""

    def bias_activation(self, Z: Array, b: Array | None, act: Activation) -> Array:
        if act.kernel is None:
            return super().bias_activation(Z, b, act)
        index = table.index_for(Z.size)
        if act.kernel[0] == "identity":
            if b is not None:
                launch_elements("bias_add", Z.dtype, Z.size, (Z, b, Z.size, Z.shape[-1]), index)
            return Z
        if b is None:
            return value(Z, act.kernel)
        Y = cupy.empty(Z.shape, dtype=Z.dtype)
        args = (Z, b, Y, Z.size, Z.shape[-1], *activation_arguments(act.kernel))
        launch_elements("bias_activation", Z.dtype, Z.size, args, index)
        return Y

    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array:
        if act.kernel is None or act.kernel[0] == "identity":
            return super().activation_backward(dY, Z, act)
        dZ = cupy.empty(Z.shape, dtype=Z.dtype)
        args = (dY, Z, dZ, Z.size, *activation_arguments(act.kernel))
        launch_elements("activation_backward", Z.dtype, Z.size, args, table.index_for(Z.size))
        return dZ
