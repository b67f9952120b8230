"""Bias and activation on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.errors import BackendError, suggest
from gpulayers.ops._protocol import Activation
from gpulayers.ops.reference import Reference


def activation_arguments(kernel: tuple[str, float, float]) -> tuple[int, float, float]:
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
        Y = cupy.empty(Z.shape, dtype=Z.dtype)
        numbers = activation_arguments(act.kernel)
        if b is None:
            args = (Z, Y, Z.size, *numbers)
            launch_elements("activation_forward", Z.dtype, Z.size, args, index)
        else:
            args = (Z, b, Y, Z.size, Z.shape[-1], *numbers)
            launch_elements("bias_activation", Z.dtype, Z.size, args, index)
        return Y

    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array:
        if act.kernel is None or act.kernel[0] == "identity":
            return super().activation_backward(dY, Z, act)
        dZ = cupy.empty(Z.shape, dtype=Z.dtype)
        args = (dY, Z, dZ, Z.size, *activation_arguments(act.kernel))
        launch_elements("activation_backward", Z.dtype, Z.size, args, table.index_for(Z.size))
        return dZ
