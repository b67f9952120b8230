"""Recurrent networks with gates over whole sequences on the CPU; see `sequence` beside this file.

The weights of gates are taken negative, so that a gate is 1 / (1 + exp(what the product gives)).
"""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._kernels import Activation
from gpulayers.ops._sequence import SIDE_BY_SIDE, SequenceGradients, Trace, Weights
from gpulayers.ops.cpu.sequence import (
    CpuSequence,
    States,
    accumulators_of,
    backwards,
    blocks_back,
    gradients,
    is_cut,
    new_like,
    over_examples,
    project,
    states_of,
)
from gpulayers.ops.reference.recurrent import slopes_from_values

_TALL = 8  # rows of a step's product from which its matrix may be read for each step anew


class CpuGated(CpuSequence):
    """Tanh with Sigmoid; other activations take the steps one by one."""

    # ---- long short-term memory

    def lstm_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        if not slopes_from_values(act, gate) or X.itemsize == 2:
            return super().lstm_forward(X, first, mask, weights, act, gate)
        h = len(weights.recurrent)
        A, C = states_of(X, first, weights, 2)
        sign = np.repeat(np.array([-1, -1, 1, -1], X.dtype), h)  # of gates: exp(-Z) is wanted
        W_a = np.multiply(weights.recurrent, sign, out=new_like(weights.recurrent))
        W_x = np.multiply(weights.input, sign, out=new_like(weights.input))
        gates = workspace.empty((*C[1:].shape[:2], 4 * h), X.dtype)
        products = _StepProducts(X, W_a, W_x, weights.biases[0] * sign, A, gates)
        seen = workspace.empty(C[1:].shape, X.dtype)  # tanh(C_t)

        def share(_: int, part: slice) -> None:
            free, product = new_like(gates[0, part]), new_like(C[0, part])
            candidate = new_like(product)
            for t in range(len(X)):
                g, c, a, tanh_c = gates[t, part], C[t + 1, part], A[t + 1, part], seen[t, part]
                products.of(t, part, free)
                np.tanh(g[:, 2 * h : 3 * h], out=candidate)
                _logistic_of_negative(g)  # the candidate goes along: all numbers side by side
                g[:, 2 * h : 3 * h] = candidate
                np.multiply(g[:, :h], C[t, part], out=c)
                np.multiply(g[:, h : 2 * h], candidate, out=product)
                np.add(c, product, out=c)
                np.tanh(c, out=tanh_c)
                np.multiply(g[:, 3 * h :], tanh_c, out=a)
                if mask is not None:
                    np.copyto(c, C[t, part], where=~mask[t, part])
                    np.copyto(a, A[t, part], where=~mask[t, part])

        with np.errstate(over="ignore"):
            over_examples(gates, share)
        return Trace(X, mask, (A, C), (gates, None, seen))

    def lstm_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        gate: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients:
        (gates, _, seen), mask, X = trace.kept, trace.mask, trace.X
        if not isinstance(seen, SIDE_BY_SIDE):
            return super().lstm_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        C, h = trace.states[1], len(weights.recurrent)
        dZ = new_like(gates)
        accumulators = accumulators_of(trace, last)

        def factors(steps: slice, part: slice, to_C: Array) -> None:
            """What dC_t (first three blocks) and dA_t (the last) are multiplied by; dA_t becomes
            one of C_t by `to_C`."""
            g, d, tanh_c = gates[steps, part], dZ[steps, part], seen[steps, part]
            update, candidate, output = (g[..., k * h : (k + 1) * h] for k in (1, 2, 3))
            np.multiply(g, g, out=d)
            np.subtract(g, d, out=d)  # G (1 - G)
            np.multiply(d[..., :h], C[:-1][steps, part], out=d[..., :h])
            np.multiply(d[..., h : 2 * h], candidate, out=d[..., h : 2 * h])
            np.multiply(d[..., 3 * h :], tanh_c, out=d[..., 3 * h :])
            slope = d[..., 2 * h : 3 * h]
            np.multiply(candidate, candidate, out=slope)
            np.subtract(1, slope, out=slope)
            np.multiply(slope, update, out=slope)
            np.multiply(tanh_c, tanh_c, out=to_C)
            np.subtract(1, to_C, out=to_C)
            np.multiply(to_C, output, out=to_C)

        def share(_: int, part: slice) -> None:
            total, dC = (a[part] for a in accumulators)
            back, product = new_like(total), new_like(total)
            # [dC, dC, dC, dA], so that all blocks are multiplied at once, all numbers side by side
            spread = new_like(gates[0, part])
            blocks = spread.reshape(len(spread), 4, h)
            spread_dC, dA_t = blocks[:, :3], blocks[:, 3]
            for steps in blocks_back(dZ[:, part]):
                to_C = new_like(seen[steps, part])
                factors(steps, part, to_C)
                each = backwards(steps), dZ[steps, part][::-1], to_C[::-1]
                for t, d, slope in zip(*each, strict=True):
                    if is_cut(t, len(X), truncate):
                        total.fill(0)
                        dC.fill(0)
                    if dA is None:
                        np.copyto(dA_t, total)
                    else:
                        np.add(dA[t, part], total, out=dA_t)
                    later = dC if mask is None else dC.copy()
                    np.multiply(dA_t, slope, out=product)
                    np.add(dC, product, out=dC)
                    np.copyto(spread_dC, dC[:, None])
                    np.multiply(d, spread, out=d)
                    np.multiply(dC, gates[t, part, :h], out=dC)
                    if mask is None:
                        np.dot(d, weights.recurrent.T, out=total)
                    else:
                        np.copyto(d, 0, where=~mask[t, part])
                        np.copyto(dC, later, where=~mask[t, part])
                        np.dot(d, weights.recurrent.T, out=back)
                        np.copyto(total, back, where=mask[t, part])

        over_examples(gates, share)
        return gradients(trace, dZ, weights, params, inputs, accumulators)

    # ---- gated recurrent unit

    def gru_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        if not slopes_from_values(act, gate) or X.itemsize == 2:
            return super().gru_forward(X, first, mask, weights, act, gate)
        h = len(weights.recurrent)
        (A,) = states_of(X, first, weights, 1)
        # the input's columns are [n, z, r], the state's [z, r, M]
        sign = np.repeat(np.array([1, -1, -1], X.dtype), h)
        W_a, W_x = new_like(weights.recurrent), new_like(weights.input)
        np.multiply(weights.recurrent, np.roll(sign, -h), out=W_a)
        np.multiply(weights.input, sign, out=W_x)
        bias, ba = weights.biases[0][: 3 * h] * sign, weights.biases[0][3 * h :]
        gates = workspace.empty((*A[1:].shape[:2], 3 * h), X.dtype)
        project(X, W_x, bias, gates)
        M = workspace.empty(A[1:].shape, X.dtype)

        def share(_: int, part: slice) -> None:
            from_state, product = new_like(gates[0, part]), new_like(A[0, part])
            for t in range(len(X)):
                g, m, old, new = gates[t, part], M[t, part], A[t, part], A[t + 1, part]
                candidate, zr = g[:, :h], g[:, h:]
                np.matmul(old, W_a, out=from_state)
                np.add(zr, from_state[:, : 2 * h], out=zr)
                np.add(from_state[:, 2 * h :], ba, out=m)
                _logistic_of_negative(zr)
                np.multiply(zr[:, h:], m, out=product)
                np.add(candidate, product, out=candidate)
                np.tanh(candidate, out=candidate)
                np.subtract(old, candidate, out=product)  # (1 - z) N + z A = N + z (A - N)
                np.multiply(product, zr[:, :h], out=product)
                np.add(candidate, product, out=new)
                if mask is not None:
                    np.copyto(new, old, where=~mask[t, part])

        with np.errstate(over="ignore"):
            over_examples(gates, share)
        return Trace(X, mask, (A,), (gates, M, None))

    def gru_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        gate: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients:
        (gates, M, Z), (A,), mask, X = trace.kept, trace.states, trace.mask, trace.X
        if Z is not None or not isinstance(M, SIDE_BY_SIDE) or X.itemsize == 2:
            return super().gru_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        h = len(weights.recurrent)
        dZ = workspace.empty((*A[1:].shape[:2], 4 * h), X.dtype)
        (accumulator,) = accumulators_of(trace, last)

        def factors(steps: slice, part: slice) -> None:
            """What dA_t is multiplied by: [dZ_n, dZ_z, dZ_r, dM] are all multiples of it."""
            N, G_z, G_r = (gates[steps, part, k * h : (k + 1) * h] for k in range(3))
            n, z, r, m = (dZ[steps, part, k * h : (k + 1) * h] for k in range(4))
            np.multiply(N, N, out=n)
            np.subtract(1, n, out=n)
            np.subtract(1, G_z, out=z)
            np.multiply(n, z, out=n)  # (1 - z) (1 - N^2)
            np.multiply(z, G_z, out=z)
            np.subtract(A[:-1][steps, part], N, out=m)
            np.multiply(z, m, out=z)  # (A_{t-1} - N) z (1 - z)
            np.multiply(n, G_r, out=m)  # n r
            np.subtract(1, G_r, out=r)
            np.multiply(r, m, out=r)
            np.multiply(r, M[steps, part], out=r)  # n M r (1 - r)

        def share(_: int, part: slice) -> None:
            total = accumulator[part]
            back, dA_t = new_like(total), new_like(total)
            for steps in blocks_back(dZ[:, part]):
                factors(steps, part)
                for t, d in zip(backwards(steps), dZ[steps, part][::-1], strict=True):
                    if is_cut(t, len(X), truncate):
                        total.fill(0)
                    blocks = d.reshape(len(d), 4, h)
                    if dA is None:
                        np.copyto(dA_t, total)
                    else:
                        np.add(dA[t, part], total, out=dA_t)
                    np.multiply(blocks, dA_t[:, None], out=blocks)
                    if mask is not None:
                        np.copyto(d, 0, where=~mask[t, part])
                    np.dot(d[:, h:], weights.recurrent.T, out=back)
                    np.multiply(dA_t, gates[t, part, h : 2 * h], out=dA_t)
                    if mask is None:
                        np.add(back, dA_t, out=total)
                    else:
                        np.add(back, dA_t, out=back)
                        np.copyto(total, back, where=mask[t, part])

        over_examples(gates, share)
        return gradients(trace, dZ, weights, params, inputs, (accumulator,))


def _logistic_of_negative(z: Array) -> None:
    """1 / (1 + exp(z)), in place; where exp overflows it is 0."""
    np.exp(z, out=z)
    np.add(z, 1, out=z)
    np.divide(1, z, out=z)


class _StepProducts:
    """Z_t = A_{t-1} W_a + X_t W_x + bias, one step after another.

    With few inputs that is one product, of rows [A_{t-1}, X_t, 1]: four blocks of pre-activations
    would have left the cache before their step. Otherwise what comes from the inputs is there
    before the first step.
    """

    def __init__(self, X: Array, W_a: Array, W_x: Array, bias: Array, A: Array, Z: Array) -> None:
        n_t, n, n_in = X.shape
        h, width = W_a.shape
        self.A, self.Z, self.W, self.h = A, Z, W_a, h
        self.rows: Array | None = None
        if n < _TALL or n_in > h:
            project(X, W_x, bias, Z)
            return
        rows = self.rows = workspace.empty((n_t, n, h + n_in + 1), X.dtype)
        rows[:, :, h:-1], rows[:, :, -1] = X, 1
        self.W = workspace.empty((h + n_in + 1, width), X.dtype)
        self.W[:h], self.W[h:-1], self.W[-1] = W_a, W_x, bias

    def of(self, t: int, part: slice, free: Array) -> None:
        """Write Z_t of some examples; `free` is an array of its size to work in."""
        if self.rows is None:
            np.matmul(self.A[t, part], self.W, out=free)
            np.add(self.Z[t, part], free, out=self.Z[t, part])
        else:
            row = self.rows[t, part]
            row[:, : self.h] = self.A[t, part]
            np.matmul(row, self.W, out=self.Z[t, part])
