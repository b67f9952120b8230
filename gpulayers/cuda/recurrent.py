"""A step of a simple recurrent network on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.activation import CudaActivation, activation_arguments
from gpulayers.cuda.compile import launch_elements
from gpulayers.ops._kernels import Activation


class CudaRecurrent(CudaActivation):
    """The element-wise part; the products are the layer's."""

    def rnn_step_forward(
        self, projected: Array, recurrent: Array, ba: Array, bx: Array, act: Activation
    ) -> tuple[Array, Array]:
        if act.kernel is None:
            return super().rnn_step_forward(projected, recurrent, ba, bx, act)
        Z = cupy.empty(recurrent.shape, dtype=recurrent.dtype)
        A = cupy.empty(recurrent.shape, dtype=recurrent.dtype)
        launch_elements(
            "rnn_step_forward",
            Z.dtype,
            Z.size,
            (
                *(projected, recurrent, ba, bx, Z, A, Z.size, Z.shape[-1]),
                *activation_arguments(act.kernel),
            ),
            table.index_for(Z.size),
        )
        return Z, A

    def rnn_step_backward(
        self, dA: Array, accumulator: Array | None, Z: Array, act: Activation
    ) -> Array:
        if act.kernel is None:
            return super().rnn_step_backward(dA, accumulator, Z, act)
        if accumulator is None:
            return self.activation_backward(dA, Z, act)
        dZ = cupy.empty(Z.shape, dtype=Z.dtype)
        args = (dA, accumulator, Z, dZ, Z.size, *activation_arguments(act.kernel))
        launch_elements("rnn_step_backward", Z.dtype, Z.size, args, table.index_for(Z.size))
        return dZ
