"""The recurrent cell step by step and the layer over sequences, through time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import ShapeError
from tests.conftest import Backend
from tests.layers import gold as golds
from tests.layers import harness
from tests.layers.sequences import all_steps
from tests.support.compare import assert_close, assert_same_bits, host

N, N_IN, N_OUT, N_T = 3, 4, 2, 5
X = harness.values((N, N_IN, N_T), 1)
DA = harness.values((N, N_OUT, N_T), 2)
PARAMS = {
    "Wax": 0.5 * harness.values((N_IN, N_OUT), 3),
    "Waa": 0.5 * harness.values((N_OUT, N_OUT), 4),
    "ba": 0.5 * harness.values((N_OUT, 1), 5),
    "bx": 0.5 * harness.values((N_OUT, 1), 6),
}
GOLD = golds.rnn("tanh")(PARAMS, X, lambda shape: DA)


@pytest.fixture
def float64():
    with harness.default_dtype("float64"):
        yield


def filled(layer: Any, backend: Backend) -> Any:
    parameters = {name: backend.asarray(value) for name, value in PARAMS.items()}
    return layer.set_params({"parameters": parameters, "hyperparameters": {"n_in": N_IN}})


through_time = partial(all_steps, X=X, dA=DA)


def test_the_cell_through_time(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    A, dX = through_time(cell, backend)
    assert_close(A, GOLD.Y)
    assert_close(dX, GOLD.dX)
    harness.assert_grads(cell, GOLD.grads)


def test_what_the_cell_shows(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    assert cell.derived_variables["dLdA_accumulator"] is None
    for t in range(N_T):
        cell.forward(backend.asarray(X[:, :, t]))
    derived = cell.derived_variables
    assert (derived["n_timesteps"], derived["current_step"]) == (N_T, N_T)
    assert len(derived["A"]) == N_T + 1
    assert len(derived["Z"]) == N_T
    assert_close(derived["A"][0], np.zeros((N, N_OUT)))
    for t in range(N_T):
        assert_close(derived["A"][t + 1], GOLD.Y[:, :, t])
        assert_close(derived["Z"][t], np.arctanh(GOLD.Y[:, :, t]), factor=100)
    cell.backward(backend.asarray(DA[:, :, -1]))
    assert derived["current_step"] == N_T - 1
    dZ = DA[:, :, -1] * (1 - GOLD.Y[:, :, -1] ** 2)
    assert_close(derived["dLdA_accumulator"], dZ @ PARAMS["Waa"].T)
    cell.flush_gradients()
    assert cell.derived_variables == layers.RNNCell(N_OUT).derived_variables


def test_a_second_sequence_without_flush_begins_anew(backend: Backend, float64: None) -> None:
    """numpy-ml goes on with the old state and mixes the two up; gradients add."""
    cell = filled(layers.RNNCell(N_OUT), backend)
    first, second = through_time(cell, backend), through_time(cell, backend)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])
    harness.assert_grads(cell, {name: 2 * g for name, g in GOLD.grads.items()})


@pytest.mark.parametrize("make", [layers.RNNCell, layers.RNN])
def test_a_second_training_step(make: Any, backend: Backend, float64: None) -> None:
    """numpy-ml's flush leaves a list where the accumulator was: no second step is possible."""
    layer = filled(make(N_OUT, optimizer="SGD(lr=0.1)"), backend)
    params = dict(PARAMS)
    for _ in range(3):
        gold = golds.rnn("tanh")(params, X, lambda shape: DA)
        if make is layers.RNNCell:
            A, dX = through_time(layer, backend)
        else:
            A = layer.forward(backend.asarray(X))
            dX = layer.backward(backend.asarray(DA))
        assert_close(A, gold.Y)
        assert_close(dX, gold.dX)
        layer.update()
        params = {name: p - 0.1 * gold.grads[name] for name, p in params.items()}
        for name, value in params.items():
            assert_close(layer.parameters[name], value)


def test_one_backward_too_many(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    through_time(cell, backend)
    with pytest.raises(ShapeError, match="RNNCell: no step is left to go back through"):
        cell.backward(backend.asarray(DA[:, :, 0]))
    harness.assert_grads(cell, GOLD.grads)


def test_forward_in_the_middle_of_going_back(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    for t in range(3):
        cell.forward(backend.asarray(X[:, :, t]))
    cell.backward(backend.asarray(DA[:, :, 2]))
    with pytest.raises(ShapeError, match="RNNCell: 2 of 3 steps wait for backward"):
        cell.forward(backend.asarray(X[:, :, 3]))
    with pytest.raises(ShapeError, match=r"call flush_gradients\(\) before this forward"):
        cell.forward(backend.asarray(X[:, :, 3]), retain_derived=False)
    cell.flush_gradients()
    A, dX = through_time(cell, backend)
    assert_close(A, GOLD.Y)
    assert_close(dX, GOLD.dX)


def test_evaluation_carries_the_state(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    for t in range(N_T):
        A = cell.forward(backend.asarray(X[:, :, t]), retain_derived=False)
        assert_close(A, GOLD.Y[:, :, t])
    assert cell.X == []


def test_another_batch_size_in_the_middle(backend: Backend, float64: None) -> None:
    cell = filled(layers.RNNCell(N_OUT), backend)
    cell.forward(backend.asarray(X[:, :, 0]))
    with pytest.raises(ShapeError, match="the sequence has 3 examples, this step's input 1"):
        cell.forward(backend.asarray(X[:1, :, 1]))


def test_the_layer_and_its_cell_are_one(backend: Backend, float64: None) -> None:
    layer = filled(layers.RNN(N_OUT), backend)
    assert isinstance(layer, layers.RNN)
    for name, array in layer.parameters.items():
        assert layer.cell.parameters[name] is array
    A, dX = through_time(layer.cell, backend)
    layer.cell.flush_gradients()
    assert_close(layer.forward(backend.asarray(X)), A)
    assert_close(layer.backward(backend.asarray(DA)), dX)
    layer.freeze()
    assert not layer.cell.trainable
    layer.unfreeze()
    assert layer.cell.trainable


@pytest.mark.parametrize("n_t", [1, 2, 7])
def test_sequences_of_any_length(n_t: int, backend: Backend, float64: None) -> None:
    layer = filled(layers.RNN(N_OUT), backend)
    x, da = harness.values((2, N_IN, n_t), 8), harness.values((2, N_OUT, n_t), 9)
    gold = golds.rnn("tanh")(PARAMS, x, lambda shape: da)
    assert_close(layer.forward(backend.asarray(x)), gold.Y)
    assert_close(layer.backward(backend.asarray(da)), gold.dX)
    harness.assert_grads(layer, gold.grads)


def test_several_sequences_before_one_backward(backend: Backend, float64: None) -> None:
    """They are independent: the second starts from A_0 = 0."""
    layer = filled(layers.RNN(N_OUT), backend)
    longer = harness.values((2, N_IN, 3), 10)
    gold = golds.rnn("tanh")(PARAMS, longer, lambda shape: harness.values(shape, 11))
    Y1 = layer.forward(backend.asarray(X))
    Y2 = layer.forward(backend.asarray(longer))
    assert_close(Y2, gold.Y)
    dX = layer.backward([backend.asarray(DA), harness.gradient_like(Y2, backend) * 0])
    assert_close(Y1, GOLD.Y)
    assert_close(dX[0], GOLD.dX)
    harness.assert_grads(layer, GOLD.grads)


def test_hidden_state_matters(backend: Backend, float64: None) -> None:
    """Changing the first input changes the last output, and its gradient is not zero."""
    layer = filled(layers.RNN(N_OUT), backend)
    dA = np.zeros_like(DA)
    dA[:, :, -1] = 1.0
    layer.forward(backend.asarray(X))
    assert np.abs(host(layer.backward(backend.asarray(dA)))[:, :, 0]).max() > 1e-6
