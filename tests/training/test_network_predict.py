"""Sequential in evaluation: bytes as pixels, predictions in batches."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Pixels, Sequential
from tests.training.networks import conv, dense


def test_bytes_are_scaled_and_floats_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    kept = X.copy()
    net = Sequential([Flatten()])
    np.testing.assert_allclose(net.forward(X, False), X.reshape(5, -1) / 255.0, rtol=1e-6)
    net.pixels = Pixels([10.0, 20.0, 30.0], [2.0, 4.0, 5.0])
    expected = (X - np.array([10.0, 20.0, 30.0])) / np.array([2.0, 4.0, 5.0])
    Y = net.forward(X, False)
    assert Y.dtype == np.float32
    np.testing.assert_allclose(Y, expected.reshape(5, -1), rtol=1e-5, atol=1e-6)
    floats = X.astype(np.float32)
    np.testing.assert_array_equal(net.forward(floats, False), floats.reshape(5, -1))
    np.testing.assert_array_equal(X, kept)
    with pytest.raises(ShapeError, match="3 channels"):
        net.forward(np.zeros((1, 4, 4, 2), np.uint8))


@pytest.mark.parametrize(
    "mean, std", [([0.0], [0.0]), ([1.0, 2.0], [1.0]), ([], []), ([np.nan], [1.0])]
)
def test_pixels_refuse_bad_statistics(mean, std):
    with pytest.raises(ParameterError, match="Pixels"):
        Pixels(mean, std)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_predict_in_batches_equals_one_evaluation_pass(batch_size):
    X = np.random.default_rng(0).standard_normal((7, 10, 10, 1)).astype(np.float32)
    net = conv()
    net.forward(X)
    net.flush_gradients()
    expected = net.forward(X, retain_derived=False)
    np.testing.assert_allclose(net.predict(X, batch_size), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(net.predict_classes(X, batch_size), expected.argmax(axis=1))
    assert not net[0].X, "evaluation retains nothing"


def test_predict_of_nothing_is_empty():
    net = dense()
    net.predict(np.ones((2, 3, 3, 1), np.float32))
    assert net.predict(np.ones((0, 3, 3, 1), np.float32)).shape == (0, 10)


def test_predict_says_whose_input_is_no_array():
    with pytest.raises(DTypeError, match=r"Sequential.predict: X: expected a numpy .* got list"):
        Sequential([FullyConnected(3)]).predict([[1.0, 2.0]])


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_predict_refuses_a_bad_batch_size(batch_size):
    with pytest.raises(ParameterError, match="batch_size"):
        dense().predict(np.ones((2, 3, 3, 1), np.float32), batch_size)
