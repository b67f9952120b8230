"""Recurrent networks over whole sequences, forward and back through time.

One call goes over all steps, so that an implementation may compute what needs no state for all of
them at once, and keep its threads to examples of their own. The steps themselves are in
`gpulayers.ops.recurrent`. Inside, time comes first: (n_t, n_ex, ...).

Sources: Elman, "Finding structure in time" (1990); Werbos, "Backpropagation through time" (1990);
Hochreiter & Schmidhuber, "Long short-term memory" (1997); Cho et al., "Learning phrase
representations using RNN encoder-decoder" (2014).
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._protocol import Activation
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights, by_unit

__all__ = [
    "SequenceGradients",
    "Trace",
    "Weights",
    "gru_backward",
    "gru_forward",
    "joined",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "time_first",
    "time_last",
]

States = tuple[Array, ...]


def time_first(X: Array, gated: bool = False) -> Array:
    """Return a sequence batch (n_ex, ch, n_t) as (n_t, n_ex, ch), a new array.

    With `gated` it is for a network with gates, and lies in memory as the implementation likes:
    C-contiguous, or by unit.

    Raises
    ------
    ShapeError, DTypeError
    """
    check.rank("time_first", "X", X, 3, "(n_ex, ch, n_t)")
    (X,) = check.same_float("time_first", X=X)
    return kernels_for(X).time_first(X, gated)


def time_last(X: Array) -> Array:
    """Return (n_t, n_ex, ch) as a sequence batch (n_ex, ch, n_t), a new array.

    Raises
    ------
    ShapeError, DTypeError
    """
    check.rank("time_last", "X", X, 3, "(n_t, n_ex, ch)")
    (X,) = _same_float("time_last", X=X)
    return kernels_for(X).time_last(X)


def joined(arrays: list[Array], axis: int) -> Array:
    """Return matrices of one dtype side by side (`axis` 1) or one below the other (0).

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    if not arrays:
        raise ShapeError("joined: expected at least one matrix, got none")
    check.one_library("joined", *arrays)
    first = arrays[0]
    for k, array in enumerate(arrays):
        if array.ndim != 2:
            check.rank("joined", f"arrays[{k}]", array, 2, "(rows, columns)")
        if array.shape[1 - axis] != first.shape[1 - axis] or array.dtype != first.dtype:
            raise ShapeError(
                f"joined: arrays[{k}] must fit {first.shape} {first.dtype} along axis {axis}, "
                f"got {array.shape} {array.dtype}"
            )
    return kernels_for(first).joined(arrays, axis)


def rnn_forward(
    X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
) -> Trace:
    """A_t = act(A_{t-1} Waa + ba + X_t Wax + bx) for t = 1..n_t.

    Parameters
    ----------
    X : (n_t, n_ex, n_in), floating, at least one step
    first : tuple of A_0 (n_ex, n_out), or None for zeros
    mask : (n_t, n_ex, 1) bool, or None
        False where an example has no such step: its state stays. X must be finite there.
    weights : Weights
        Waa (n_out, n_out), Wax (n_in, n_out), (ba, bx) of n_out elements each.
    act : activation

    Returns
    -------
    trace : Trace
        With the states (A,), and Z_t for every step kept.

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    X, first, weights = _checked("rnn_forward", X, first, mask, weights, (1, 1, (1, 1)))
    return kernels_for(X).rnn_forward(X, first, mask, weights, act)


def rnn_backward(
    dA: Array | None,
    last: States | None,
    trace: Trace,
    weights: Weights,
    act: Activation,
    truncate: int | None = None,
    params: bool = True,
    inputs: bool = True,
) -> SequenceGradients:
    """Go back through what `rnn_forward` went through: dZ_t = (dA_t + accumulator) * act'(Z_t).

    Parameters
    ----------
    dA : (n_t, n_ex, n_out), floating, or None for zeros
        Gradients that reach the states from outside; zero where the mask is False.
    last : tuple of (n_ex, n_out), or None for zeros
        The gradient of the last state, besides that in `dA`.
    trace, weights, act
        As in the forward pass.
    truncate : int, optional
        Gradients stay within stretches of so many steps (Williams & Peng, "An efficient
        gradient-based algorithm for on-line training of recurrent network trajectories", 1990).
    params, inputs : bool
        Whether the gradients of the weights, and of X, are wanted.

    Returns
    -------
    gradients : SequenceGradients

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    dA, last, weights = _checked_back("rnn_backward", dA, last, trace, weights)
    kernels = kernels_for(trace.X)
    return kernels.rnn_backward(dA, last, trace, weights, act, truncate, params, inputs)


def lstm_forward(
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    act: Activation,
    gate: Activation,
) -> Trace:
    """`lstm_step_forward` for t = 1..n_t, with the products.

    Parameters
    ----------
    X, mask, act, gate
        As in `rnn_forward`; `gate` is the gates' activation.
    first : tuple of A_0, C_0 (n_ex, n_out) each, or None for zeros
    weights : Weights
        (n_out, 4 n_out), (n_in, 4 n_out), (b of 4 n_out elements,); blocks forget, update,
        candidate, output.

    Returns
    -------
    trace : Trace
        With the states (A, C); kept are the gates [G_f, G_u, C~, G_o] of every step, what they and
        act(C) came from where `lstm_backward` needs it, and act(C) where it was at hand.

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    X, first, weights = _checked("lstm_forward", X, first, mask, weights, (2, 4, (4,)))
    return kernels_for(X).lstm_forward(X, first, mask, weights, act, gate)


def lstm_backward(
    dA: Array | None,
    last: States | None,
    trace: Trace,
    weights: Weights,
    act: Activation,
    gate: Activation,
    truncate: int | None = None,
    params: bool = True,
    inputs: bool = True,
) -> SequenceGradients:
    """Go back through what `lstm_forward` went through, by `lstm_step_backward`.

    Parameters
    ----------
    dA, trace, weights, act, gate, truncate, params, inputs
        As in `rnn_backward`.
    last : tuple of (n_ex, n_out) for A and C, or None for zeros

    Returns
    -------
    gradients : SequenceGradients

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    dA, last, weights = _checked_back("lstm_backward", dA, last, trace, weights)
    kernels = kernels_for(trace.X)
    return kernels.lstm_backward(dA, last, trace, weights, act, gate, truncate, params, inputs)


def gru_forward(
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    act: Activation,
    gate: Activation,
) -> Trace:
    """`gru_step_forward` for t = 1..n_t, with the products.

    Parameters
    ----------
    X, first, mask, act, gate
        As in `lstm_forward`; the state is A alone.
    weights : Weights
        (n_out, 3 n_out) with blocks update, reset, candidate; (n_in, 3 n_out) with blocks
        candidate, update, reset; (b of 4 n_out elements,), [b_n, b_z, b_r, b_a].

    Returns
    -------
    trace : Trace
        With the state (A,); kept are [N, G_z, G_r] of every step, M, and what they came from where
        `gru_backward` needs it.

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    X, first, weights = _checked("gru_forward", X, first, mask, weights, (1, 3, (4,)))
    return kernels_for(X).gru_forward(X, first, mask, weights, act, gate)


def gru_backward(
    dA: Array | None,
    last: States | None,
    trace: Trace,
    weights: Weights,
    act: Activation,
    gate: Activation,
    truncate: int | None = None,
    params: bool = True,
    inputs: bool = True,
) -> SequenceGradients:
    """Go back through what `gru_forward` went through, by `gru_step_backward`.

    Parameters
    ----------
    dA, last, trace, weights, act, gate, truncate, params, inputs
        As in `lstm_backward`.

    Returns
    -------
    gradients : SequenceGradients

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    dA, last, weights = _checked_back("gru_backward", dA, last, trace, weights)
    kernels = kernels_for(trace.X)
    return kernels.gru_backward(dA, last, trace, weights, act, gate, truncate, params, inputs)


# ---------------------------------------------------------------------------------------- checks


def _checked(
    op: str,
    X: Array,
    first: States | None,
    mask: Array | None,
    weights: Weights,
    sizes: tuple[int, int, tuple[int, ...]],
) -> tuple[Array, States | None, Weights]:
    """X, first and weights as implementations get them.

    `sizes` are the numbers of states, and of blocks of n_out columns in the weights and the biases.
    """
    n_states, blocks, bias_blocks = sizes
    check.rank(op, "X", X, 3, "(n_t, n_ex, n_in)")
    n_t, n_ex, n_in = X.shape
    if n_t == 0:
        raise ShapeError(f"{op}: expected at least one time step, got shape {X.shape}")
    check.rank(op, "weights.recurrent", weights.recurrent, 2, f"(n_out, {blocks} * n_out)")
    h = weights.recurrent.shape[0]
    check.shape(op, "weights.recurrent", weights.recurrent, (h, blocks * h))
    check.shape(op, "weights.input", weights.input, (n_in, blocks * h))
    arrays = {"X": X, "weights.recurrent": weights.recurrent, "weights.input": weights.input}
    _check_count(op, "weights.biases", weights.biases, len(bias_blocks))
    for k, count in enumerate(bias_blocks):
        name = f"weights.biases[{k}]"
        check.array(op, name, weights.biases[k])
        arrays[name] = weights.biases[k].reshape(-1)
        check.shape(op, name, arrays[name], (count * h,))
    if first is not None:
        arrays |= _states(op, "first", first, n_states, (n_ex, h))
    if mask is not None:
        check.shape(op, "mask", mask, (n_t, n_ex, 1))
        check.one_library(op, X, mask)
    X, recurrent, from_input, *rest = _same_float(op, **arrays)
    biases, states = rest[: len(bias_blocks)], rest[len(bias_blocks) :]
    weights = Weights(recurrent, from_input, tuple(biases))
    return X, None if first is None else tuple(states), weights


def _checked_back(
    op: str, dA: Array | None, last: States | None, trace: Trace, weights: Weights
) -> tuple[Array | None, States | None, Weights]:
    """dA, last and weights as implementations get them."""
    n_t, n_ex, n_in = trace.X.shape
    h, width = weights.recurrent.shape
    check.shape(op, "weights.input", weights.input, (n_in, width))
    arrays = {"X": trace.X, "weights.recurrent": weights.recurrent, "weights.input": weights.input}
    for k, state in enumerate(trace.states):
        check.shape(op, f"trace.states[{k}]", state, (n_t + 1, n_ex, h))
        arrays[f"trace.states[{k}]"] = state[:0]  # its kind: in memory it may lie as it likes
    if last is not None:
        arrays |= _states(op, "last", last, len(trace.states), (n_ex, h))
    if dA is not None:
        check.shape(op, "dA", dA, (n_t, n_ex, h))
    _, recurrent, from_input, *rest = _same_float(op, **arrays, dA=dA)
    given = None if last is None else tuple(rest[len(trace.states) : -1])
    return rest[-1], given, Weights(recurrent, from_input, weights.biases)


def _same_float(op: str, **arrays: Array | None) -> list[Array]:
    """`check.same_float`, but sequences that lie by unit in memory stay as they are."""
    stay: dict[str, Array] = {}
    for name in ("X", "dA"):
        array = arrays.get(name)
        if array is not None and not array.flags.c_contiguous and by_unit(array) is not None:
            stay[name], arrays[name] = array, array[:0]  # its kind
    checked = check.same_float(op, **arrays)
    if not stay:
        return checked
    return [stay.get(name, array) for name, array in zip(arrays, checked, strict=True)]


def _states(
    op: str, name: str, states: States, count: int, shape: tuple[int, ...]
) -> dict[str, Array]:
    _check_count(op, name, states, count)
    for k, state in enumerate(states):
        check.shape(op, f"{name}[{k}]", state, shape)
    return {f"{name}[{k}]": state for k, state in enumerate(states)}


def _check_count(op: str, name: str, arrays: States, count: int) -> None:
    if len(arrays) != count:
        raise ShapeError(f"{op}: {name} must hold {count} array(s), got {len(arrays)}")
