"""Recurrent layers with known parameters, their states, and one sequence alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.layers import harness
from tests.support.compare import host

N, N_IN, N_OUT, N_T = 4, 3, 2, 6
X = harness.values((N, N_IN, N_T), 1)
DA = harness.values((N, N_OUT, N_T), 2)
LENGTHS = [6, 1, 4, 3]
MASK = np.arange(N_T) < np.array(LENGTHS)[:, None]
kinds = pytest.mark.parametrize("kind", [layers.RNN, layers.LSTM, layers.GRU])


def make(kind: Any, backend: Backend, **settings: Any) -> Any:
    """A layer with known parameters."""
    layer = kind(N_OUT, **settings)
    layer.forward(backend.asarray(X), retain_derived=False)
    for k, (_, array) in enumerate(sorted(layer.parameters.items())):
        array[...] = backend.asarray(0.5 * harness.values(array.shape, 10 + k))
    layer.final_state = None
    return layer


def states_of(kind: Any, backend: Backend, seed: int) -> Any:
    count = 2 if kind is layers.LSTM else 1
    states = tuple(backend.asarray(harness.values((N, N_OUT), seed + k)) for k in range(count))
    return states if count == 2 else states[0]


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def accumulators(layer: Any) -> Any:
    names = ("dLdA_accumulator", "dLdC_accumulator")
    found = tuple(layer.derived_variables[n] for n in names if n in layer.derived_variables)
    return found if len(found) == 2 else found[0]


def numbers(gradients: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: host(g).copy() for name, g in gradients.items()}


def alone(layer: Any, backend: Backend, m: int, steps: Any, dA: np.ndarray) -> Any:
    """(A, dX, gradients, final states) of one sequence with only these steps; dA for each."""
    layer.flush_gradients()
    A = layer.forward(backend.asarray(X[m : m + 1][:, :, steps].copy()))
    dX = layer.backward(backend.asarray(dA.copy()))
    result = host(A)[0], host(dX)[0], numbers(layer.gradients), as_tuple(layer.final_state)
    layer.flush_gradients()
    return result


def counted_passes(kind: Any, emulated: Backend, n_t: int) -> tuple[Counter[str], Counter[str]]:
    """What happens in a forward and in a backward pass of a layer that has seen its input."""
    layer = kind(6)
    x = emulated.asarray(harness.values((2, 3, n_t), 1), "float32")
    da = emulated.asarray(harness.values((2, 6, n_t), 1), "float32")
    with harness.default_dtype("float32"):
        layer.forward(x, retain_derived=False)
    with emulated.count() as ahead:
        layer.forward(x)
    with emulated.count() as back:
        layer.backward(da)
    return ahead, back


def all_steps(
    cell: Any, backend: Backend, X: np.ndarray, dA: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A cell ahead through time, and back: its outputs, and the gradient of X."""
    steps = range(X.shape[2])
    A = [as_tuple(cell.forward(backend.asarray(X[:, :, t])))[0] for t in steps]
    dX = [cell.backward(backend.asarray(dA[:, :, t])) for t in reversed(steps)]
    return (
        np.stack([host(a) for a in A], axis=2),
        np.stack([host(d) for d in reversed(dX)], axis=2),
    )
