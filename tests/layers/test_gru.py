"""The GRU cell step by step and the layer over sequences, through time."""

from __future__ import annotations

import importlib
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
from tests.support.compare import assert_close, assert_same_bits

N, N_IN, N_OUT, N_T = 3, 4, 2, 5
X = harness.values((N, N_IN, N_T), 1)
DA = harness.values((N, N_OUT, N_T), 2)
PARAMS = {
    **{f"W{g}": 0.5 * harness.values((N_OUT + N_IN, N_OUT), 3 + k) for k, g in enumerate("zrn")},
    **{f"b{g}": 0.5 * harness.values((1, N_OUT), 7 + k) for k, g in enumerate("zrna")},
}
GOLD = golds.gru()(PARAMS, X, lambda shape: DA)


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


def shown_values() -> dict[str, list[np.ndarray]]:
    p, A = PARAMS, [np.zeros((N, N_OUT))]
    shown: dict[str, list[np.ndarray]] = {"Gz": [], "Gr": [], "N": [], "M": []}
    for t in range(N_T):
        both = np.hstack([A[-1], X[:, :, t]])
        z, r = (sigmoid(both @ p[f"W{g}"] + p[f"b{g}"]) for g in "zr")
        m = A[-1] @ p["Wn"][:N_OUT] + p["ba"]
        n = np.tanh(X[:, :, t] @ p["Wn"][N_OUT:] + p["bn"] + r * m)
        for held, value in zip(shown.values(), (z, r, n, m), strict=True):
            held.append(value)
        A.append((1 - z) * n + z * A[-1])
    return {"A": A, **shown}


def test_the_cell_through_time(backend: Backend) -> None:
    cell = filled(layers.GRUCell(N_OUT), backend)
    A, dX = through_time(cell, backend)
    assert_close(A, GOLD.Y)
    assert_close(dX, GOLD.dX)
    harness.assert_grads(cell, GOLD.grads)


@pytest.mark.parametrize("make", [layers.GRUCell, layers.GRU])
def test_what_is_shown(make: Any, backend: Backend) -> None:
    layer, expected = filled(make(N_OUT), backend), shown_values()
    if make is layers.GRU:
        layer.forward(backend.asarray(X))
    for t in range(N_T if make is layers.GRUCell else 0):
        layer.forward(backend.asarray(X[:, :, t]))
    derived = layer.derived_variables
    steps = {"n_timesteps", "current_step", "dLdA_accumulator"}
    assert derived.keys() == {*expected, *steps}
    assert (derived["n_timesteps"], derived["current_step"]) == (N_T, N_T)
    for name, arrays in expected.items():
        for got, wanted in zip(derived[name], arrays, strict=True):
            assert_close(got, wanted)
    layer.flush_gradients()
    assert layer.derived_variables == make(N_OUT).derived_variables


def test_the_accumulator(backend: Backend) -> None:
    """After a step back it holds what the step before receives, directly and by products."""
    cell, shown = filled(layers.GRUCell(N_OUT), backend), shown_values()
    for t in range(N_T):
        cell.forward(backend.asarray(X[:, :, t]))
    assert cell.derived_variables["dLdA_accumulator"] is None
    cell.backward(backend.asarray(DA[:, :, -1]))
    z, r, n, m = (shown[name][-1] for name in ("Gz", "Gr", "N", "M"))
    dA = DA[:, :, -1]
    dn = dA * (1 - z) * (1 - n**2)
    dz, dr = dA * (shown["A"][-2] - n) * z * (1 - z), dn * m * r * (1 - r)
    back = dA * z + (dn * r) @ PARAMS["Wn"][:N_OUT].T
    back += dz @ PARAMS["Wz"][:N_OUT].T + dr @ PARAMS["Wr"][:N_OUT].T
    assert_close(cell.derived_variables["dLdA_accumulator"], back)


def test_a_second_sequence_without_flush_begins_anew(backend: Backend) -> None:
    cell = filled(layers.GRUCell(N_OUT), backend)
    first, second = through_time(cell, backend), through_time(cell, backend)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1], second[1])
    harness.assert_grads(cell, {name: 2 * g for name, g in GOLD.grads.items()})
    with pytest.raises(ShapeError, match="GRUCell: no step is left to go back through"):
        cell.backward(backend.asarray(DA[:, :, 0]))


@pytest.mark.parametrize("make", [layers.GRUCell, layers.GRU])
def test_training_steps(make: Any, backend: Backend) -> None:
    layer = filled(make(N_OUT, optimizer="SGD(lr=0.1)"), backend)
    params = dict(PARAMS)
    for _ in range(3):
        gold = golds.gru()(params, X, lambda shape: DA)
        if make is layers.GRUCell:
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


def test_the_layer_and_its_cell_are_one(backend: Backend) -> None:
    layer = filled(layers.GRU(N_OUT), backend)
    for name, array in layer.parameters.items():
        assert layer.cell.parameters[name] is array
    A, dX = through_time(layer.cell, backend)
    layer.cell.flush_gradients()
    assert_close(layer.forward(backend.asarray(X)), A)
    assert_close(layer.backward(backend.asarray(DA)), dX)


@pytest.mark.parametrize("n_t", [1, 2, 7])
def test_sequences_of_any_length(n_t: int, backend: Backend) -> None:
    layer = filled(layers.GRU(N_OUT), backend)
    x, da = harness.values((2, N_IN, n_t), 8), harness.values((2, N_OUT, n_t), 9)
    gold = golds.gru()(PARAMS, x, lambda shape: da)
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

    layer = filled(layers.GRU(N_OUT, gate_fn=Gate(), init="he_normal"), backend)
    assert_close(layer.forward(backend.asarray(X)), GOLD.Y)
    assert_close(layer.backward(backend.asarray(DA)), GOLD.dX)
    harness.assert_grads(layer, GOLD.grads)


def test_first_weights() -> None:
    """Drawn in the order z, r, n; the candidate's for act_fn, the gates' for gate_fn."""
    random.seed(5)
    layer = layers.GRU(3, act_fn="ReLU", gate_fn="Sigmoid", init="glorot_uniform")
    layer.forward(np.ones((1, 2, 1)))
    random.seed(5)
    for g in "zrn":
        draw = initializers.WeightInitializer("ReLU" if g == "n" else "Sigmoid", "glorot_uniform")
        assert_same_bits(layer.parameters[f"W{g}"], draw((5, 3), "float64", np))
    for name in ("bz", "br", "bn", "ba"):
        assert_same_bits(layer.parameters[name], np.zeros((1, 3)))


def test_all_steps_are_one_kernel(emulated: Backend) -> None:
    """Each way; more steps cost no more launches."""
    launches = []
    for n_t in (4, 9):
        ahead, back = counted_passes(layers.GRU, emulated, n_t)
        launches.append((ahead["launch"], back["launch"]))
        kernels = [k for k in (*ahead, *back) if "sequence" in k or "step" in k]
        assert [k.split("<")[0] for k in kernels] == [
            "kernel:gru_sequence_held_forward",
            "kernel:gru_sequence_held_backward",
        ]
    assert launches[0] == launches[1]


def test_a_step_is_one_product_and_one_kernel(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights are too many for a kernel over all steps. More steps cost a product and a
    kernel each; back there is one sum besides."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.sequence"), "_MOST_STREAMED", -1)
    launches = []
    for n_t in (4, 9):
        ahead, back = counted_passes(layers.GRU, emulated, n_t)
        assert ahead["kernel:gru_step_forward<float, float, int>"] == n_t
        assert back["kernel:gru_step_backward<float, float, int>"] == n_t
        launches.append((ahead["launch"], back["launch"]))
    assert launches[1][0] - launches[0][0] == 2 * 5
    assert launches[1][1] - launches[0][1] == 3 * 5
