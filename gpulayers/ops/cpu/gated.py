"""Recurrent networks with gates over whole sequences on the CPU; see `sequence` beside this file.

A step computes with examples last, (width, n): a gate is then one piece of memory, which NumPy goes
over several times as fast as over parts of rows, and BLAS shares such a product better between its
threads. Arrays for others have the shape of rows, (n_t, n, width), whatever their memory.

The weights of gates are taken negative, so that a gate is 1 / (1 + exp(what the product gives)).
"""

from __future__ import annotations

import numpy as np

from gpulayers import threads
from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SIDE_BY_SIDE, SequenceGradients, Trace, Weights
from gpulayers.ops.cpu._turned import (
    Gradients,
    Own,
    as_rows,
    is_tall,
    operands,
    operands_by_unit,
    project_turned,
    steps_of,
    turned,
    units_as_rows,
    weights_for,
)
from gpulayers.ops.cpu.sequence import (
    CpuSequence,
    States,
    accumulators_of,
    backwards,
    blocks_back,
    is_cut,
    new_like,
)
from gpulayers.ops.reference.recurrent import slopes_from_values


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
        (n_t, n, _), h = X.shape, len(weights.recurrent)
        stacked = operands(X, h)
        A = stacked[:, :h]
        C = workspace.empty((n_t + 1, h, n), X.dtype)
        gates = workspace.empty((n_t, 4 * h, n), X.dtype)
        products = workspace.empty((n_t, 2 * h, n), X.dtype)  # what C_t is the sum of
        seen = workspace.empty((n_t, h, n), X.dtype)  # tanh(C_t)
        A[0], C[0] = (0, 0) if first is None else (state.T for state in first)
        sign = np.repeat(np.array([-1, -1, 1, -1], X.dtype), h)  # of gates: exp(-Z) is wanted
        bias, at_once = weights.biases[0], is_tall(X)
        inputs = (bias[None], weights.input) if at_once else ()
        W = weights_for(X, sign, weights.recurrent, *inputs)
        free, one = new_like(gates[0]), np.ones((), X.dtype)
        with threads.threaded_blas(), np.errstate(over="ignore"):
            if not at_once:
                project_turned(X, stacked, weights.input, bias, sign, gates)
            for t in range(n_t):
                g, c, a, tanh_c = gates[t], C[t + 1], A[t + 1], seen[t]
                candidate, old, new = g[2 * h : 3 * h], products[t, :h], products[t, h:]
                if at_once:
                    np.dot(W, stacked[t], out=g)
                else:
                    np.dot(W, A[t], out=free)
                    np.add(g, free, out=g)
                _logistic_of_negative(g[: 2 * h], one)
                np.tanh(candidate, out=candidate)
                _logistic_of_negative(g[3 * h :], one)
                np.multiply(g[:h], C[t], out=old)
                np.multiply(g[h : 2 * h], candidate, out=new)
                np.add(old, new, out=c)
                np.tanh(c, out=tanh_c)
                np.multiply(g[3 * h :], tanh_c, out=a)
                if mask is not None:
                    np.copyto(c, C[t], where=~mask[t].T)
                    np.copyto(a, A[t], where=~mask[t].T)
        own = Own(operands_by_unit(stacked), products)
        states = units_as_rows(own.operands[:h]), as_rows(C)
        return Trace(X, mask, states, (as_rows(gates), None, as_rows(seen)), own)

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
        (gates, _, seen), mask = trace.kept, trace.mask
        if not isinstance(seen, SIDE_BY_SIDE):
            return super().lstm_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        (n_t, n, width), C = gates.shape, trace.states[1]
        products = trace.own.products if isinstance(trace.own, Own) else None
        outside = None if dA is None else steps_of(dA)
        collected = Gradients(trace, weights, width, params, inputs)
        accumulators = accumulators_of(trace, last)
        total, dC = (_copy_turned(state) for state in accumulators)
        product, back = new_like(total), new_like(total)
        # [dC, dC, dC, dA] for all blocks to be multiplied at once: NumPy repeats a factor slowly
        spread = workspace.empty((4, *total.shape), total.dtype)
        dA_t, factors = spread[3], spread.reshape(width, n)

        def step(t: int, d: Array, to_C: Array, forget: Array, outside: Array | None) -> None:
            if is_cut(t, n_t, truncate):
                total.fill(0)
                dC.fill(0)
            if outside is None:
                np.copyto(dA_t, total)
            else:
                np.add(outside, total, out=dA_t)
            later = dC if mask is None else dC.copy()
            np.multiply(dA_t, to_C, out=product)
            np.add(dC, product, out=dC)
            np.copyto(spread[:3], dC)
            np.multiply(d, factors, out=d)
            np.multiply(dC, forget, out=dC)
            if mask is None:
                np.dot(weights.recurrent, d, out=total)
            else:
                np.copyto(d, 0, where=~mask[t].T)
                np.copyto(dC, later, where=~mask[t].T)
                np.dot(weights.recurrent, d, out=back)
                np.copyto(total, back, where=mask[t].T)

        with threads.threaded_blas():
            for steps in blocks_back(n_t, n * width):
                g, tanh_c = turned(gates[steps]), turned(seen[steps])
                if products is None:
                    parts = g[:, : 2 * len(total)] * _lstm_others(g, turned(C[steps]))
                else:
                    parts = products[steps]
                d, to_C = _lstm_factors(g, tanh_c, parts)
                each = d[::-1], to_C[::-1], g[::-1, : len(total)], _back_through(outside, steps)
                for t, *of_step in zip(backwards(steps), *each, strict=True):
                    step(t, *of_step)
                collected.take(steps, d)
        for state, end in zip(accumulators, (total, dC), strict=True):
            state[...] = end.T
        return collected.all(accumulators)

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
        (n_t, n, _), h = X.shape, len(weights.recurrent)
        stacked = operands(X, h)
        A = stacked[:, :h]
        A[0] = 0 if first is None else first[0].T
        gates = workspace.empty((n_t, 3 * h, n), X.dtype)
        M = workspace.empty((n_t, h, n), X.dtype)
        # the input's columns are [n, z, r], the state's [z, r, M]
        sign, bias = np.repeat(np.array([1, -1, -1], X.dtype), h), weights.biases[0]
        of_state = np.concatenate([np.zeros(2 * h, X.dtype), bias[3 * h :]])
        W = weights_for(X, np.roll(sign, -h), weights.recurrent, of_state[None])
        from_state, product, one = new_like(gates[0]), new_like(M[0]), np.ones((), X.dtype)
        with threads.threaded_blas(), np.errstate(over="ignore"):
            project_turned(X, stacked, weights.input, bias[: 3 * h], sign, gates)
            for t in range(n_t):
                candidate, zr, m, old, new = gates[t, :h], gates[t, h:], M[t], A[t], A[t + 1]
                np.dot(W, stacked[t, : h + 1], out=from_state)
                np.add(zr, from_state[: 2 * h], out=zr)
                np.copyto(m, from_state[2 * h :])
                _logistic_of_negative(zr, one)
                np.multiply(zr[h:], m, out=product)
                np.add(candidate, product, out=candidate)
                np.tanh(candidate, out=candidate)
                np.subtract(old, candidate, out=product)  # (1 - z) N + z A = N + z (A - N)
                np.multiply(product, zr[:h], out=product)
                np.add(candidate, product, out=new)
                if mask is not None:
                    np.copyto(new, old, where=~mask[t].T)
        own = Own(operands_by_unit(stacked), None)
        states = (units_as_rows(own.operands[:h]),)
        return Trace(X, mask, states, (as_rows(gates), as_rows(M), None), own)

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
        n_t, n, h = M.shape
        outside = None if dA is None else steps_of(dA)
        collected = Gradients(trace, weights, 4 * h, params, inputs)
        (accumulator,) = accumulators_of(trace, last)
        total = _copy_turned(accumulator)
        back, dA_t = new_like(total), new_like(total)
        spread = workspace.empty((4, h, n), X.dtype)  # dA_t four times, as in `lstm_backward`
        factors = spread.reshape(4 * h, n)

        def step(t: int, d: Array, G_z: Array, outside: Array | None) -> None:
            if is_cut(t, n_t, truncate):
                total.fill(0)
            if outside is None:
                np.copyto(dA_t, total)
            else:
                np.add(outside, total, out=dA_t)
            np.copyto(spread, dA_t)
            np.multiply(d, factors, out=d)
            if mask is not None:
                np.copyto(d, 0, where=~mask[t].T)
            np.dot(weights.recurrent, d[h:], out=back)
            np.multiply(dA_t, G_z, out=dA_t)
            if mask is None:
                np.add(back, dA_t, out=total)
            else:
                np.add(back, dA_t, out=back)
                np.copyto(total, back, where=mask[t].T)

        with threads.threaded_blas():
            for steps in blocks_back(n_t, 4 * total.size):
                g = turned(gates[steps])
                d = _gru_factors(g, turned(M[steps]), steps_of(A[steps]))
                each = d[::-1], g[::-1, h : 2 * h], _back_through(outside, steps)
                for t, *of_step in zip(backwards(steps), *each, strict=True):
                    step(t, *of_step)
                collected.take(steps, d)
        accumulator[...] = total.T
        return collected.all((accumulator,))


def _copy_turned(state: Array) -> Array:
    out = workspace.empty(state.shape[::-1], state.dtype)
    out[...] = state.T
    return out


def _back_through(outside: Array | None, steps: slice) -> list[None] | Array:
    """What reaches A_t from outside in these steps, the last first."""
    return [None] * (steps.stop - steps.start) if outside is None else outside[steps][::-1]


def _lstm_others(g: Array, c_old: Array) -> Array:
    """What the forget and the update gates are multiplied by."""
    h = c_old.shape[1]
    return np.concatenate([c_old, g[:, 2 * h : 3 * h]], axis=1)


def _lstm_factors(g: Array, tanh_c: Array, products: Array) -> tuple[Array, Array]:
    """What dC_t (first three blocks) and dA_t (the last) are multiplied by, for some steps; dA_t
    becomes one of C_t by the second result.

    A gate times what it lets through is at hand: with P = G_f C_{t-1}, G_f (1 - G_f) C_{t-1} is
    (1 - G_f) P, and so on.
    """
    h = tanh_c.shape[1]
    d, to_C = workspace.empty(g.shape, g.dtype), workspace.empty(tanh_c.shape, g.dtype)
    forget_update, candidate, output = d[:, : 2 * h], d[:, 2 * h : 3 * h], d[:, 3 * h :]
    G_o, new = g[:, 3 * h :], products[:, h:]
    np.subtract(1, g[:, : 2 * h], out=forget_update)
    np.multiply(forget_update, products, out=forget_update)
    np.multiply(new, g[:, 2 * h : 3 * h], out=candidate)
    np.subtract(g[:, h : 2 * h], candidate, out=candidate)  # G_u (1 - C~^2)
    np.multiply(G_o, tanh_c, out=to_C)
    np.subtract(1, G_o, out=output)
    np.multiply(output, to_C, out=output)  # tanh(C_t) G_o (1 - G_o)
    np.multiply(to_C, tanh_c, out=to_C)
    np.subtract(G_o, to_C, out=to_C)  # G_o (1 - tanh(C_t)^2)
    return d, to_C


def _gru_factors(g: Array, M: Array, old: Array) -> Array:
    """What dA_t is multiplied by, for some steps: dZ_n, dZ_z, dZ_r and dM are multiples of it."""
    steps, h, n_ex = M.shape
    d = workspace.empty((steps, 4 * h, n_ex), M.dtype)
    N, G_z, G_r = (g[:, k * h : (k + 1) * h] for k in range(3))
    n, z, r, m = (d[:, k * h : (k + 1) * h] for k in range(4))
    np.multiply(N, N, out=n)
    np.subtract(1, n, out=n)
    np.subtract(1, G_z, out=z)
    np.multiply(n, z, out=n)  # (1 - z) (1 - N^2)
    np.multiply(z, G_z, out=z)
    np.subtract(old, N, out=m)
    np.multiply(z, m, out=z)  # (A_{t-1} - N) z (1 - z)
    np.multiply(n, G_r, out=m)  # n r
    np.subtract(1, G_r, out=r)
    np.multiply(r, m, out=r)
    np.multiply(r, M, out=r)  # n M r (1 - r)
    return d


def _logistic_of_negative(z: Array, one: Array) -> None:
    """1 / (1 + exp(z)), in place; where exp overflows it is 0. `one` is an array () of z's dtype:
    NumPy takes it a third of a microsecond faster than a number."""
    np.exp(z, out=z)
    np.add(z, one, out=z)
    np.divide(one, z, out=z)
