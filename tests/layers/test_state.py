"""summary, set_params, snapshots, moving between backends: a layer can be taken up again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import layers
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import Case, LSTMCell, with_cases, with_learning_cases
from tests.support.compare import assert_close, assert_same_bits, host


def trained(case: Case, backend: Backend, **kwargs: Any) -> layers.LayerBase:
    """A layer after two steps of Adam, whose state then matters."""
    layer = harness.fresh(case, backend, optimizer="Adam(lr=0.05)", **kwargs)
    for batch in (2, 3):
        step(case, layer, backend, batch)
    return layer


def step(case: Case, layer: layers.LayerBase, backend: Backend, batch: int) -> Any:
    Y = harness.forward(layer, harness.input_of(case, backend, batch=batch))
    dX = layer.backward(harness.gradient_like(Y, backend))
    layer.update()
    return Y, dX


@with_cases
def test_summary_tells_everything(case: Case, backend: Backend) -> None:
    layer = trained(case, backend)
    summary = layer.summary()
    assert summary.keys() == {"layer", "parameters", "hyperparameters"}
    kind = {"Softmax": "SoftmaxLayer", "SparseEvolution": "SparseEvolutionary"}.get(
        case.layer, case.layer
    )
    assert summary["layer"] == summary["hyperparameters"]["layer"] == kind
    assert summary["parameters"] is layer.parameters
    assert summary["hyperparameters"]["optimizer"].keys() == {"cache", "hyperparameters"}
    assert summary["hyperparameters"]["optimizer"]["hyperparameters"]["id"] == "Adam"
    assert case.layer in repr(layer)


@with_cases
def test_a_new_layer_takes_a_summary_and_goes_on(case: Case, backend: Backend) -> None:
    layer = trained(case, backend)
    summary = copy.deepcopy(layer.summary())
    keys = [set(summary), set(summary["parameters"]), set(summary["hyperparameters"])]
    other = case.make().set_params(summary)
    # the caller's dict is not emptied, the arrays are copies
    assert keys == [set(summary), set(summary["parameters"]), set(summary["hyperparameters"])]
    assert all(other.parameters[n] is not p for n, p in summary["parameters"].items())
    assert other.hyperparameters.keys() == layer.hyperparameters.keys()
    for name, value in layer.hyperparameters.items():
        if name != "optimizer":
            assert other.hyperparameters[name] == value

    X = harness.input_of(case, backend)
    expected = harness.forward(layer, X, retain_derived=False)
    layer.flush_gradients()
    # the weights are not drawn again (numpy-ml does)
    assert_same_bits(harness.forward(other, X, retain_derived=False), expected)
    other.flush_gradients()
    for batch in (2, 1):  # and the optimizer's state is there
        for a, b in zip(
            step(case, layer, backend, batch), step(case, other, backend, batch), strict=True
        ):
            assert_same_bits(a, b)
    for name, array in layer.parameters.items():
        assert_same_bits(other.parameters[name], array)


@with_cases
def test_a_used_layer_takes_a_summary_in_place(case: Case, backend: Backend) -> None:
    layer = trained(case, backend)
    other = harness.fresh(case, backend)
    arrays = dict(other.parameters)
    other.set_params(layer.summary())
    assert all(other.parameters[n] is a for n, a in arrays.items())
    for name, array in layer.parameters.items():
        assert_same_bits(other.parameters[name], array)
        assert other.parameters[name] is not array


@with_learning_cases
def test_settings_come_from_the_summary(case: Case, numpy_backend: Backend) -> None:
    """A layer built with other settings becomes the one described."""
    layer = trained(case, numpy_backend)
    other = {
        "FullyConnected": lambda: layers.FullyConnected(9, act_fn="SELU"),
        "Conv1D": lambda: layers.Conv1D(9, 9, pad=9, stride=9, act_fn="SELU"),
        "Conv2D": lambda: layers.Conv2D(9, 9, pad=9, stride=9, act_fn="SELU"),
        "Deconv2D": lambda: layers.Deconv2D(9, 9, pad=9, stride=9, act_fn="SELU"),
        "RNNCell": lambda: layers.RNNCell(9, act_fn="SELU"),
        "RNN": lambda: layers.RNN(9, act_fn="SELU"),
        "GRUCell": lambda: layers.GRUCell(9, act_fn="SELU", gate_fn="SELU"),
        "GRU": lambda: layers.GRU(9, act_fn="SELU", gate_fn="SELU"),
        "LSTMCell": lambda: LSTMCell(9, act_fn="SELU", gate_fn="SELU"),
        "LSTM": lambda: layers.LSTM(9, act_fn="SELU", gate_fn="SELU"),
        "GroupNorm": lambda: layers.GroupNorm(9, 9.0),
        "LayerNorm1D": lambda: layers.LayerNorm1D(9.0),
        "LayerNorm2D": lambda: layers.LayerNorm2D(9.0),
        "SparseEvolution": lambda: layers.SparseEvolution(9, 0.9, 9, act_fn="SELU"),
        "BatchNorm1D": lambda: layers.BatchNorm1D(0.1, 9.0),
        "BatchNorm2D": lambda: layers.BatchNorm2D(0.1, 9.0),
    }[case.layer]()
    other.set_params(copy.deepcopy(layer.summary()))
    X = harness.input_of(case, numpy_backend)
    assert_same_bits(other.forward(X), layer.forward(X))


@with_learning_cases
def test_a_numpy_ml_style_flat_dict(case: Case, numpy_backend: Backend) -> None:
    layer = trained(case, numpy_backend)
    flat = {**layer.parameters, **layer.hyperparameters}
    X = harness.input_of(case, numpy_backend)
    other = case.make().set_params(flat)
    assert_same_bits(other.forward(X), layer.forward(X))


@with_cases
def test_summaries_that_do_not_fit_are_refused(case: Case, numpy_backend: Backend) -> None:
    layer = harness.fresh(case, numpy_backend)
    with pytest.raises(ParameterError, match=rf"{case.layer}: got the summary of a layer 'Other'"):
        layer.set_params({"layer": "Other"})
    with pytest.raises(ParameterError, match=rf"{case.layer}: unknown entry 'weights' in the"):
        layer.set_params({"parameters": {"weights": np.ones(3)}})
    with pytest.raises(ParameterError):
        layer.set_params({"optimizer": "no such thing"})
    for name, array in layer.parameters.items():
        wrong = np.ones((*array.shape, 2))
        with pytest.raises(ShapeError, match=rf"{case.layer}: parameter '{name}' must have shape"):
            layer.set_params({"parameters": {name: wrong}})
        with pytest.raises(DTypeError, match=rf"{case.layer}: parameter '{name}'"):
            layer.set_params({"parameters": {name: "text"}})
    gold = harness.gold_of(case)
    Y = harness.forward(layer, harness.input_of(case, numpy_backend))
    assert_close(Y, gold.Y)
    assert_close(layer.backward(harness.gradient_like(Y, numpy_backend)), gold.dX)
    harness.assert_grads(layer, gold.grads)


@with_learning_cases
def test_the_summary_of_a_layer_that_has_seen_nothing(case: Case, numpy_backend: Backend) -> None:
    summary = case.make().summary()
    layer = case.make().set_params(summary)
    assert not layer.is_initialized
    assert layer.parameters == case.make().parameters
    layer.forward(harness.input_of(case, numpy_backend))
    with pytest.raises(ParameterError, match=rf"{case.layer}: the summary is of a layer that has"):
        layer.set_params(summary)


@with_learning_cases
def test_loaded_parameters_keep_the_layers_dtype(case: Case, backend: Backend) -> None:
    wide = harness.fresh(case, backend, "float64")
    narrow = harness.fresh(case, backend, "float32")
    narrow.set_params({"parameters": wide.parameters})
    for name, array in wide.parameters.items():
        assert narrow.parameters[name].dtype == "float32"
        assert_close(narrow.parameters[name], host(array))
    new = case.make().set_params(copy.deepcopy(wide.summary()))  # a new layer takes the summary's
    assert new.dtype == "float64"


@with_cases
def test_deep_copies_are_independent(case: Case, backend: Backend) -> None:
    layer = trained(case, backend)
    other = copy.deepcopy(layer)
    before = harness.snapshot(other.parameters)
    step(case, layer, backend, 3)
    for name, array in before.items():
        assert_same_bits(other.parameters[name], array)
    step(case, other, backend, 3)
    for name, array in layer.parameters.items():
        assert_same_bits(other.parameters[name], array)


# ------------------------------------------------------------------------------------- backends


@with_cases
def test_moving_between_the_backends(case: Case, emulated: Backend, request: Any) -> None:
    """On the GPU, to the CPU, back: every array moves, training goes on with the same numbers."""
    layer, stays = trained(case, emulated), trained(case, emulated)
    host_backend = Backend("numpy", np, "auto")
    assert layer.to("numpy") is layer
    for held in (layer.parameters, layer.gradients):
        assert {type(a) for a in held.values()} <= {np.ndarray}
    step(case, layer, host_backend, 2)
    step(case, stays, emulated, 2)
    for name, array in stays.parameters.items():
        assert_close(layer.parameters[name], host(array))
    layer.to("cupy")
    step(case, layer, emulated, 3)
    step(case, stays, emulated, 3)
    for name, array in stays.parameters.items():
        assert isinstance(layer.parameters[name], emulated.xp.ndarray)
        assert_close(layer.parameters[name], host(array))


@with_cases
def test_moving_between_forward_and_backward(case: Case, emulated: Backend) -> None:
    layer = harness.fresh(case, emulated)
    Y = harness.forward(layer, harness.input_of(case, emulated))
    layer.to("numpy")
    dX = layer.backward(harness.gradient_like(backends.to_cpu(Y), Backend("numpy", np, "auto")))
    assert type(dX) is np.ndarray
    assert_close(dX, harness.gold_of(case).dX)
    harness.assert_grads(layer, harness.gold_of(case).grads)


@with_learning_cases
def test_a_loaded_layer_follows_its_first_input(case: Case, emulated: Backend) -> None:
    summary = harness.fresh(case, emulated).to("numpy").summary()
    layer = case.make().set_params(copy.deepcopy(summary))
    assert layer.home == "numpy"
    Y = layer.forward(harness.input_of(case, emulated))
    assert isinstance(Y, emulated.xp.ndarray)
    assert layer.home == "cupy"
    assert_close(Y, harness.gold_of(case).Y)


def test_an_unknown_backend(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(3)
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        layer.to("cuda")
