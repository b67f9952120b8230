"""One step of a simple recurrent network, forward and back."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops._kernels import Activation


class ReferenceRecurrent:
    """The element-wise part of a step; the products stand in `gpulayers.layers.recurrent`."""

    def rnn_step_forward(
        self, projected: Array, recurrent: Array, ba: Array, bx: Array, act: Activation
    ) -> tuple[Array, Array]:
        # Z_t = A_{t-1} Waa + ba + X_t Wax + bx;  A_t = act(Z_t)
        Z = recurrent + ba + projected + bx
        return Z, act.fn(Z)

    def rnn_step_backward(
        self, dA: Array, accumulator: Array | None, Z: Array, act: Activation
    ) -> Array:
        # A_t is used twice: by the loss (dA) and by step t+1 (the accumulator); gradients add
        total = dA if accumulator is None else dA + accumulator
        return total * act.grad(Z)
