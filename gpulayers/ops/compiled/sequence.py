"""Recurrent networks over whole sequences: all steps in one call, products included.

The arrays a pass keeps are those of `gpulayers.ops.cpu`, so either can go back through what the
other went through.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SIDE_BY_SIDE, SequenceGradients, Trace, Weights
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.compiled.product import product_into, two_products_into
from gpulayers.ops.cpu.gated import CpuGated
from gpulayers.ops.cpu.sequence import States, accumulators_of, new_like, states_of
from gpulayers.ops.reference.recurrent import slopes_from_values

_turn_time = bind("gl_turn_time", "ppiiin")
_rnn_forward = bind("gl_rnn_forward", "pppppppiiiin", ctypes.c_int)
_rnn_backward = bind("gl_rnn_backward", "pppppppppiiiiin", ctypes.c_int)
_lstm_forward = bind("gl_lstm_forward", "pppppppppiiii", ctypes.c_int)
_lstm_backward = bind("gl_lstm_backward", "ppppppppppppiiiii", ctypes.c_int)
_gru_forward = bind("gl_gru_forward", "ppppppppiiii", ctypes.c_int)
_gru_backward = bind("gl_gru_backward", "pppppppppppiiiii", ctypes.c_int)

_ACTS = {("tanh", 0.0, 0.0): 0, ("relu", 0.0, 0.0): 1, ("sigmoid", 0.0, 0.0): 2}


class CompiledSequence(CpuGated):
    """Tanh, ReLU and Sigmoid for simple networks, Tanh with Sigmoid for gated ones."""

    def time_first(self, X: Array, gated: bool) -> Array:
        n, ch, n_t = X.shape
        if not _takes(X):
            return super().time_first(X, gated)
        out = workspace.empty((n_t, n, ch), X.dtype)
        _turn_time(X.dtype, X, out, n, ch, n_t, 1)
        return out

    def time_last(self, X: Array) -> Array:
        n_t, n, ch = X.shape
        if not _takes(X):
            return super().time_last(X)
        out = workspace.empty((n, ch, n_t), X.dtype)
        _turn_time(X.dtype, X, out, n, ch, n_t, 0)
        return out

    def rnn_forward(
        self, X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
    ) -> Trace:
        if act.kernel not in _ACTS or not _takes(X, *weights[:2], *weights.biases):
            return super().rnn_forward(X, first, mask, weights, act)
        (A,) = states_of(X, first, weights, 1)
        Z, bias = new_like(A[1:]), weights.biases[0] + weights.biases[1]
        arrays = X, weights.input, weights.recurrent, bias, _bytes(mask), Z, A
        _check(_rnn_forward(X.dtype, *arrays, *Z.shape, X.shape[2], _ACTS[act.kernel]))
        return Trace(X, mask, (A,), (Z,))

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
        (Z,), (A,) = trace.kept, trace.states
        if act.kernel not in _ACTS or not _takes(Z, A, dA, trace.X, *weights[:2]):
            return super().rnn_backward(dA, last, trace, weights, act, truncate, params, inputs)
        dZ, dX, db = new_like(Z), *_wanted(trace, Z.shape[2], params, inputs)
        (total,) = accumulators_of(trace, last)
        arrays = dA, A, weights.input, weights.recurrent, _bytes(trace.mask), total, dZ, dX, db
        sizes = *Z.shape, len(weights.input), truncate or 0
        _check(_rnn_backward(A.dtype, *arrays, *sizes, _ACTS[act.kernel]))
        return SequenceGradients(dX, _weight_gradients(trace, dZ, weights, db), (total,))

    def lstm_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        if not slopes_from_values(act, gate) or not _takes(X, *weights[:2], *weights.biases):
            return super().lstm_forward(X, first, mask, weights, act, gate)
        A, C = states_of(X, first, weights, 2)
        gates = workspace.empty((*C[1:].shape[:2], weights.input.shape[1]), X.dtype)
        seen, bias = new_like(C[1:]), weights.biases[0]
        arrays = X, weights.input, weights.recurrent, bias, _bytes(mask), gates, A, C, seen
        _check(_lstm_forward(X.dtype, *arrays, *seen.shape, X.shape[2]))
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
        gates, Z, seen = trace.kept
        A, C = trace.states
        if Z is not None or not _takes(seen, gates, A, C, dA, trace.X, *weights[:2]):
            return super().lstm_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        dZ, dX, db = new_like(gates), *_wanted(trace, gates.shape[2], params, inputs)
        states = accumulators_of(trace, last)
        read = dA, gates, C, seen, weights.input, weights.recurrent, _bytes(trace.mask)
        sizes = *seen.shape, len(weights.input), truncate or 0
        _check(_lstm_backward(A.dtype, *read, *states, dZ, dX, db, *sizes))
        return SequenceGradients(dX, _weight_gradients(trace, dZ, weights, db), states)

    def gru_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        if not slopes_from_values(act, gate) or not _takes(X, *weights[:2], *weights.biases):
            return super().gru_forward(X, first, mask, weights, act, gate)
        (A,) = states_of(X, first, weights, 1)
        gates = workspace.empty((*A[1:].shape[:2], weights.input.shape[1]), X.dtype)
        M, bias = new_like(A[1:]), weights.biases[0]
        arrays = X, weights.input, weights.recurrent, bias, _bytes(mask), gates, M, A
        _check(_gru_forward(X.dtype, *arrays, *M.shape, X.shape[2]))
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
        (gates, M, Z), (A,) = trace.kept, trace.states
        if Z is not None or not _takes(M, gates, A, dA, trace.X, *weights[:2]):
            return super().gru_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        n_t, n, h = M.shape
        dZ = workspace.empty((n_t, n, 4 * h), M.dtype)
        dX, db = _wanted(trace, 4 * h, params, inputs)
        (total,) = accumulators_of(trace, last)
        read = dA, gates, M, A, weights.input, weights.recurrent, _bytes(trace.mask)
        sizes = *M.shape, len(weights.input), truncate or 0
        _check(_gru_backward(M.dtype, *read, total, dZ, dX, db, *sizes))
        return SequenceGradients(dX, _weight_gradients(trace, dZ, weights, db), (total,))


def _wanted(
    trace: Trace, columns: int, params: bool, inputs: bool
) -> tuple[Array | None, Array | None]:
    """Where dX and the sums of dZ's columns go, if they are wanted."""
    dX = new_like(trace.X) if inputs else None
    return dX, workspace.empty((columns,), trace.X.dtype) if params else None


def _weight_gradients(
    trace: Trace, dZ: Array, weights: Weights, db: Array | None
) -> Weights | None:
    """Of a fully connected layer on the rows of all steps. A GRU has dZ = [n, z, r, M]: the first
    three blocks are the input's, the last three the state's."""
    if db is None:
        return None
    n_t, n, n_in = trace.X.shape
    h, width = weights.recurrent.shape
    rows = dZ.reshape(n_t * n, dZ.shape[2])
    dW_a, dW_x = new_like(weights.recurrent), new_like(weights.input)
    A_prev, X = trace.states[0][:-1].reshape(n_t * n, h), trace.X.reshape(n_t * n, n_in)
    if rows.shape[1] == width:
        two_products_into(A_prev, X, rows, dW_a, dW_x)
    else:
        product_into(A_prev, rows[:, rows.shape[1] - width :], dW_a, transpose_a=True)
        product_into(X, rows[:, :width], dW_x, transpose_a=True)
    return Weights(dW_a, dW_x, (db,) * len(weights.biases))


def _takes(first: Any, *others: Array | None) -> bool:
    """Whether all are arrays that C can read: steps kept one by one are a list, and NumPy's have
    the examples last in memory."""
    return (
        isinstance(first, SIDE_BY_SIDE)
        and first.dtype in DTYPES
        and all(_is_readable(array) for array in (first, *others) if array is not None)
    )


def _is_readable(array: Array) -> bool:
    return array.flags.c_contiguous and array.flags.aligned


def _bytes(mask: Array | None) -> Array | None:
    return None if mask is None else np.ascontiguousarray(mask).view(np.uint8)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("recurrent layer: no memory for packed weights")
