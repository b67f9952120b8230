"""The double backward of a dense layer, and restoring one."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.defects.support import assert_mended, known
from tests.support.compare import assert_same_bits


@pytest.mark.defect(30)
def test_the_double_backward_has_the_second_derivative(backend: Backend) -> None:
    """numpy-ml's dW is 0.786448: it lacks the term with the activation's second derivative."""
    layer = known(layers.FullyConnected(1, act_fn="Tanh"), backend, (1, 1), W=0.5)
    one = backend.asarray(np.ones((1, 1)))
    layer.forward(one)
    ddY, dW, db = layer._bwd2(one, one, one)
    # dX = w f'(w x + b) at w = 0.5, x = 1, b = 0, and its derivatives by dY = 1, w and b
    first = 1 - math.tanh(0.5) ** 2
    second = -2 * math.tanh(0.5) * first
    assert_mended(dW, [[first + 0.5 * second]], [[0.786448]])
    assert math.isclose(ddY.item(), 0.5 * first)
    assert math.isclose(db.item(), 0.5 * second)


@pytest.mark.defect(31)
def test_set_params_keeps_the_weights_of_a_summary(backend: Backend) -> None:
    """numpy-ml draws the weights anew at the next forward (0.16 and 0.89 became 1.52 and 0.67),
    and leaves "layer", "W", "b", ... in the caller's dict instead of its three entries."""
    X = backend.asarray(np.ones((2, 3)))
    trained = layers.FullyConnected(2, act_fn="Tanh", optimizer="Adam")
    Y = trained.forward(X)
    summary = trained.summary()
    before = copy.deepcopy(summary)
    restored = layers.FullyConnected(2).set_params(summary)
    assert_same_bits(restored.forward(X), Y)
    assert str(restored.act_fn) == "Tanh"
    assert summary.keys() == before.keys() == {"layer", "parameters", "hyperparameters"}
    assert summary["hyperparameters"] == before["hyperparameters"]
    drawn_anew = layers.FullyConnected(2, act_fn="Tanh").forward(X)
    assert not np.allclose(backend.asnumpy(drawn_anew), backend.asnumpy(Y))
