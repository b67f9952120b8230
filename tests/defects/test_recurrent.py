"""Cells of one unit against scalar arithmetic, over two sequences and two training steps."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.defects.support import known, slope
from tests.support.compare import assert_close, host

Parameters = dict[str, list[complex]]


def rnn(p: Parameters, xs: Sequence[complex]) -> list[complex]:
    """All activations; parameters are lists of numbers by name."""
    a, out = 0j, []
    for x in xs:
        a = cmath.tanh(a * p["Waa"][0] + p["ba"][0] + x * p["Wax"][0] + p["bx"][0])
        out.append(a)
    return out


def lstm(p: Parameters, xs: Sequence[complex]) -> list[complex]:
    """The same; weights have the recurrent row first."""
    a, c, out = 0j, 0j, []
    for x in xs:
        z = {g: a * p[f"W{g}"][0] + x * p[f"W{g}"][1] + p[f"b{g}"][0] for g in "fuco"}
        f, u, o = (1 / (1 + cmath.exp(-z[g])) for g in "fuo")
        c = f * c + u * cmath.tanh(z["c"])
        a = o * cmath.tanh(c)
        out.append(a)
    return out


REFERENCE: dict[str, Callable[[Parameters, Sequence[complex]], list[complex]]] = {
    "RNN": rnn,
    "LSTM": lstm,
}
both = pytest.mark.parametrize("name", REFERENCE)


def numbers(layer: Any) -> Parameters:
    return {k: list(host(a).ravel()) for k, a in layer.parameters.items()}


def input_slopes(name: str, p: Parameters, xs: list[float]) -> list[float]:
    """The derivative of the sum of all activations with respect to each input."""

    def moved(t: int) -> Callable[[complex], complex]:
        return lambda x: sum(REFERENCE[name](p, [*xs[:t], x, *xs[t + 1 :]]))

    return [slope(moved(t), x) for t, x in enumerate(xs)]


def parameter_slopes(name: str, p: Parameters, xs: list[float]) -> dict[str, list[float]]:
    """The same with respect to each parameter."""

    def moved(key: str, i: int) -> Callable[[complex], complex]:
        values = p[key]
        return lambda v: sum(REFERENCE[name]({**p, key: [*values[:i], v, *values[i + 1 :]]}, xs))

    return {k: [slope(moved(k, i), v.real) for i, v in enumerate(p[k])] for k in p}


def cell_of(name: str, backend: Backend, **kwargs: Any) -> Any:
    """A cell of one unit with weights 0.5 and biases 0."""
    cell = getattr(layers, f"{name}Cell")(1, **kwargs)
    halves = {"RNN": ["Waa", "Wax"], "LSTM": ["Wf", "Wu", "Wc", "Wo"]}[name]
    return known(cell, backend, (1, 1), **dict.fromkeys(halves, 0.5))


def run(cell: Any, xs: list[float], backend: Backend) -> tuple[list[float], list[float]]:
    """Activations and input gradients of one sequence, for a gradient of 1 at every step."""
    outs = [cell.forward(backend.asarray([[x]], float)) for x in xs]
    Y = [(out[0] if isinstance(out, tuple) else out).item() for out in outs]
    one = backend.asarray(np.ones((1, 1)))
    return Y, [cell.backward(one).item() for _ in xs][::-1]


@pytest.mark.defect(4)
@both
def test_recurrent_layers_can_be_made_and_trained(name: str, backend: Backend) -> None:
    """numpy-ml's RNN(3) and LSTM(3) raise AttributeError (property 'gradients' has no setter)."""
    layer = getattr(layers, name)(1, optimizer="SGD(lr=0.1)")
    xs = [1.0, 2.0, -1.0]
    X = backend.asarray(np.array(xs).reshape(1, 1, 3))
    for loss in (2.0, 1.0):
        p = numbers(layer) if layer.is_initialized else None
        Y = layer.forward(X)
        p = p or numbers(layer)
        assert_close(Y.ravel(), [a.real for a in REFERENCE[name](p, xs)])
        dX = layer.backward(backend.asarray(np.ones((1, 1, 3))))
        assert_close(dX.ravel(), input_slopes(name, p, xs))
        layer.update(cur_loss=loss)
        for key, steps in parameter_slopes(name, p, xs).items():
            assert_close(layer.parameters[key].ravel(), np.array(p[key]) - 0.1 * np.array(steps))
    again = getattr(layers, name)(1).set_params(layer.summary())
    assert_close(again.forward(X), host(layer.forward(X)))


@pytest.mark.defect(9)
@both
def test_cells_train_for_more_than_one_step(name: str, backend: Backend) -> None:
    """numpy-ml's second backward raises ValueError: the flushed accumulators have shape (0,)."""
    cell = cell_of(name, backend, optimizer="SGD(lr=0.1)")
    xs = [1.0, 2.0]
    for _ in range(3):
        p = numbers(cell)
        Y, dX = run(cell, xs, backend)
        np.testing.assert_allclose(Y, [a.real for a in REFERENCE[name](p, xs)], rtol=1e-12)
        np.testing.assert_allclose(dX, input_slopes(name, p, xs), rtol=1e-12)
        cell.update()
        for key, steps in parameter_slopes(name, p, xs).items():
            assert_close(cell.parameters[key].ravel(), np.array(p[key]) - 0.1 * np.array(steps))


# numpy-ml's activations and input gradients of the second sequence
SECOND = {
    "RNN": ([0.958036, -0.020979], [0.475778, 0.209941]),
    "LSTM": ([0.770023, 0.269234], [0.536517, 0.360372]),
}


@pytest.mark.defect(12)
@both
def test_a_second_sequence_starts_afresh(name: str, backend: Backend) -> None:
    """numpy-ml goes on from the first sequence's states and accumulators; see `SECOND`."""
    cell = cell_of(name, backend)
    p = numbers(cell)
    run(cell, [1.0, 2.0], backend)
    xs = [3.0, -1.0]
    for ours, right, numpy_ml in zip(
        run(cell, xs, backend),
        ([a.real for a in REFERENCE[name](p, xs)], input_slopes(name, p, xs)),
        SECOND[name],
        strict=True,
    ):
        np.testing.assert_allclose(ours, right, rtol=1e-12)
        assert not np.isclose(ours, numpy_ml, rtol=1e-2).any()
    total = {k: np.array(v) for k, v in parameter_slopes(name, p, xs).items()}
    for key, steps in parameter_slopes(name, p, [1.0, 2.0]).items():
        assert_close(cell.gradients[key].ravel(), total[key] + np.array(steps))
