"""Recurrent networks over whole sequences on a GPU: all steps of a pass in one launch.

Before it the input's products of all steps are one product, after the way back the gradients of
the weights are another. A block takes some examples through all steps, with the recurrent weights
in its registers and its shared memory; what does not fit there is read from the L2 cache in each
step. Step by step go networks with other activations, and those that would read too much.
"""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda.activation import activation_arguments
from gpulayers.cuda.compile import launch
from gpulayers.cuda.recurrent import CudaRecurrent
from gpulayers.cuda.table_sequence import Way, way_of
from gpulayers.ops._kernels import Activation
from gpulayers.ops._product import product
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.reference.recurrent import slopes_from_values

__all__ = ["CudaSequence"]

States = tuple[Array, ...]

# bytes of weights that a block may read from the L2 cache in each step: the time of the few
# launches that a step takes otherwise
_MOST_STREAMED = 1 << 20


def _chosen(kind: str, back: bool, batch: int, hidden: int, dtype: Any) -> Way | None:
    """The way for arrays that are there, None if there are none or step by step is quicker."""
    if not batch * hidden:
        return None
    shared = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    way = way_of(kind, back, batch, hidden, dtype.name, shared)
    return None if way is None or way.streamed > _MOST_STREAMED else way


def _run(way: Way, like: Array, arrays: tuple[Array | None, ...], numbers: tuple[Any, ...]) -> None:
    none = cupy.empty(0, dtype=like.dtype)
    args = (*(none if array is None else array for array in arrays), *numbers)
    grid = (way.blocks,)
    launch(*(way.kernel, like.dtype, grid, args, "int32"), block=way.threads, shared=way.shared)


def _ahead(
    kind: str,
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    act: tuple[Any, ...] = (),
) -> tuple[Array, States, Array] | None:
    """All steps ahead: the gates (the pre-activations of a simple network), the states, and what a
    gated recurrent unit keeps besides; None where that goes step by step."""
    (n_t, n, n_in), (h, width) = X.shape, weights.recurrent.shape
    way = _chosen(kind, False, n, h, X.dtype)
    if way is None:
        return None
    gates = product(X.reshape(n_t * n, n_in), weights.input).reshape(n_t, n, width)
    count = 2 if kind == "lstm" else 1
    states = tuple(cupy.empty((n_t + 1, n, h), dtype=X.dtype) for _ in range(count))
    M = cupy.empty((n_t, n, h) if kind == "gru" else 0, dtype=X.dtype)
    given = (None,) * count if first is None else first
    kept = (M,) if kind == "gru" else ()
    arrays = (gates, weights.recurrent, *weights.biases, *given, _bytes(mask), *kept, *states)
    lying = (1, h, width, way.fours)
    _run(way, X, arrays, (n_t, n, h, *lying, first is not None, mask is not None, *act))
    return gates, states, M


def _back(
    kind: str,
    dA: Array | None,
    last: States | None,
    trace: Trace,
    kept: tuple[Array, ...],
    weights: Weights,
    truncate: int | None,
    act: tuple[Any, ...] = (),
) -> tuple[Array, States] | None:
    """All steps back: dZ and the gradients of the first states; None as above. `kept` is what the
    kernel takes of the way ahead."""
    (n_t, n, _), (h, width) = trace.X.shape, weights.recurrent.shape
    way = _chosen(kind, True, n, h, trace.X.dtype)
    if way is None or isinstance(kept[0], list):  # went step by step
        return None
    count = len(trace.states)
    dZ = cupy.empty((n_t, n, width + h if kind == "gru" else width), dtype=trace.X.dtype)
    states = tuple(cupy.empty((n, h), dtype=trace.X.dtype) for _ in range(count))
    W, lying = weights.recurrent, (width, h, 1, way.fours)
    if way.streamed:  # neighbouring threads read neighbouring numbers in each step
        W, lying = cupy.ascontiguousarray(W.T), (1, h * h, h, way.fours)
    given = (None,) * count if last is None else last
    flags = dA is not None, last is not None, trace.mask is not None, truncate or 0
    arrays = (dA, *kept, W, _bytes(trace.mask), *given, dZ, *states)
    _run(way, trace.X, arrays, (n_t, n, h, *lying, *flags, *act))
    return dZ, states


def _bytes(mask: Array | None) -> Array:
    if mask is None:
        return cupy.empty(0, dtype="uint8")
    return cupy.ascontiguousarray(mask).view("uint8")


class CudaSequence(CudaRecurrent):
    """Whole sequences; the steps of `CudaRecurrent` where a kernel over all of them does not go."""

    def rnn_forward(
        self, X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
    ) -> Trace:
        found = None
        if act.kernel is not None:
            found = _ahead("rnn", X, first, mask, weights, activation_arguments(act.kernel))
        if found is None:
            return super().rnn_forward(X, first, mask, weights, act)
        Z, states, _ = found
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
        found = None
        if act.kernel is not None:
            rule = activation_arguments(act.kernel)
            found = _back("rnn", dA, last, trace, trace.kept, weights, truncate, rule)
        if found is None:
            return super().rnn_backward(dA, last, trace, weights, act, truncate, params, inputs)
        return self._gradients(*found, trace, weights, params, inputs)

    def lstm_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        found = None
        if slopes_from_values(act, gate):
            found = _ahead("lstm", X, first, mask, weights)
        if found is None:
            return super().lstm_forward(X, first, mask, weights, act, gate)
        gates, states, _ = found
        return Trace(X, mask, states, (gates, None, None))

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
        (gates, Z, _), C, found = trace.kept, trace.states[1], None
        if Z is None:
            found = _back("lstm", dA, last, trace, (gates, C), weights, truncate)
        if found is None:
            return super().lstm_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        return self._gradients(*found, trace, weights, params, inputs)

    def gru_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace:
        found = None
        if slopes_from_values(act, gate):
            found = _ahead("gru", X, first, mask, weights)
        if found is None:
            return super().gru_forward(X, first, mask, weights, act, gate)
        gates, states, M = found
        return Trace(X, mask, states, (gates, M, None))

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
        (gates, M, Z), (A,), found = trace.kept, trace.states, None
        if Z is None and not isinstance(M, list):
            found = _back("gru", dA, last, trace, (gates, M, A), weights, truncate)
        if found is None:
            return super().gru_backward(
                dA, last, trace, weights, act, gate, truncate, params, inputs
            )
        return self._gradients(*found, trace, weights, params, inputs)

    def _gradients(
        self,
        dZ: Array,
        states: States,
        trace: Trace,
        weights: Weights,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients:
        """A fully connected layer on the rows of all steps. A gated recurrent unit has
        dZ = [n, z, r, M]: the first three blocks are the input's, the last three the state's."""
        n_t, n, n_in = trace.X.shape
        h, width = weights.recurrent.shape
        rows = dZ.reshape(n_t * n, dZ.shape[2])
        from_input, from_state = rows[:, :width], rows[:, rows.shape[1] - width :]
        dX = grads = None
        if inputs:
            dX = product(from_input, weights.input.T).reshape(trace.X.shape)
        if params:
            X, A_prev = trace.X.reshape(n_t * n, n_in), trace.states[0][:-1].reshape(n_t * n, h)
            db = self.bias_grad(rows)
            biases = (db,) * len(weights.biases)
            grads = Weights(product(A_prev.T, from_state), product(X.T, from_input), biases)
        return SequenceGradients(dX, grads, states)
