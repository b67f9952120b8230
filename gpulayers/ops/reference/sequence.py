"""Recurrent networks over whole sequences: the steps of `recurrent`, one after the other.

    input products of all steps = one matrix product          (they need no state)
    t = 1..T:  state_t = step(input product_t, state_{t-1})
    t = T..1:  dZ_t, accumulators = step back(dA_t, accumulators)
    parameter gradients, dX = products over all steps at once

A state leaves as output t and enters step t+1, so two gradients reach it and add up. What comes
from step t+1 travels in the *accumulators*: that is all there is to backpropagation through time.

A step that the mask leaves out hands states and accumulators on as they are. With `truncate` = k
the accumulators start anew at steps k, 2k, ...: no gradient crosses from one stretch to the one
before.

Source: Werbos, "Backpropagation through time: what it does and how to do it" (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.reference.conv import ReferenceConv
from gpulayers.ops.reference.recurrent import ReferenceRecurrent

States = tuple[Array, ...]


class ReferenceSequence(ReferenceRecurrent, ReferenceConv):
    """Each kind says what a step is; `_forward` and `_backward` below chain them."""

    def time_first(self, X: Array, gated: bool) -> Array:
        return xp_of(X).ascontiguousarray(X.transpose(2, 0, 1))

    def time_last(self, X: Array) -> Array:
        return xp_of(X).array(X.transpose(1, 2, 0), order="C")  # a copy, whatever X's strides

    def joined(self, arrays: list[Array], axis: int) -> Array:
        return xp_of(arrays[0]).concatenate(arrays, axis=axis)

    def rnn_forward(
        self, X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
    ) -> Trace:
        ba, bx = weights.biases
        Z: list[Array] = []

        def step(projected: Array, from_state: Array, old: States, new: States) -> None:
            Z.append(self.rnn_step_forward(projected, from_state, ba, bx, act, new[0])[0])

        states, _ = _forward(step, X, first, mask, weights, 1)
        return Trace(X, mask, states, (Z,))

    def rnn_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients:
        (Z,) = trace.kept

        def step(t: int, dA: Array, accumulators: States, dZ: Array) -> States:
            self.rnn_step_backward(dA, accumulators[0], Z[t], act, dZ)
            return (product(dZ, weights.recurrent.T),)

        dZ, states = _backward(step, dA, last, trace, weights, 1, truncate)
        grads = None
        if params:
            X, A_prev = _rows(trace)
            db = self.bias_grad(dZ)
            grads = Weights(product(A_prev.T, dZ), product(X.T, dZ), (db, db))
        return SequenceGradients(_dX(dZ, weights, trace) if inputs else None, grads, states)

    def lstm_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        Z: list[Array | None] = []

        def step(gates: Array, from_state: Array, old: States, new: States) -> None:
            bias, (A, C) = weights.biases[0], new
            Z.append(self.lstm_step_forward(gates, from_state, bias, old[1], act, gate, C, A))

        states, gates = _forward(step, X, first, mask, weights, 2)
        return Trace(X, mask, states, (gates, None if Z[0] is None else Z, None))

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
        gates, Z, _ = trace.kept
        C = trace.states[1]

        def step(t: int, dA: Array, accumulators: States, dZ: Array) -> States:
            (dA_next, dC_next), Z_t = accumulators, None if Z is None else Z[t]
            at_t = dA_next, dC_next, Z_t, gates[t], C[t], C[t + 1]
            dC = self.lstm_step_backward(dA, *at_t, act, gate, dZ)
            return product(dZ, weights.recurrent.T), dC

        dZ, states = _backward(step, dA, last, trace, weights, 4, truncate)
        grads = None
        if params:
            X, A_prev = _rows(trace)
            grads = Weights(product(A_prev.T, dZ), product(X.T, dZ), (self.bias_grad(dZ),))
        return SequenceGradients(_dX(dZ, weights, trace) if inputs else None, grads, states)

    def gru_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        M: list[Array] = []
        Z: list[Array | None] = []

        def step(gates: Array, from_state: Array, old: States, new: States) -> None:
            M.append(xp_of(X).empty(new[0].shape, dtype=X.dtype))
            bias, A, A_prev = weights.biases[0], new[0], old[0]
            Z.append(self.gru_step_forward(gates, from_state, bias, A_prev, act, gate, M[-1], A))

        states, gates = _forward(step, X, first, mask, weights, 1)
        return Trace(X, mask, states, (gates, M, None if Z[0] is None else Z))

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
        gates, M, Z = trace.kept
        A, h = trace.states[0], weights.recurrent.shape[0]

        def step(t: int, dA: Array, accumulators: States, dZ: Array) -> States:
            Z_t = None if Z is None else Z[t]
            dA_prev = self.gru_step_backward(
                dA, accumulators[0], Z_t, gates[t], M[t], A[t], act, gate, dZ
            )
            dA_prev += product(dZ[:, h:], weights.recurrent.T)
            return (dA_prev,)

        dZ, states = _backward(step, dA, last, trace, weights, 4, truncate)
        from_input, from_state = dZ[:, : 3 * h], dZ[:, h:]  # [n, z, r] and [z, r, M]
        grads = None
        if params:
            X, A_prev = _rows(trace)
            db = self.bias_grad(dZ)
            grads = Weights(product(A_prev.T, from_state), product(X.T, from_input), (db,))
        return SequenceGradients(_dX(from_input, weights, trace) if inputs else None, grads, states)


# ----------------------------------------------------------------------- how steps are chained


def _forward(
    step: Callable[[Array, Array, States, States], None],
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    count: int,
) -> tuple[States, Array]:
    """The states (count of them), and the input's products as the steps left them."""
    xp = xp_of(X)
    n_t, n_ex, n_in = X.shape
    h, width = weights.recurrent.shape
    states = tuple(xp.empty((n_t + 1, n_ex, h), dtype=X.dtype) for _ in range(count))
    for k, state in enumerate(states):
        state[0] = 0 if first is None else first[k]
    projected = product(X.reshape(n_t * n_ex, n_in), weights.input).reshape(n_t, n_ex, width)
    for t in range(n_t):
        old, new = tuple(s[t] for s in states), tuple(s[t + 1] for s in states)
        step(projected[t], product(old[0], weights.recurrent), old, new)
        if mask is not None:
            for before, after in zip(old, new, strict=True):
                after[...] = xp.where(mask[t], after, before)
    return states, projected


def _backward(
    step: Callable[[int, Array, States, Array], States],
    dA: Array | None,
    last: States | None,
    trace: Trace,
    weights: Weights,
    blocks: int,
    truncate: int | None,
) -> tuple[Array, States]:
    """The rows dZ (n_t * n_ex, blocks * n_out) of all steps, and the first accumulators."""
    xp, mask = xp_of(trace.X), trace.mask
    (n_t, n_ex, _), h, dtype = trace.X.shape, weights.recurrent.shape[0], trace.X.dtype
    nothing = xp.zeros((n_ex, h), dtype=dtype)
    none = (nothing,) * len(trace.states)
    accumulators = none if last is None else last
    dZ = xp.empty((n_t, n_ex, blocks * h), dtype=dtype)
    for t in reversed(range(n_t)):
        if truncate and t + 1 < n_t and (t + 1) % truncate == 0:
            accumulators = none
        later = accumulators
        if mask is not None:
            accumulators = tuple(xp.where(mask[t], a, nothing) for a in later)
        accumulators = step(t, nothing if dA is None else dA[t], accumulators, dZ[t])
        if mask is not None:
            pairs = zip(accumulators, later, strict=True)
            accumulators = tuple(xp.where(mask[t], a, b) for a, b in pairs)
    return dZ.reshape(n_t * n_ex, blocks * h), accumulators


def _rows(trace: Trace) -> tuple[Array, Array]:
    """X and the states that the steps began with, one row an example and step."""
    n_t, n_ex, n_in = trace.X.shape
    A = trace.states[0]
    return trace.X.reshape(n_t * n_ex, n_in), A[:-1].reshape(n_t * n_ex, A.shape[2])


def _dX(dZ: Array, weights: Weights, trace: Trace) -> Any:
    return product(dZ, weights.input.T).reshape(trace.X.shape)
