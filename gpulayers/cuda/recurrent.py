"""A step of simple, long short-term memory and gated recurrent networks on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.activation import CudaActivation, activation_arguments
from gpulayers.cuda.compile import launch_elements
from gpulayers.ops._protocol import Activation
from gpulayers.ops.reference.recurrent import slopes_from_values


class CudaRecurrent(CudaActivation):
    """The element-wise part; the products are the layer's.

    The kernels for gates know Tanh and Sigmoid; other activations take the array formulas.
    """

    def rnn_step_forward(
        self,
        projected: Array,
        recurrent: Array,
        ba: Array,
        bx: Array,
        act: Activation,
        A: Array | None,
    ) -> tuple[Array, Array]:
        if act.kernel is None:
            return super().rnn_step_forward(projected, recurrent, ba, bx, act, A)
        Z = cupy.empty(recurrent.shape, dtype=recurrent.dtype)
        if A is None:
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
        self, dA: Array, accumulator: Array | None, Z: Array, act: Activation, dZ: Array | None
    ) -> Array:
        if act.kernel is None or (accumulator is None and dZ is not None):
            return super().rnn_step_backward(dA, accumulator, Z, act, dZ)
        if accumulator is None:
            return self.activation_backward(dA, Z, act)
        if dZ is None:
            dZ = cupy.empty(Z.shape, dtype=Z.dtype)
        args = (dA, accumulator, Z, dZ, Z.size, *activation_arguments(act.kernel))
        launch_elements("rnn_step_backward", Z.dtype, Z.size, args, table.index_for(Z.size))
        return dZ

    def lstm_step_forward(
        self,
        gates: Array,
        recurrent: Array,
        bias: Array,
        C_prev: Array,
        act: Activation,
        gate: Activation,
        C: Array,
        A: Array,
    ) -> Array | None:
        if not slopes_from_values(act, gate):
            return super().lstm_step_forward(gates, recurrent, bias, C_prev, act, gate, C, A)
        args = (gates, recurrent, bias, C_prev, C, A, C.size, C.shape[-1])
        _launch("lstm_step_forward", C, args)
        return None

    def lstm_step_backward(
        self,
        dA: Array,
        dA_next: Array,
        dC_next: Array,
        Z: Array | None,
        gates: Array,
        C_prev: Array,
        C: Array,
        act: Activation,
        gate: Activation,
        dZ: Array,
    ) -> Array:
        if Z is not None:
            return super().lstm_step_backward(
                dA, dA_next, dC_next, Z, gates, C_prev, C, act, gate, dZ
            )
        dC_prev = cupy.empty(C.shape, dtype=C.dtype)
        arrays = (dA, dA_next, dC_next, gates, C_prev, C, dZ, dC_prev)
        _launch("lstm_step_backward", C, (*arrays, C.size, C.shape[-1]))
        return dC_prev

    def gru_step_forward(
        self,
        gates: Array,
        recurrent: Array,
        bias: Array,
        A_prev: Array,
        act: Activation,
        gate: Activation,
        M: Array,
        A: Array,
    ) -> Array | None:
        if not slopes_from_values(act, gate):
            return super().gru_step_forward(gates, recurrent, bias, A_prev, act, gate, M, A)
        args = (gates, recurrent, bias, A_prev, M, A, A.size, A.shape[-1])
        _launch("gru_step_forward", A, args)
        return None

    def gru_step_backward(
        self,
        dA: Array,
        dA_next: Array,
        Z: Array | None,
        gates: Array,
        M: Array,
        A_prev: Array,
        act: Activation,
        gate: Activation,
        dZ: Array,
    ) -> Array:
        if Z is not None:
            return super().gru_step_backward(dA, dA_next, Z, gates, M, A_prev, act, gate, dZ)
        dA_prev = cupy.empty(M.shape, dtype=M.dtype)
        args = (dA, dA_next, gates, M, A_prev, dZ, dA_prev, M.size, M.shape[-1])
        _launch("gru_step_backward", M, args)
        return dA_prev


def _launch(name: str, state: Array, args: tuple[object, ...]) -> None:
    """One thread an element of the state; the gates, the largest arrays, have 4 times as many."""
    launch_elements(name, state.dtype, state.size, args, table.index_for(4 * state.size))
