"""Sizes that the parameters are made for stay: a checkpoint of others could not be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.models import Sequential
from gpulayers.training import load, save
from tests.conftest import Backend
from tests.support.compare import assert_same_bits

X = np.ones((2, 3), np.float32)
IMAGES = np.ones((2, 5, 5, 3), np.float32)
SERIES = np.ones((2, 3, 4), np.float32)

RESIZED = [
    (lambda: layers.FullyConnected(4), X, {"n_in": 7, "n_out": 7}),
    (lambda: layers.SparseEvolution(4), X, {"n_in": 7, "n_out": 7}),
    (lambda: layers.RBM(4), X, {"n_in": 7, "n_out": 7}),
    (lambda: layers.Conv2D(4, 3), IMAGES, {"in_ch": 5, "out_ch": 7, "kernel_shape": (2, 2)}),
    (lambda: layers.Conv1D(4, 3), SERIES, {"in_ch": 5, "out_ch": 7, "kernel_width": 2}),
    (lambda: layers.Deconv2D(4, 3), IMAGES, {"in_ch": 5, "out_ch": 7, "kernel_shape": 2}),
    (lambda: layers.Embedding(4, 10), np.ones((2, 3), int), {"n_out": 7, "vocab_size": 20}),
    (lambda: layers.RNNCell(4), X, {"n_in": 7, "n_out": 5}),
    (lambda: layers.LSTMCell(4), X, {"n_in": 7, "n_out": 5}),
    (lambda: layers.GRUCell(4), X, {"n_in": 7, "n_out": 5}),
    (lambda: layers.RNN(4), SERIES, {"n_in": 7, "n_out": 5}),
    (lambda: layers.LSTM(4), SERIES, {"n_in": 7, "n_out": 5}),
    (lambda: layers.GRU(4), SERIES, {"n_in": 7, "n_out": 5}),
    (layers.BatchNorm1D, X, {"n_in": 7, "n_out": 7}),
    (layers.BatchNorm2D, IMAGES, {"in_ch": 7, "out_ch": 7}),
    (layers.LayerNorm1D, X, {"n_in": 7, "n_out": 7}),
    (layers.LayerNorm2D, IMAGES, {"in_ch": 7, "out_ch": 7}),
    (lambda: layers.GroupNorm(3), IMAGES, {"in_ch": 7, "out_ch": 7}),
]


@pytest.mark.parametrize("make, inputs, sizes", RESIZED, ids=lambda v: getattr(v, "__name__", ""))
def test_sizes_cannot_be_assigned_later(
    numpy_backend: Backend, make: Any, inputs: Any, sizes: dict[str, Any]
) -> None:
    layer = make()
    Y = layer.forward(inputs, retain_derived=False)
    layer.flush_gradients()
    described = repr(layer)
    for name, value in sizes.items():
        before = getattr(layer, name)
        with pytest.raises(ParameterError) as caught:
            setattr(layer, name, value)
        said = str(caught.value)
        assert said.startswith(f"{layer._name}: {name} is {before}, and the parameters are"), said
        setattr(layer, name, before)  # what it is it may be told again
    assert repr(layer) == described
    if not isinstance(layer, layers.RBM):
        assert_same_bits(np.asarray(layer.forward(inputs, retain_derived=False)), np.asarray(Y))


def test_before_the_first_pass_they_can(numpy_backend: Backend) -> None:
    layer = layers.Conv2D(4, 3)
    layer.out_ch, layer.kernel_shape = 7, 2
    assert layer.forward(IMAGES).shape == (2, 4, 4, 7)


def test_settings_that_no_shape_depends_on_can_be_assigned(numpy_backend: Backend) -> None:
    layer = layers.Conv2D(4, 3)
    layer.forward(IMAGES)
    layer.pad, layer.stride, layer.dilation, layer.act_fn = "same", 2, 1, "ReLU"
    assert layer.forward(IMAGES).shape == (2, 5, 5, 4)


def test_with_the_parameters_they_can(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(4)
    layer.forward(X, retain_derived=False)
    layer.parameters["W"] = np.ones((3, 7), np.float32)
    with pytest.raises(ParameterError, match="n_out is 4"):
        layer.n_out = 7
    assert layer.gradients["W"].shape == (3, 4)
    layer.parameters["b"] = np.ones((1, 7), np.float32)
    layer.n_out = 7
    layer.backward(layer.forward(X))
    layer.update()
    assert layer.forward(X).shape == (2, 7)


def test_a_checkpoint_of_a_network_that_was_poked_at(
    numpy_backend: Backend, tmp_path: Path
) -> None:
    network = Sequential([layers.Conv2D(3, (3, 3)), layers.Flatten(), layers.FullyConnected(2)])
    Y = network.forward(IMAGES, retain_derived=False)
    for name in ("out_ch", "in_ch"):
        with pytest.raises(ParameterError, match=f"Conv2D: {name} is 3"):
            setattr(network[0], name, 7)
    save(tmp_path / "network.safetensors", network)
    again = load(tmp_path / "network.safetensors")
    assert_same_bits(again.forward(IMAGES, retain_derived=False), Y)


def test_set_params_takes_sizes_with_parameters(numpy_backend: Backend) -> None:
    layer, larger = layers.FullyConnected(4), layers.FullyConnected(7)
    layer.forward(X)
    layer.backward(np.ones((2, 4), np.float32))
    layer.update()
    Y = larger.forward(np.ones((2, 5), np.float32), retain_derived=False)
    layer.set_params(larger.summary())
    assert_same_bits(layer.forward(np.ones((2, 5), np.float32)), Y)
    layer.backward(np.ones((2, 7), np.float32))
    assert layer.gradients["W"].shape == (5, 7)
    layer.update()
    with pytest.raises(ShapeError, match="parameter 'W' must have shape"):
        layer.set_params({"n_out": 3})
    assert layer.n_out == 7


@pytest.mark.parametrize("kind", [layers.RNN, layers.LSTM, layers.GRU])
def test_the_cell_follows_set_params(numpy_backend: Backend, kind: Any) -> None:
    one, larger = kind(3), kind(5)
    one.forward(SERIES, retain_derived=False)
    one.cell.forward(SERIES[:, :, 0], retain_derived=False)
    one.cell.flush_gradients()
    larger.forward(SERIES, retain_derived=False)
    one.set_params(larger.summary())
    A = one.cell.forward(SERIES[:, :, 0])
    A = A[0] if isinstance(A, tuple) else A
    Y = one.forward(SERIES, retain_derived=False)
    np.testing.assert_allclose(A, Y[:, :, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, name, least",
    [
        (lambda: layers.Softmax(), "n_out", 0),
        (lambda: layers.Pool2D(2), "in_ch", 0),
        (lambda: layers.GlobalAvgPool2D(), "out_ch", 0),
        (lambda: layers.BatchNorm2D(), "out_ch", 0),
        (lambda: layers.FullyConnected(2), "n_in", 1),
    ],
)
def test_sizes_that_an_input_tells_are_integers(
    numpy_backend: Backend, make: Any, name: str, least: int
) -> None:
    for value in ("a", -1, 1.5, True):
        layer = make()
        message = f"{layer._name}: {name} must be an integer >= {least}, got {value!r}"
        with pytest.raises(ParameterError, match=message):
            layer.set_params({"hyperparameters": {name: value}})
        with pytest.raises(ParameterError, match=message):
            setattr(layer, name, value)
        assert getattr(layer, name) is None
    layer.set_params({name: np.int64(3)})
    assert type(getattr(layer, name)) is int
    layer.set_params({name: None})


class Weighted(layers.FullyConnected):
    """A layer with an array among its settings."""

    _hyper = (*layers.FullyConnected._hyper, "importance")

    def __init__(self, n_out: int, importance: Any) -> None:
        super().__init__(n_out)
        self.importance = importance


def test_a_setting_that_is_an_array(numpy_backend: Backend) -> None:
    layer = Weighted(2, np.ones(3))
    layer.forward(X)
    layer.importance = new = np.zeros(3)
    assert layer.importance is new
