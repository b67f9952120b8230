"""`layer.parameters["W"] = array`, numpy-ml's idiom: the next pass names what does not fit."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import layers
from gpulayers.errors import BackendError, DTypeError, ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import Case, with_learning_cases
from tests.support.compare import assert_close, host


class NotOne:
    """Something that is no array."""


@with_learning_cases
def test_what_does_not_fit_is_named(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend, "float32")
    X = harness.input_of(case, backend, "float32")
    expected = harness.forward(layer, X, retain_derived=False)
    layer.flush_gradients()
    for name, array in dict(layer.parameters).items():
        shape = array.shape
        said = rf"{layer._name}: parameter '{name}'"
        longer = backend.asarray(np.ones((*shape, 2)), "float32")
        for wrong, error, message in (
            (longer, ShapeError, f" must have shape {shape}, got {longer.shape}"),
            (None, DTypeError, ": expected a numpy or cupy array, got None"),
            (NotOne(), DTypeError, ": expected a numpy or cupy array, got NotOne"),
            (backend.asarray(np.ones(shape), "int64"), DTypeError, " must have a floating dtype"),
            (
                array.astype("float64"),
                DTypeError,
                f" must be {shape} float32, got {shape} float64; convert it",
            ),
        ):
            layer.parameters[name] = wrong
            with pytest.raises(error) as caught:
                layer.forward(X, retain_derived=False)
            assert f"{layer._name}: parameter '{name}'{message}" in str(caught.value), said
        del layer.parameters[name]
        with pytest.raises(DTypeError, match=said):
            layer.forward(X, retain_derived=False)
        layer.parameters[name] = array.copy()  # a new object that fits
        layer.flush_gradients()
        again = harness.forward(layer, X, retain_derived=False)
        assert_close(host(again), host(expected))


@with_learning_cases
def test_between_forward_and_backward(case: Case, numpy_backend: Backend) -> None:
    layer = harness.fresh(case, numpy_backend, "float32")
    Y = harness.forward(layer, harness.input_of(case, numpy_backend, "float32"))
    name, array = next(iter(layer.parameters.items()))
    layer.parameters[name] = np.ones((*array.shape, 2), np.float32)
    with pytest.raises(ShapeError, match=f"{layer._name}: parameter '{name}' must have shape"):
        layer.backward(harness.gradient_like(Y, numpy_backend))
    layer.parameters[name] = array.copy()
    layer.backward(harness.gradient_like(Y, numpy_backend))


@with_learning_cases
def test_all_of_another_dtype(case: Case, backend: Backend) -> None:
    """Then the layer computes in it, its gradients too."""
    layer = harness.fresh(case, backend, "float32")
    harness.forward(layer, harness.input_of(case, backend, "float32"))
    layer.flush_gradients()
    for name, array in harness.parameters_of(case).items():
        layer.parameters[name] = backend.asarray(array.copy(), "float64")
    gold = harness.gold_of(case)
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert Y.dtype == "float64" and layer.dtype == "float64"
    assert_close(Y, gold.Y)
    assert_close(layer.backward(harness.gradient_like(Y, backend)), gold.dX)
    assert {grad.dtype.name for grad in layer.gradients.values()} == {"float64"}
    harness.assert_grads(layer, gold.grads)
    layer.update()


def test_before_the_first_pass(backend: Backend) -> None:
    X = backend.asarray(np.ones((2, 3)), "float32")
    layer = layers.FullyConnected(4)
    layer.parameters["W"] = [[1.0] * 4] * 3
    with pytest.raises(DTypeError, match=r"FullyConnected: parameter 'W': expected .*got list"):
        layer.forward(X)
    layer.parameters["W"] = backend.asarray(np.ones((2, 4)), "float64")
    with pytest.raises(ShapeError, match=r"FullyConnected: parameter 'W' must have shape \(3, 4\)"):
        layer.forward(X)
    layer.parameters["W"] = backend.asarray(np.ones((3, 4)), "float64")
    layer.parameters["b"] = backend.asarray(np.zeros((1, 4)), "float32")
    with pytest.raises(DTypeError, match=r"parameter 'b' must be \(1, 4\) float64, got .*float32"):
        layer.forward(X)
    layer.parameters["b"] = None
    assert layer.forward(X).dtype == "float64"


def test_an_embedding(backend: Backend) -> None:
    """Forward took a table of any shape, and backward broke down over it."""
    layer = layers.Embedding(3, 5)
    ids = backend.asarray(np.array([[0, 4]]))
    layer.forward(ids)
    layer.parameters["W"] = layer.parameters["W"][:, :2].copy()
    for use in (layer.forward, layer.lookup):
        with pytest.raises(ShapeError, match=r"Embedding: parameter 'W' must have shape \(5, 3\)"):
            use(ids)
    layer.parameters["W"] = None
    with pytest.raises(DTypeError, match=r"Embedding: parameter 'W': expected .* got None"):
        layer.forward([[0, 4]])


def test_of_the_other_library(emulated: Backend) -> None:
    layer = layers.FullyConnected(4)
    X = np.ones((2, 3), np.float32)
    layer.forward(X, retain_derived=False)
    kept = dict(layer.parameters)
    layer.parameters["b"] = emulated.asarray(np.zeros((1, 4)), "float32")
    with pytest.raises(BackendError, match="FullyConnected: parameter 'b' is a cupy array, the"):
        layer.forward(X)
    for name, array in kept.items():  # the gradients stay where they are
        layer.parameters[name] = emulated.asarray(array, "float32")
    with pytest.raises(BackendError, match=r"'W' is a cupy array.*layer.to\('cupy'\)"):
        layer.forward(emulated.asarray(X, "float32"))
    layer.to("cupy")
    Y = layer.forward(emulated.asarray(X, "float32"))
    layer.backward(Y)
    assert {backends.backend_of(g) for g in layer.gradients.values()} == {"cupy"}


def test_loaded_from_both_libraries(emulated: Backend) -> None:
    """A new layer's parameters go where its first input is, wherever each of them was."""
    layer = layers.FullyConnected(2)
    b = emulated.asarray(np.ones((1, 2)), "float32")
    layer.set_params({"n_in": 3, "W": np.ones((3, 2), np.float32), "b": b})
    Y = layer.forward(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(Y, [[4, 4]])


def test_copies_look_anew(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(4)
    X = np.ones((2, 3), np.float32)
    Y = layer.forward(X, retain_derived=False)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(twin.forward(X), Y)
        twin.parameters["W"] = twin.parameters["W"].astype(np.float64)
        with pytest.raises(DTypeError, match="parameter 'W' must be"):
            twin.forward(X)


def test_a_parameter_that_is_replaced_is_let_go(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(4)
    layer.forward(np.ones((2, 3), np.float32), retain_derived=False)
    held = weakref.ref(layer.parameters["W"])
    layer.parameters["W"] = np.ones((3, 4), np.float32)
    gc.collect()
    assert held() is None


class Own(layers.LayerBase):
    """A layer that makes its parameters without `_create`."""

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _params = ("scale",)
    _hyper = ("n_in",)

    def __init__(self) -> None:
        super().__init__()
        self.n_in: int | None = None

    def _init_params(self) -> None:
        self.parameters["scale"] = np.ones(self.n_in or 0)
        self.gradients["scale"] = np.zeros(self.n_in or 0)

    def _forward(self, X: Any, training: bool) -> Any:
        return X * self.parameters["scale"], {"X": X}

    def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
        return dLdY * self.parameters["scale"], {"scale": (dLdY * saved["X"]).sum(axis=0)}


def test_a_layer_of_ones_own(numpy_backend: Backend) -> None:
    layer = Own()
    layer.forward(np.ones((2, 3), np.float32))
    assert layer.X[0].dtype == "float64", "the input is converted to the parameters' dtype"
    layer.parameters["scale"] = None
    with pytest.raises(TypeError):
        layer.forward(np.ones((2, 3)))
