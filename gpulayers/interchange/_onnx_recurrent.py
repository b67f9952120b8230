"""Recurrent layers in ONNX: its operators RNN, LSTM and GRU, or step by step.

ONNX's operators know some activations by name. With another one (GELU, say) the steps are written
out, one after the other: the length of the sequence is known when the model is exported.

Ours is (n_ex, n_in, n_t), time last; ONNX's (n_t, n_ex, n_in). Both have the same formulas: for the
GRU ONNX's ``linear_before_reset = 1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpulayers import layers
from gpulayers.backend import Array, xp_of
from gpulayers.interchange._onnx_activations import activated, named
from gpulayers.interchange._onnx_graph import Graph, Value
from gpulayers.interchange._onnx_layers import Converter

_TIME_FIRST = (2, 0, 1)  # of (n_ex, n_out, n_t)
_PAIR = (0, 1)


def recurrent(graph: Graph, layer: Any, X: Value, reverse: bool = False) -> Value:
    """RNN, LSTM or GRU from zero states; `reverse` begins at the end of the sequence."""
    graph.expect(X, 3, "(n_ex, n_in, n_t)", n_in=(1, layer.n_in))
    n_t = X.batch_free(graph.place)[1]
    steps = graph.turned(X, _TIME_FIRST).name
    written = _operator(graph, layer, steps, (), reverse)
    if written is None:
        outputs = [states[0] for states in _step_by_step(graph, layer, steps, n_t, (), reverse)]
        if not layer.return_sequences:
            return outputs[-1]
        in_time = outputs[::-1] if reverse else outputs
        axis = graph.integers(0)
        apart = [graph.add("Unsqueeze", [A.name, axis]) for A in in_time]
        name = graph.add("Concat", apart, axis=0)
    else:
        name, last, *_ = written
        if not layer.return_sequences:
            name = graph.add("Squeeze", [last, graph.integers(0)])
            return Value(name, (X.shape[0], layer.n_out), _PAIR)
        name = graph.add("Squeeze", [name, graph.integers(1)])
    return Value(name, (X.shape[0], layer.n_out, n_t), _TIME_FIRST)


def cell(graph: Graph, layer: Any, X: Value, *states: Value) -> tuple[Value, ...]:
    """One step, whose states come in beside X and go out as the output."""
    if len(states) != len(layer._states):
        names = ["(n_in,)"] + ["(n_out,)"] * len(layer._states)
        raise graph.refuse(
            f"{type(layer).__name__} remembers its state from call to call, which a model cannot; "
            f"give it as an input too: input_shape=[{', '.join(names)}]"
        )
    graph.expect(X, 2, "(n_ex, n_in)", n_in=(1, layer.n_in))
    for state in states:
        graph.expect(state, 2, "(n_ex, n_out)", n_out=(1, layer.n_out))
    axis = graph.integers(0)
    step = graph.add("Unsqueeze", [graph.given(X).name, axis])
    written = _operator(graph, layer, step, states, False)
    new: tuple[Value, ...]
    if written is None:
        (new,) = _step_by_step(graph, layer, step, 1, states, False)
    else:
        names = [graph.add("Squeeze", [name, axis]) for name in written[1:]]
        new = tuple(Value(name, (X.shape[0], layer.n_out), _PAIR) for name in names)
    return new


def _operator(
    graph: Graph, layer: Any, steps: str, states: tuple[Value, ...], reverse: bool
) -> list[str] | None:
    """Names of all outputs and of the last states; None if ONNX does not know an activation."""
    operator, weights, acts, more = _OPERATORS[_kind(layer)]
    attributes = named(graph, [getattr(layer, act) for act in acts])
    if attributes is None:
        return None
    arrays = [graph.weight(array[None]) for array in weights(layer.parameters, layer.n_out)]
    first = [
        graph.add("Unsqueeze", [graph.given(state).name, graph.integers(0)]) for state in states
    ]
    return graph.add(
        operator,
        [steps, *arrays, *(["", *first] if first else [])],  # "": no lengths of sequences
        outputs=1 + len(layer._states),
        hidden_size=layer.n_out,
        direction="reverse" if reverse else "forward",
        **attributes,
        **more,
    )


def _kind(layer: Any) -> type:
    return next(base for base in _OPERATORS if isinstance(layer, base))


# --------------------------------------------------------------------- weights in ONNX's order


def _rnn_weights(p: dict[str, Array], h: int) -> list[Array]:
    """W (h, n_in), R (h, h), B (2 h): the input's bias, the state's."""
    xp = xp_of(p["Wax"])
    return [p["Wax"].T, p["Waa"].T, xp.concatenate([p["bx"], p["ba"]]).reshape(-1)]


def _gates(p: dict[str, Array], h: int, order: str) -> list[Array]:
    """W (gates * h, n_in), R (gates * h, h): a gate's first h rows are the state's."""
    xp = xp_of(p[f"W{order[0]}"])
    parts = [p[f"W{g}"] for g in order]
    return [xp.concatenate([w[rows].T for w in parts]) for rows in (slice(h, None), slice(0, h))]


def _lstm_weights(p: dict[str, Array], h: int) -> list[Array]:
    """ONNX's gates are input, output, forget, cell."""
    xp, order = xp_of(p["Wf"]), "uofc"
    b = xp.concatenate([p[f"b{g}"].reshape(-1) for g in order])
    return [*_gates(p, h, order), xp.concatenate([b, xp.zeros_like(b)])]


def _gru_weights(p: dict[str, Array], h: int) -> list[Array]:
    """ONNX's gates are update, reset, hidden; `ba` is the recurrent bias of the last."""
    none = xp_of(p["bz"]).zeros_like(p["bz"])
    biases = (p["bz"], p["br"], p["bn"], none, none, p["ba"])
    b = xp_of(p["bz"]).concatenate([b.reshape(-1) for b in biases])
    return [*_gates(p, h, "zrn"), b]


# operator, weights, activations in its order, further attributes
_Operator = tuple[str, Any, tuple[str, ...], dict[str, Any]]
_RNN: _Operator = "RNN", _rnn_weights, ("act_fn",), {}
_LSTM: _Operator = "LSTM", _lstm_weights, ("gate_fn", "act_fn", "act_fn"), {}
_GRU: _Operator = "GRU", _gru_weights, ("gate_fn", "act_fn"), {"linear_before_reset": 1}
_OPERATORS: dict[type, _Operator] = {
    layers.RNN: _RNN,
    layers.RNNCell: _RNN,
    layers.LSTM: _LSTM,
    layers.LSTMCell: _LSTM,
    layers.GRU: _GRU,
    layers.GRUCell: _GRU,
}

# ----------------------------------------------------------------------------------- step by step


def _step_by_step(
    graph: Graph, layer: Any, steps: str, n_t: int, states: tuple[Value, ...], reverse: bool
) -> Iterator[tuple[Value, ...]]:
    """The states after each step, (n_ex, n_out) each, in the order in which they are computed."""
    w, operator = layer._weights(), _OPERATORS[_kind(layer)][0]
    projected = graph.add("MatMul", [steps, graph.weight(w.input, "W")])
    parts = graph.add("Split", [projected], outputs=n_t, axis=0) if n_t > 1 else [projected]
    axis = graph.integers(0)
    A = graph.given(states[0]) if states else None
    C = graph.given(states[1]) if len(states) > 1 else None
    for part in reversed(parts) if reverse else parts:
        Z = graph.add("Squeeze", [part, axis])
        R = None if A is None else graph.add("MatMul", [A.name, graph.weight(w.recurrent, "R")])
        if operator == "LSTM":
            A, C = _lstm_step(graph, layer, _plus(graph, Z, R, w.biases[0]), C)
            yield A, C
            continue
        if operator == "GRU":
            A = _gru_step(graph, layer, Z, R, w.biases[0], A)
        else:
            Z = _plus(graph, Z, R, (w.biases[0] + w.biases[1]).reshape(-1))
            A = activated(graph, Value(Z, (None, layer.n_out), _PAIR), layer.act_fn)
        yield (A,)


def _plus(graph: Graph, Z: str, R: str | None, b: Array) -> str:
    """Z + R + b; no R before the first step, whose state is zero."""
    if R is not None:
        Z = graph.add("Add", [Z, R])
    return graph.add("Add", [Z, graph.weight(b.reshape(-1), "b")])


def _blocks(graph: Graph, layer: Any, Z: str, count: int) -> list[Value]:
    names = graph.add("Split", [Z], outputs=count, axis=1)
    return [Value(name, (None, layer.n_out), _PAIR) for name in names]


def _lstm_step(graph: Graph, layer: Any, Z: str, C: Value | None) -> tuple[Value, Value]:
    """C_t = Gf * C_{t-1} + Gu * Cc,  A_t = Go * act(C_t)."""
    f, u, c, o = _blocks(graph, layer, Z, 4)
    Gf, Gu, Go = (activated(graph, gate, layer.gate_fn) for gate in (f, u, o))
    new = graph.both("Mul", Gu, activated(graph, c, layer.act_fn))
    C = new if C is None else graph.both("Add", graph.both("Mul", Gf, C), new)
    return graph.both("Mul", Go, activated(graph, C, layer.act_fn)), C


def _gru_step(graph: Graph, layer: Any, Z: str, R: str | None, b: Array, A: Value | None) -> Value:
    """A_t = (1 - Gz) * N + Gz * A_{t-1},  N = act(Z_n + Gr * M)."""
    h, b = layer.n_out, b.reshape(-1)
    Zn, Zz, Zr = _blocks(graph, layer, _plus(graph, Z, None, b[: 3 * h]), 3)
    ba = graph.weight(b[3 * h :], "ba")
    if R is None:
        M = ba
    else:
        Rz, Rr, Rn = _blocks(graph, layer, R, 3)
        Zz, Zr = graph.both("Add", Zz, Rz), graph.both("Add", Zr, Rr)
        M = graph.add("Add", [Rn.name, ba])
    Gz, Gr = (activated(graph, gate, layer.gate_fn) for gate in (Zz, Zr))
    inner = graph.both("Add", Zn, Value(graph.add("Mul", [Gr.name, M]), Gr.shape, _PAIR))
    N = activated(graph, inner, layer.act_fn)
    new = graph.both("Sub", N, graph.both("Mul", Gz, N))
    return new if A is None else graph.both("Add", new, graph.both("Mul", Gz, A))


CONVERTERS: dict[type, Converter] = {
    layers.RNN: recurrent,
    layers.LSTM: recurrent,
    layers.GRU: recurrent,
    layers.RNNCell: cell,
    layers.LSTMCell: cell,
    layers.GRUCell: cell,
}
