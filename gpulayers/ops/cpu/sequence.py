"""Recurrent networks over whole sequences on the CPU: few NumPy calls a step, no new arrays.

- What needs no state is computed for many steps at once: the input's products, the slopes of the
  activations (for as many as the cache holds), the gradients of the weights.
- The operations of one step are so short that two Python threads would wait for one another's lock
  most of the time: so one thread goes through the steps, and BLAS uses the others for the products.
  Of large batches in simple networks each thread takes a part through all steps. Work of Python's
  threads in between would share its cores with BLAS's, which go on looking for more for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpulayers import threads
from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SIDE_BY_SIDE, SequenceGradients, Trace, Weights, by_unit
from gpulayers.ops.cpu import _blas
from gpulayers.ops.cpu._blocks import blocks
from gpulayers.ops.reference.sequence import ReferenceSequence

States = tuple[Array, ...]

TALL = 8  # examples that make it worth going over all weights in every step
_COPY_BYTES = 1 << 17  # of a block that is turned around inside the cache
_NUMBERS = 1 << 16  # pre-activations of one step that are worth a thread
_CACHED = 1 << 16  # numbers that a bias is added to before they leave the cache
_SLOPES = 1 << 18  # numbers of several steps that are still in the cache when they are used
_TANH = ("tanh", 0.0, 0.0)  # a built-in activation's `kernel`


class CpuSequence(ReferenceSequence):
    """Turning time to the front and back, and simple networks with a built-in activation."""

    # ---- time first, time last: by blocks, so that reading stays in the cache

    def time_first(self, X: Array, gated: bool) -> Array:
        n, ch, n_t = X.shape
        if gated and n >= TALL and X.itemsize >= 4:  # by unit: one matrix turned around
            units = workspace.empty((ch, n_t, n), X.dtype)
            source, target = X.reshape(1, n, -1), units.reshape(1, -1, n)
            for part in _blocks_of(ch * n_t, n * X.itemsize):
                _blas.turn(source[:, :, part], target[:, part])
            return units.transpose(1, 2, 0)
        out = workspace.empty((n_t, n, ch), X.dtype)
        for part in _blocks_of(n, ch * n_t * X.itemsize):
            _blas.turn(X[part], out[:, part].transpose(1, 0, 2))
        return out

    def time_last(self, X: Array) -> Array:
        n_t, n, ch = X.shape
        out = workspace.empty((n, ch, n_t), X.dtype)
        units = by_unit(X)
        if units is not None:
            _turn_units(units, out)
            return out
        # by way of an example's own matrix (n_t, ch): its rows are then close to one another
        cut = _blocks_of(n, ch * n_t * X.itemsize)
        near = workspace.empty((cut[0].stop if cut else 0, n_t, ch), X.dtype)
        for part in cut:
            own = near[: part.stop - part.start]
            own[...] = X[:, part].transpose(1, 0, 2)
            _blas.turn(own, out[part])
        return out

    def joined(self, arrays: list[Array], axis: int) -> Array:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        out = workspace.empty(tuple(shape), arrays[0].dtype)
        return np.concatenate(arrays, axis=axis, out=out)

    # ---- simple

    def rnn_forward(
        self, X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
    ) -> Trace:
        if act.kernel is None or X.itemsize == 2:
            return super().rnn_forward(X, first, mask, weights, act)
        (A,) = states_of(X, first, weights, 1)
        Z = workspace.empty((*A[1:].shape[:2], A.shape[2]), X.dtype)
        bias = weights.biases[0] + weights.biases[1]
        project(X, weights.input, bias, Z)

        def share(_: int, part: slice) -> None:
            product = new_like(A[0, part])
            each = range(len(X)), Z[:, part], A[:-1, part], A[1:, part]
            for t, z, old, new in zip(*each, strict=True):
                np.dot(old, weights.recurrent, out=product)
                np.add(z, product, out=z)
                if act.kernel == _TANH:
                    np.tanh(z, out=new)
                else:
                    new[...] = act.fn(z)
                if mask is not None:
                    np.copyto(new, old, where=~mask[t, part])

        over_examples(Z, share)
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
        (Z,), (A,), mask, X = trace.kept, trace.states, trace.mask, trace.X
        if not isinstance(Z, SIDE_BY_SIDE) or act.kernel is None:
            return super().rnn_backward(dA, last, trace, weights, act, truncate, params, inputs)
        dZ = workspace.empty(Z.shape, Z.dtype)
        (accumulator,) = accumulators_of(trace, last)
        # in memory, too: BLAS would turn it around in every step
        W_back = new_like(weights.recurrent)
        W_back[...] = weights.recurrent.T

        def share(_: int, part: slice) -> None:
            total, back = accumulator[part], new_like(accumulator[part])
            for steps in blocks_back(len(X), total.size):
                slopes = dZ[steps, part]
                if act.kernel == _TANH:  # 1 - A_t^2; where a step is left out, it becomes zero
                    after = A[1:][steps, part]
                    np.multiply(after, after, out=slopes)
                    np.subtract(1, slopes, out=slopes)
                else:
                    slopes[...] = act.grad(Z[steps, part])
                for t, dz in zip(backwards(steps), slopes[::-1], strict=True):
                    if is_cut(t, len(X), truncate):
                        total.fill(0)
                    dA_t = total
                    if dA is not None:
                        dA_t = np.add(dA[t, part], total, out=back)
                    np.multiply(dz, dA_t, out=dz)
                    if mask is None:
                        np.dot(dz, W_back, out=total)
                    else:
                        np.copyto(dz, 0, where=~mask[t, part])
                        np.dot(dz, W_back, out=back)
                        np.copyto(total, back, where=mask[t, part])

        over_examples(Z, share)
        return gradients(trace, dZ, weights, params, inputs, (accumulator,))


# ------------------------------------------------------------------------------------- arrays


def new_like(array: Array) -> Array:
    return workspace.empty(array.shape, array.dtype)


def states_of(X: Array, first: States | None, weights: Weights, count: int) -> States:
    n_t, n, _ = X.shape
    shape = (n_t + 1, n, len(weights.recurrent))
    states = tuple(workspace.empty(shape, X.dtype) for _ in range(count))
    for k, state in enumerate(states):
        state[0] = 0 if first is None else first[k]
    return states


def accumulators_of(trace: Trace, last: States | None) -> States:
    """What comes from beyond the last step, in arrays of their own: the steps change them."""
    accumulators = tuple(new_like(state[0]) for state in trace.states)
    for k, accumulator in enumerate(accumulators):
        accumulator[...] = 0 if last is None else last[k]
    return accumulators


def is_cut(t: int, n_t: int, truncate: int | None) -> bool:
    """Whether a stretch ends after step t, so that nothing comes back from the next."""
    return truncate is not None and t + 1 < n_t and (t + 1) % truncate == 0


# ------------------------------------------------------------------------------------ threads


def _blocks_of(count: int, bytes_each: int) -> list[slice]:
    step = max(1, _COPY_BYTES // max(1, bytes_each))
    return list(blocks(slice(0, count), step))


def _turn_units(units: Array, out: Array) -> None:
    """out (n, ch, n_t) = (ch, n_t, n) turned around, some units at a time; these may lie apart."""
    ch, n_t, n = units.shape
    cut = _blocks_of(ch, n_t * n * units.itemsize)
    near = None
    if not units.flags.c_contiguous:
        near = workspace.empty((cut[0].stop, n_t, n), units.dtype)
    for part in cut:
        block = units[part]
        if near is not None:
            block = near[: len(block)]
            np.copyto(block, units[part])
        target = out.reshape(1, n, -1)[:, :, part.start * n_t : part.stop * n_t]
        _blas.turn(block.reshape(1, -1, n), target)


def over_examples(Z: Array, share: Callable[[int, slice], None]) -> None:
    """Call ``share(i, part)`` for parts of the examples, each with all steps of (n_t, n, width)."""
    n, width = Z.shape[1:]
    parts = threads.shares(n, -(-_NUMBERS // max(1, width)))
    if len(parts) > 1:
        threads.run_shares(share, parts)
        return
    with threads.threaded_blas():
        share(0, slice(0, n))


def blocks_back(n_t: int, numbers: int) -> Iterator[slice]:
    """Blocks of the n_t steps, of `numbers` numbers each, the last first."""
    step = max(1, _SLOPES // max(1, numbers))
    for stop in range(n_t, 0, -step):
        yield slice(max(0, stop - step), stop)


def backwards(steps: slice) -> range:
    """The numbers of the steps, the last first."""
    return range(steps.stop - 1, steps.start - 1, -1)


# ------------------------------------------------------------------------- products of all steps


def project(X: Array, W: Array, bias: Array, out: Array) -> None:
    """out = X W + bias, for all steps."""
    n_t, n, n_in = X.shape
    x, rows = X.reshape(n_t * n, n_in), out.reshape(n_t * n, W.shape[1])
    with threads.threaded_blas():
        for part in blocks(slice(0, len(rows)), max(1, _CACHED // rows.shape[1])):
            np.matmul(x[part], W, out=rows[part])
            np.add(rows[part], bias, out=rows[part])


def gradients(
    trace: Trace, dZ: Array, weights: Weights, params: bool, inputs: bool, states: States
) -> SequenceGradients:
    """A fully connected layer on the rows of all steps."""
    n_t, n, n_in = trace.X.shape
    h, width = weights.recurrent.shape
    A, rows = trace.states[0], dZ.reshape(n_t * n, width)
    dX = grads = None
    with threads.threaded_blas():
        if inputs:
            dX = new_like(trace.X)
            np.matmul(rows, weights.input.T, out=dX.reshape(n_t * n, n_in))
        if params:
            X, A_prev = trace.X.reshape(n_t * n, n_in), A[:-1].reshape(n_t * n, h)
            dW_a, dW_x = new_like(weights.recurrent), new_like(weights.input)
            db = workspace.empty((1, width), rows.dtype)
            np.matmul(A_prev.T, rows, out=dW_a)
            np.matmul(X.T, rows, out=dW_x)
            np.matmul(np.ones((1, n_t * n), rows.dtype), rows, out=db)
            grads = Weights(dW_a, dW_x, (db[0], db[0]))
    return SequenceGradients(dX, grads, states)
