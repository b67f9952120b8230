"""One step of simple, long short-term memory and gated recurrent networks, forward and back."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops._protocol import Activation


def slopes_from_values(act: Activation, gate: Activation) -> bool:
    """Whether tanh' = 1 - tanh^2 and sigmoid' = sigmoid (1 - sigmoid) spare the pre-activations."""
    kernels = act.kernel, gate.kernel
    return [None if k is None else k[0] for k in kernels] == ["tanh", "sigmoid"]


class ReferenceRecurrent:
    """The element-wise part of a step; the products stand in `gpulayers.layers`."""

    def rnn_step_forward(
        self,
        projected: Array,
        recurrent: Array,
        ba: Array,
        bx: Array,
        act: Activation,
        A: Array | None,
    ) -> tuple[Array, Array]:
        # Z_t = A_{t-1} Waa + ba + X_t Wax + bx;  A_t = act(Z_t)
        Z = recurrent + ba + projected + bx
        if A is None:
            return Z, act.fn(Z)
        A[...] = act.fn(Z)
        return Z, A

    def rnn_step_backward(
        self, dA: Array, accumulator: Array | None, Z: Array, act: Activation, dZ: Array | None
    ) -> Array:
        # A_t is used twice: by the loss (dA) and by step t+1 (the accumulator); gradients add
        total = dA if accumulator is None else dA + accumulator
        if dZ is None:
            return total * act.grad(Z)
        dZ[...] = total * act.grad(Z)
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
        # [Z_f, Z_u, Z_c, Z_o] = X_t W + A_{t-1} W_a + b
        # C_t = gate(Z_f) * C_{t-1} + gate(Z_u) * act(Z_c);  A_t = gate(Z_o) * act(C_t)
        gates += recurrent
        gates += bias
        Z = None if slopes_from_values(act, gate) else gates.copy()
        G_fu, C_new, G_o = _lstm_blocks(gates)
        G_fu[...] = gate.fn(G_fu)
        C_new[...] = act.fn(C_new)
        G_o[...] = gate.fn(G_o)
        G_f, G_u = _halves(G_fu)
        C[...] = G_f * C_prev + G_u * C_new
        A[...] = G_o * act.fn(C)
        return Z

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
        G_fu, C_new, G_o = _lstm_blocks(gates)
        G_f, G_u = _halves(G_fu)
        act_C = act.fn(C)
        if Z is None:
            slope_fu, slope_c, slope_o = G_fu * (1 - G_fu), 1 - C_new * C_new, G_o * (1 - G_o)
            slope_C = 1 - act_C * act_C
        else:
            Z_fu, Z_c, Z_o = _lstm_blocks(Z)
            slope_fu, slope_c, slope_o = gate.grad(Z_fu), act.grad(Z_c), gate.grad(Z_o)
            slope_C = act.grad(C)
        slope_f, slope_u = _halves(slope_fu)

        dA_t = dA + dA_next  # A_t goes to the loss and to step t+1; gradients add
        dC_t = dC_next + dA_t * G_o * slope_C  # C_t goes to A_t and to step t+1
        dZ_fu, dZ_c, dZ_o = _lstm_blocks(dZ)
        dZ_f, dZ_u = _halves(dZ_fu)
        dZ_f[...] = dC_t * C_prev * slope_f
        dZ_u[...] = dC_t * C_new * slope_u
        dZ_c[...] = dC_t * G_u * slope_c
        dZ_o[...] = dA_t * act_C * slope_o
        return dC_t * G_f

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
        # M = A_{t-1} W_m + b_m;  G_z, G_r = gate(Z_z), gate(Z_r);  N = act(Z_n + G_r * M)
        # A_t = (1 - G_z) * N + G_z * A_{t-1}
        n_out = A.shape[1]
        N, G_zr = gates[:, :n_out], gates[:, n_out:]
        gates += bias[: 3 * n_out]
        G_zr += recurrent[:, : 2 * n_out]
        M[...] = recurrent[:, 2 * n_out :] + bias[3 * n_out :]
        by_value = slopes_from_values(act, gate)
        Z_zr = None if by_value else G_zr.copy()
        G_zr[...] = gate.fn(G_zr)
        G_z, G_r = _halves(G_zr)
        N += G_r * M
        Z = None
        if Z_zr is not None:
            Z = gates.copy()
            Z[:, n_out:] = Z_zr
        N[...] = act.fn(N)
        A[...] = (1 - G_z) * N + G_z * A_prev
        return Z

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
        n_out = M.shape[1]
        N, G_zr = gates[:, :n_out], gates[:, n_out:]
        G_z, G_r = _halves(G_zr)
        if Z is None:
            slope_n, slope_zr = 1 - N * N, G_zr * (1 - G_zr)
        else:
            slope_n, slope_zr = act.grad(Z[:, :n_out]), gate.grad(Z[:, n_out:])
        slope_z, slope_r = _halves(slope_zr)

        # dM = dZ_n * G_r; W_m takes that back to A_{t-1}, which besides gets dA_t * G_z directly
        dA_t = dA + dA_next
        dZ_n = dA_t * (1 - G_z) * slope_n
        dZ[:, :n_out] = dZ_n
        dZ[:, n_out : 2 * n_out] = dA_t * (A_prev - N) * slope_z
        dZ[:, 2 * n_out : 3 * n_out] = dZ_n * M * slope_r
        dZ[:, 3 * n_out :] = dZ_n * G_r
        return dA_t * G_z


def _halves(blocks: Array) -> tuple[Array, Array]:
    middle = blocks.shape[1] // 2
    return blocks[:, :middle], blocks[:, middle:]


def _lstm_blocks(Z: Array) -> tuple[Array, Array, Array]:
    """Views of the forget and update gates together, the candidate, the output gate."""
    n_out = Z.shape[1] // 4
    return Z[:, : 2 * n_out], Z[:, 2 * n_out : 3 * n_out], Z[:, 3 * n_out :]
