"""The LSTM cell step by step and the layer over sequences, through time."""

from __future__ import annotations

import copy
import importlib
from collections.abc import MutableSequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpulayers import activations, initializers, layers, random
from gpulayers.errors import ShapeError
from tests.conftest import Backend
from tests.layers import gold as golds
from tests.layers import harness
from tests.layers.sequences import all_steps, counted_passes
from tests.support.compare import assert_close, assert_same_bits, host

N, N_IN, N_OUT, N_T = 3, 4, 2, 5
X = harness.values((N, N_IN, N_T), 1)
DA = harness.values((N, N_OUT, N_T), 2)
PARAMS = {
    **{f"W{g}": 0.5 * harness.values((N_OUT + N_IN, N_OUT), 3 + k) for k, g in enumerate("fuco")},
    **{f"b{g}": 0.5 * harness.values((1, N_OUT), 7 + k) for k, g in enumerate("fuco")},
}
GOLD = golds.lstm()(PARAMS, X, lambda shape: DA)


@pytest.fixture(autouse=True)
def float64():
    with harness.default_dtype("float64"):
        yield


def filled(layer: Any, backend: Backend) -> Any:
    parameters = {name: backend.asarray(value) for name, value in PARAMS.items()}
    return layer.set_params({"parameters": parameters, "hyperparameters": {"n_in": N_IN}})


through_time = partial(all_steps, X=X, dA=DA)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def memories(params: dict[str, np.ndarray] = PARAMS) -> dict[str, list[np.ndarray]]:
    """What a numpy-ml user finds in `derived_variables`, from the definition."""
    p, A, C = params, [np.zeros((N, N_OUT))], [np.zeros((N, N_OUT))]
    shown: dict[str, list[np.ndarray]] = {"Gf": [], "Gu": [], "Go": [], "Cc": []}
    for t in range(N_T):
        both = np.hstack([A[-1], X[:, :, t]])
        f, u, c, o = (both @ p[f"W{g}"] + p[f"b{g}"] for g in "fuco")
        values = (sigmoid(f), sigmoid(u), sigmoid(o), np.tanh(c))
        for held, value in zip(shown.values(), values, strict=True):
            held.append(value)
        C.append(values[0] * C[-1] + values[1] * values[3])
        A.append(values[2] * np.tanh(C[-1]))
    return {"A": A, "C": C, **shown}


def test_the_cell_returns_both_states(backend: Backend) -> None:
    cell, expected = filled(layers.LSTMCell(N_OUT), backend), memories()
    for t in range(N_T):
        A, C = cell.forward(backend.asarray(X[:, :, t]))
        assert_close(A, expected["A"][t + 1])
        assert_close(C, expected["C"][t + 1])


def test_the_cell_through_time(backend: Backend) -> None:
    cell = filled(layers.LSTMCell(N_OUT), backend)
    A, dX = through_time(cell, backend)
    assert_close(A, GOLD.Y)
    assert_close(dX, GOLD.dX)
    harness.assert_grads(cell, GOLD.grads)


@pytest.mark.parametrize("make", [layers.LSTMCell, layers.LSTM])
def test_what_is_shown(make: Any, backend: Backend) -> None:
    layer, expected = filled(make(N_OUT), backend), memories()
    empty = {
        **dict.fromkeys(["n_timesteps", "current_step"], 0),
        **dict.fromkeys(["dLdA_accumulator", "dLdC_accumulator"]),
        **{name: [] for name in ("A", "C", "Gf", "Gu", "Go", "Gc", "Cc")},
    }
    assert layer.derived_variables == empty
    if make is layers.LSTM:
        layer.forward(backend.asarray(X))
    for t in range(N_T if make is layers.LSTMCell else 0):
        layer.forward(backend.asarray(X[:, :, t]))
    derived = layer.derived_variables
    assert derived.keys() == empty.keys()
    assert (derived["n_timesteps"], derived["current_step"], derived["Gc"]) == (N_T, N_T, [])
    for name, arrays in expected.items():
        assert isinstance(derived[name], MutableSequence)
        assert len(derived[name]) == len(arrays)
        for got, wanted in zip(derived[name], arrays, strict=True):
            assert_close(got, wanted)
    layer.flush_gradients()
    assert layer.derived_variables == empty


def test_the_accumulators(backend: Backend) -> None:
    """After a step back they hold what the step before it receives."""
    cell, shown = filled(layers.LSTMCell(N_OUT), backend), memories()
    for t in range(N_T):
        cell.forward(backend.asarray(X[:, :, t]))
    derived = cell.derived_variables
    assert derived["dLdA_accumulator"] is None
    assert derived["dLdC_accumulator"] is None
    cell.backward(backend.asarray(DA[:, :, -1]))
    assert derived["current_step"] == N_T - 1
    f, u, o, c = (shown[name][-1] for name in ("Gf", "Gu", "Go", "Cc"))
    seen, dA = np.tanh(shown["C"][-1]), DA[:, :, -1]
    dC = dA * o * (1 - seen**2)
    assert_close(derived["dLdC_accumulator"], dC * f)
    dZ = {
        "f": dC * shown["C"][-2] * f * (1 - f),
        "u": dC * c * u * (1 - u),
        "c": dC * u * (1 - c**2),
        "o": dA * seen * o * (1 - o),
    }
    back = sum(d @ PARAMS[f"W{g}"][:N_OUT].T for g, d in dZ.items())
    assert_close(derived["dLdA_accumulator"], back)


def test_a_gradient_for_the_last_memory(backend: Backend) -> None:
    """numpy-ml has no way to give C_T a gradient of its own."""
    dC_T = harness.values((N, N_OUT), 30)

    def loss(x: np.ndarray) -> float:
        cell = filled(layers.LSTMCell(N_OUT), backend)
        for t in range(N_T):
            A, C = cell.forward(backend.asarray(x[:, :, t]))
        return float(np.sum(host(A) * DA[:, :, -1]) + np.sum(host(C) * dC_T))

    cell = filled(layers.LSTMCell(N_OUT), backend)
    for t in range(N_T):
        cell.forward(backend.asarray(X[:, :, t]))
    cell.derived_variables["dLdC_accumulator"] = backend.asarray(dC_T)
    zeros = backend.asarray(np.zeros((N, N_OUT)))
    dX = [cell.backward(backend.asarray(DA[:, :, -1]))]
    dX += [cell.backward(zeros) for _ in range(N_T - 1)]
    direction = harness.values(X.shape, 31)
    change = loss(X + 1e-6 * direction) - loss(X - 1e-6 * direction)
    got = sum(np.sum(host(d) * direction[:, :, -1 - k]) for k, d in enumerate(dX))
    assert got == pytest.approx(change / 2e-6, rel=1e-7)


def test_a_second_sequence_without_flush_begins_anew(backend: Backend) -> None:
    """numpy-ml goes on with the old states and mixes the two up (dX off by 0.46)."""
    cell = filled(layers.LSTMCell(N_OUT), backend)
    first, second = through_time(cell, backend), through_time(cell, backend)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])
    harness.assert_grads(cell, {name: 2 * g for name, g in GOLD.grads.items()})


@pytest.mark.parametrize("make", [layers.LSTMCell, layers.LSTM])
def test_a_second_training_step(make: Any, backend: Backend) -> None:
    """numpy-ml's flush leaves lists where the accumulators were: no second step is possible."""
    layer = filled(make(N_OUT, optimizer="SGD(lr=0.1)"), backend)
    params = dict(PARAMS)
    for _ in range(3):
        gold = golds.lstm()(params, X, lambda shape: DA)
        if make is layers.LSTMCell:
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


def test_one_backward_too_many_and_forward_in_the_middle(backend: Backend) -> None:
    cell = filled(layers.LSTMCell(N_OUT), backend)
    through_time(cell, backend)
    with pytest.raises(ShapeError, match="LSTMCell: no step is left to go back through"):
        cell.backward(backend.asarray(DA[:, :, 0]))
    for t in range(2):
        cell.forward(backend.asarray(X[:, :, t]))
    cell.backward(backend.asarray(DA[:, :, 1]))
    with pytest.raises(ShapeError, match="LSTMCell: 1 of 2 steps wait for backward"):
        cell.forward(backend.asarray(X[:, :, 2]))


def test_evaluation_carries_both_states(backend: Backend) -> None:
    cell, expected = filled(layers.LSTMCell(N_OUT), backend), memories()
    for t in range(N_T):
        A, C = cell.forward(backend.asarray(X[:, :, t]), retain_derived=False)
        assert_close(A, expected["A"][t + 1])
        assert_close(C, expected["C"][t + 1])
    assert cell.X == []


def test_another_batch_size_in_the_middle(backend: Backend) -> None:
    cell = filled(layers.LSTMCell(N_OUT), backend)
    cell.forward(backend.asarray(X[:, :, 0]))
    with pytest.raises(ShapeError, match="the sequence has 3 examples, this step's input 1"):
        cell.forward(backend.asarray(X[:1, :, 1]))


def test_the_layer_and_its_cell_are_one(backend: Backend) -> None:
    layer = filled(layers.LSTM(N_OUT), backend)
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
def test_sequences_of_any_length(n_t: int, backend: Backend) -> None:
    layer = filled(layers.LSTM(N_OUT), backend)
    x, da = harness.values((2, N_IN, n_t), 8), harness.values((2, N_OUT, n_t), 9)
    gold = golds.lstm()(PARAMS, x, lambda shape: da)
    assert_close(layer.forward(backend.asarray(x)), gold.Y)
    assert_close(layer.backward(backend.asarray(da)), gold.dX)
    harness.assert_grads(layer, gold.grads)


def test_a_users_own_gates(backend: Backend) -> None:
    """Other functions, the same numbers: the general formulas agree with the kernel's."""

    class Gate(activations.ActivationBase):
        def fn(self, z: Any) -> Any:
            return activations.Sigmoid().fn(z)

        def grad(self, x: Any) -> Any:
            return activations.Sigmoid().grad(x)

    gate = Gate()
    layer = filled(layers.LSTM(N_OUT, gate_fn=gate, init="he_normal"), backend)
    assert layer.gate_fn is gate
    assert_close(layer.forward(backend.asarray(X)), GOLD.Y)
    assert_close(layer.backward(backend.asarray(DA)), GOLD.dX)
    harness.assert_grads(layer, GOLD.grads)
    layer.set_params(copy.deepcopy(layer.summary()))  # by name it is the same
    assert layer.gate_fn is gate
    assert layer.cell.gate_fn is gate


@pytest.mark.parametrize("make", [layers.LSTMCell, layers.LSTM])
def test_first_weights(make: Any) -> None:
    """Drawn in numpy-ml's order f, u, c, o; the candidate's for act_fn, the gates' for gate_fn."""
    random.seed(5)
    layer = make(3, act_fn="ReLU", gate_fn="Sigmoid", init="glorot_uniform")
    layer.forward(np.ones((1, 2) if make is layers.LSTMCell else (1, 2, 1)))
    random.seed(5)
    for g in "fuco":
        draw = initializers.WeightInitializer("ReLU" if g == "c" else "Sigmoid", "glorot_uniform")
        assert_same_bits(layer.parameters[f"W{g}"], draw((5, 3), "float64", np))
        assert_same_bits(layer.parameters[f"b{g}"], np.zeros((1, 3)))


def test_the_gates_activation_round_trips() -> None:
    layer = layers.LSTM(3, act_fn="ELU(alpha=0.5)", gate_fn="Hard Sigmoid")
    other = layers.LSTM(2).set_params(layer.summary())
    for one in (layer, other, other.cell):
        assert one.hyperparameters["gate_fn"] == str(activations.HardSigmoid())
        assert one.hyperparameters["act_fn"] == str(layer.act_fn)
        assert one.n_out == 3
    assert type(other.gate_fn) is activations.HardSigmoid


def test_all_steps_are_one_kernel(emulated: Backend) -> None:
    """Each way; more steps cost no more launches."""
    launches = []
    for n_t in (4, 9):
        ahead, back = counted_passes(layers.LSTM, emulated, n_t)
        launches.append((ahead["launch"], back["launch"]))
        kernels = [k for k in (*ahead, *back) if "sequence" in k or "step" in k]
        assert [k.split("<")[0] for k in kernels] == [
            "kernel:lstm_sequence_held_forward",
            "kernel:lstm_sequence_held_backward",
        ]
    assert launches[0] == launches[1]


def test_a_step_is_one_product_and_one_kernel(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights are too many for a kernel over all steps. The input's product is one for
    all; more steps cost one product and launch each."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.sequence"), "_MOST_STREAMED", -1)
    launches = []
    for n_t in (4, 9):
        ahead, back = counted_passes(layers.LSTM, emulated, n_t)
        assert ahead["kernel:lstm_step_forward<float, float, int>"] == n_t
        assert back["kernel:lstm_step_backward<float, float, int>"] == n_t
        launches.append((ahead["launch"], back["launch"]))
    assert launches[1][0] - launches[0][0] == 2 * 5
    assert launches[1][1] - launches[0][1] == 2 * 5
