"""Recurrent networks over whole sequences on the CPU: few NumPy calls a step, no new arrays.

- What needs no state is computed for all steps at once: the input's products, the slopes of the
  activations, the gradients of the weights.
- Each thread goes through all steps with examples of its own, with BLAS at one thread: the product
  of one step is too small to be worth waking threads for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpulayers import threads
from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._kernels import Activation
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.reference.sequence import ReferenceSequence

States = tuple[Array, ...]

_COPY_BYTES = 1 << 17  # of a block of examples that is turned around inside the cache
_EXAMPLES = 8  # a thread should have at least, ...
_ROWS = 64  # ... of rows of a product, ...
_COLUMNS = 64  # ... or of its columns
_TANH = ("tanh", 0.0, 0.0)  # a built-in activation's `kernel`


class CpuSequence(ReferenceSequence):
    """Turning time to the front and back, and simple networks with a built-in activation."""

    # ---- time first, time last: by blocks of examples, so that reading stays in the cache

    def time_first(self, X: Array) -> Array:
        n, ch, n_t = X.shape
        out = workspace.empty((n_t, n, ch), X.dtype)
        for part in _example_blocks(n, ch * n_t * X.itemsize):
            out[:, part] = X[part].transpose(2, 0, 1)
        return out

    def time_last(self, X: Array) -> Array:
        n_t, n, ch = X.shape
        out = workspace.empty((n, ch, n_t), X.dtype)
        for part in _example_blocks(n, ch * n_t * X.itemsize):
            out[part] = X[:, part].transpose(1, 2, 0)
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
        Z = project(X, weights.input, weights.biases[0] + weights.biases[1])

        def share(_: int, part: slice) -> None:
            from_state = new_like(A[0, part])
            for t in range(len(X)):
                z, new = Z[t, part], A[t + 1, part]
                np.matmul(A[t, part], weights.recurrent, out=from_state)
                np.add(z, from_state, out=z)
                if act.kernel == _TANH:
                    np.tanh(z, out=new)
                else:
                    new[...] = act.fn(z)
                if mask is not None:
                    np.copyto(new, A[t, part], where=~mask[t, part])

        over_examples(X, share)
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
        if not isinstance(Z, np.ndarray) or act.kernel is None:
            return super().rnn_backward(dA, last, trace, weights, act, truncate, params, inputs)
        dZ = workspace.empty(Z.shape, Z.dtype)
        (accumulator,) = accumulators_of(trace, last)

        def slopes(_: int, part: slice) -> None:
            if act.kernel == _TANH:  # 1 - A_t^2; where a step is left out, zero is multiplied
                after = A[1:][part]
                np.multiply(after, after, out=dZ[part])
                np.subtract(1, dZ[part], out=dZ[part])
            else:
                dZ[part] = act.grad(Z[part])

        def share(_: int, part: slice) -> None:
            total, back = accumulator[part], new_like(accumulator[part])
            for t in reversed(range(len(X))):
                if is_cut(t, len(X), truncate):
                    total.fill(0)
                dz, dA_t = dZ[t, part], total
                if dA is not None:
                    dA_t = np.add(dA[t, part], total, out=back)
                np.multiply(dz, dA_t, out=dz)
                if mask is None:
                    np.matmul(dz, weights.recurrent.T, out=total)
                else:
                    np.copyto(dz, 0, where=~mask[t, part])
                    np.matmul(dz, weights.recurrent.T, out=back)
                    np.copyto(total, back, where=mask[t, part])

        over_steps(X, slopes)
        over_examples(X, share)
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


def _example_blocks(n: int, bytes_each: int) -> list[slice]:
    step = max(1, _COPY_BYTES // max(1, bytes_each))
    return [slice(start, start + step) for start in range(0, n, step)]


def over_examples(X: Array, share: Callable[[int, slice], None]) -> None:
    threads.run_shares(share, threads.shares(X.shape[1], _EXAMPLES))


def over_steps(X: Array, share: Callable[[int, slice], None]) -> None:
    threads.run_shares(share, threads.shares(len(X)))


# ------------------------------------------------------------------------- products of all steps


def project(X: Array, W: Array, bias: Array) -> Array:
    """X W + bias, for all steps."""
    n_t, n, n_in = X.shape
    out = workspace.empty((n_t, n, W.shape[1]), X.dtype)
    _rows_product(X.reshape(n_t * n, n_in), W, out.reshape(n_t * n, W.shape[1]), bias)
    return out


def _rows_product(A: Array, B: Array, out: Array, bias: Array | None = None) -> None:
    def share(_: int, part: slice) -> None:
        np.matmul(A[part], B, out=out[part])
        if bias is not None:
            np.add(out[part], bias, out=out[part])

    threads.run_shares(share, threads.shares(len(A), _ROWS))


def gradients(
    trace: Trace, dZ: Array, weights: Weights, params: bool, inputs: bool, states: States
) -> SequenceGradients:
    """A fully connected layer on the rows of all steps. A GRU has dZ = [n, z, r, M]: the first
    three blocks are the input's, the last three the state's."""
    n_t, n, n_in = trace.X.shape
    h, width = weights.recurrent.shape
    A, rows = trace.states[0], dZ.reshape(n_t * n, dZ.shape[2])
    from_input, from_state = rows[:, :width], rows[:, rows.shape[1] - width :]
    dX = grads = None
    if inputs:
        dX = new_like(trace.X)
        _rows_product(from_input, weights.input.T, dX.reshape(n_t * n, n_in))
    if params:
        X, A_prev = trace.X.reshape(n_t * n, n_in), A[:-1].reshape(n_t * n, h)
        dW_a, dW_x = new_like(weights.recurrent), new_like(weights.input)
        db = workspace.empty((1, rows.shape[1]), rows.dtype)
        ones = np.ones((1, n_t * n), rows.dtype)

        def share(_: int, part: slice) -> None:
            np.matmul(A_prev.T, from_state[:, part], out=dW_a[:, part])
            np.matmul(X.T, from_input[:, part], out=dW_x[:, part])

        np.matmul(ones, rows, out=db)
        threads.run_shares(share, threads.shares(width, _COLUMNS))
        grads = Weights(dW_a, dW_x, (db[0], db[0])[: len(weights.biases)])
    return SequenceGradients(dX, grads, states)
