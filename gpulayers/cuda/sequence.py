"""Recurrent networks over whole sequences on a GPU: all steps of a pass in one launch.

Before it the input's products of all steps are one product, after the way back the gradients of
the weights are another. A block takes some examples through all steps, with the recurrent weights
in its registers and its shared memory; what does not fit there is read from the L2 cache in each
step. Weights that are too many for that are kept by many blocks together, which wait for one
another after each step; they multiply by tensor cores in half types, and in float32 within
``use_precision("tf32")``. Step by step go networks with other activations, and those that the
device has no room for.
"""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import precision
from gpulayers.cuda.activation import activation_arguments
from gpulayers.cuda.compile import launch
from gpulayers.cuda.recurrent import CudaRecurrent
from gpulayers.cuda.table_group import Group, Task, group_of
from gpulayers.cuda.table_sequence import CORE_DTYPES, Way, way_of
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.reference.recurrent import slopes_from_values

__all__ = ["CudaSequence", "ahead", "back", "goes", "way_back"]

States = tuple[Array, ...]

# bytes of weights that a block may read from the L2 cache in each step: the time of the few
# launches that a step takes otherwise; and of a barrier of many blocks
_MOST_STREAMED = 1 << 20
_MOST_BESIDE_GROUPS = 1 << 17
_COUNTER = 32  # numbers that a group has to count on: a line of memory


def _rule(kind: str, acts: tuple[Activation, ...]) -> tuple[Any, ...] | None:
    """What a kernel has to be told of the activations; None if it does not know them."""
    if kind != "rnn":
        return () if slopes_from_values(*acts) else None
    kernel = acts[0].kernel
    return None if kernel is None else activation_arguments(kernel)


def _way(
    kind: str, back: bool, batch: int, hidden: int, dtype: Any, acts: tuple[Activation, ...]
) -> Way | Group | str:
    """How one kernel goes; or why it cannot, or step by step is quicker."""
    if not batch * hidden:
        return "nothing to compute"
    if _rule(kind, acts) is None:
        return f"no kernel knows {' and '.join(map(str, acts))} in it"
    device = cupy.cuda.Device().attributes
    shared = device["MaxSharedMemoryPerBlockOptin"]
    half_cores = dtype.name in CORE_DTYPES and precision.has_tensor_cores()
    way = way_of(kind, back, batch, hidden, dtype.name, shared, half_cores)
    if way is not None and way.streamed <= _MOST_BESIDE_GROUPS:
        return way if way.streamed <= _MOST_STREAMED else "it would read too much in each step"
    tensor = precision.takes_tensor_cores(kind, dtype)
    task = Task(kind, back, batch, hidden, dtype.name, tensor)
    group = group_of(task, shared, device["MultiProcessorCount"])
    if isinstance(group, str) and way is not None and way.streamed <= _MOST_STREAMED:
        return way
    return group


def goes(kind: str, batch: int, hidden: int, dtype: Any, acts: tuple[Activation, ...]) -> str:
    """How a network of this kind goes through the steps, in words."""
    ways = [_way(kind, back, batch, hidden, dtype, acts) for back in (False, True)]
    return ", ".join(
        f"{name} {_words(way)}" for name, way in zip(("ahead", "back"), ways, strict=True)
    )


def _words(way: Way | Group | str) -> str:
    if isinstance(way, str):
        return f"step by step: {way}"
    by = ", by tensor cores" if way.tensor else ""
    if isinstance(way, Group):
        return f"in one launch of {way.groups} groups of {way.blocks // way.groups} blocks{by}"
    return f"in one launch{by}"


def way_back(kind: str, trace: Trace, acts: tuple[Activation, ...]) -> Way | Group | None:
    """As `_way`, for what was gone through ahead; None for step by step."""
    _, n, h = trace.states[0].shape
    if any(isinstance(kept, list) for kept in trace.kept):  # went step by step
        return None
    way = _way(kind, True, n, h, trace.X.dtype, acts)
    return None if isinstance(way, str) else way


def _run(
    way: Way | Group,
    like: Array,
    arrays: tuple[Array | None, ...],
    sizes: tuple[int, ...],
    lying: tuple[int, ...],
    numbers: tuple[Any, ...],
) -> None:
    """Launch it; `lying`: the strides of the weights, for a block that has them to itself."""
    none = cupy.empty(0, dtype=like.dtype)
    if isinstance(way, Group):
        between = cupy.empty(way.between, dtype="float32")
        arrived = cupy.zeros(_COUNTER * way.groups, dtype="uint32")
        arrays, lying = (*arrays, *((between,) if way.between else ()), arrived), way.sizes
    else:
        lying = (*lying, *way.fours)
    args = (*(none if array is None else array for array in arrays), *sizes, *lying, *numbers)
    grid = (way.blocks,)
    launch(*(way.kernel, like.dtype, grid, args, "int32"), block=way.threads, shared=way.shared)


def ahead(
    kind: str,
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    acts: tuple[Activation, ...],
) -> Trace | None:
    """All steps ahead; None where they go one by one."""
    (n_t, n, n_in), (h, width) = X.shape, weights.recurrent.shape
    way, rule = _way(kind, False, n, h, X.dtype, acts), _rule(kind, acts)
    if isinstance(way, str) or rule is None:
        return None
    gates = product(X.reshape(n_t * n, n_in), weights.input).reshape(n_t, n, width)
    count = 2 if kind == "lstm" else 1
    states = tuple(cupy.empty((n_t + 1, n, h), dtype=X.dtype) for _ in range(count))
    M = (cupy.empty((n_t, n, h), dtype=X.dtype),) if kind == "gru" else ()
    given = (None,) * count if first is None else first
    arrays = (gates, weights.recurrent, *weights.biases, *given, _bytes(mask), *M, *states)
    flags = first is not None, mask is not None
    _run(way, X, arrays, (n_t, n, h), (1, h, width), (*flags, *rule))
    kept = {"rnn": (gates,), "lstm": (gates, None, None), "gru": (gates, *M, None)}[kind]
    return Trace(X, mask, states, kept)


def back(
    kind: str,
    dA: Array | None,
    last: tuple[Array | None, ...] | None,
    trace: Trace,
    weights: Weights,
    acts: tuple[Activation, ...],
    truncate: int | None,
) -> tuple[Array, States] | None:
    """All steps back: dZ and the gradients of the first states; None where they go one by one. In
    `last`, None stands for zeros."""
    (n_t, n, _), (h, width) = trace.X.shape, weights.recurrent.shape
    way, rule = way_back(kind, trace, acts), _rule(kind, acts)
    if way is None or rule is None:
        return None
    count = len(trace.states)
    dZ = cupy.empty((n_t, n, width + h if kind == "gru" else width), dtype=trace.X.dtype)
    states = tuple(cupy.empty((n, h), dtype=trace.X.dtype) for _ in range(count))
    W, lying = weights.recurrent, (width, h, 1)
    if isinstance(way, Way) and way.streamed:  # neighbouring threads read neighbouring numbers
        W, lying = cupy.ascontiguousarray(W.T), (1, h * h, h)
    kept = {
        "rnn": trace.kept[:1],
        "lstm": (*trace.kept[:1], *trace.states[1:]),
        "gru": (*trace.kept[:2], *trace.states),
    }[kind]
    given = (None,) * count if last is None else last
    some = sum((state is not None) << k for k, state in enumerate(given))
    flags = dA is not None, some, trace.mask is not None, truncate or 0
    # of a pass ahead on the CPU, moved here since, they may lie in memory otherwise
    kept = tuple(a if a.flags.c_contiguous else cupy.ascontiguousarray(a) for a in kept)
    arrays = (dA, *kept, W, _bytes(trace.mask), *given, dZ, *states)
    _run(way, trace.X, arrays, (n_t, n, h), lying, (*flags, *rule))
    return dZ, states


def _bytes(mask: Array | None) -> Array:
    if mask is None:
        return cupy.empty(0, dtype="uint8")
    return cupy.ascontiguousarray(mask).view("uint8")


class CudaSequence(CudaRecurrent):
    """Whole sequences; the steps of `CudaRecurrent` where a kernel over all of them does not go."""

    def rnn_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
    ) -> Trace:
        trace = ahead("rnn", X, first, mask, weights, (act,))
        if trace is None:
            return super().rnn_forward(X, first, mask, weights, act)
        return trace

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
        found = back("rnn", dA, last, trace, weights, (act,), truncate)
        if found is None:
            how = truncate, params, inputs
            return super().rnn_backward(dA, last, trace, weights, act, *how)
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
        trace = ahead("lstm", X, first, mask, weights, (act, gate))
        if trace is None:
            return super().lstm_forward(X, first, mask, weights, act, gate)
        return trace

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
        found = back("lstm", dA, last, trace, weights, (act, gate), truncate)
        if found is None:
            how = truncate, params, inputs
            return super().lstm_backward(dA, last, trace, weights, act, gate, *how)
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
        trace = ahead("gru", X, first, mask, weights, (act, gate))
        if trace is None:
            return super().gru_forward(X, first, mask, weights, act, gate)
        return trace

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
        found = back("gru", dA, last, trace, weights, (act, gate), truncate)
        if found is None:
            how = truncate, params, inputs
            return super().gru_backward(dA, last, trace, weights, act, gate, *how)
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
