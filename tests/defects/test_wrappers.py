"""The Dropout wrapper, and wrappers as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from gpulayers.errors import DTypeError
from gpulayers.wrappers import Dropout, init_wrappers
from tests.conftest import Backend
from tests.defects.support import assert_mended, known
from tests.support.compare import assert_close, assert_same_bits, host


def unit(backend: Backend, act_fn: str | None = "ReLU", **kwargs: Any) -> layers.FullyConnected:
    """x -> act(x + 1)."""
    layer = layers.FullyConnected(1, act_fn=act_fn, **kwargs)
    return known(layer, backend, (1, 1), W=1.0, b=1.0)


@pytest.mark.defect(24)
def test_the_callers_gradient_is_left_alone(backend: Backend) -> None:
    """numpy-ml multiplies the caller's array: 1 and 3 are 2 and 6 after backward."""
    wrapper = Dropout(unit(backend), 0.5)
    wrapper.forward(backend.asarray(np.ones((2, 1))))
    dY = backend.asarray(np.array([[1.0], [3.0]]))
    wrapper.backward(dY)
    assert_mended(dY, [[1.0], [3.0]], [[2.0], [6.0]])


@pytest.mark.defect(24)
def test_dropout_takes_a_list_of_gradients(backend: Backend) -> None:
    """numpy-ml raises TypeError for a list, and UFuncTypeError for integers."""
    wrapper = Dropout(unit(backend, None), 0.5)
    X, dY = backend.asarray(np.ones((2, 1))), backend.asarray(np.ones((2, 1)))
    kept = [host(wrapper.forward(X)) == 3.0 for _ in range(2)]
    for dX, mask in zip(wrapper.backward([dY, dY]), kept, strict=True):
        assert_close(dX, 2.0 * mask)
    with pytest.raises(DTypeError, match="the gradient must have a floating dtype, got int64"):
        wrapper.backward([backend.asarray(np.ones((2, 1), int))] * 2)


@pytest.mark.defect(25)
def test_a_dropped_input_gets_no_gradient(backend: Backend) -> None:
    """numpy-ml gives all six inputs the gradient 2, the three dropped ones too."""
    layer = known(layers.FullyConnected(1), backend, (1, 6), W=[[2.0**k] for k in range(6)])
    wrapper = Dropout(layer, 0.5)
    bits = int(wrapper.forward(backend.asarray(np.ones((1, 6)))).item()) // 2
    kept = np.array([[bits >> k & 1 for k in range(6)]])
    assert 0 < kept.sum() < 6
    weights = 2.0 ** np.arange(6)
    dX = wrapper.backward(backend.asarray(np.ones((1, 1))))
    assert_mended(dX, 2 * kept * weights, [2 * weights])


@pytest.mark.defect(26)
def test_dropout_scales_what_it_keeps(backend: Backend) -> None:
    """numpy-ml scales the layer's output: 2 (dropped) and 4 (kept), 3 on average, and 2 in
    evaluation."""
    wrapper = Dropout(unit(backend), 0.5)
    X = backend.asarray(np.ones((10_000, 1)))
    Y = host(wrapper.forward(X))
    assert set(np.unique(Y)) == {1.0, 3.0}  # relu(0 + 1), relu(2 + 1)
    assert abs(Y.mean() - 2.0) < 0.05
    wrapper.freeze()
    assert_close(wrapper.forward(X), np.full((10_000, 1), 2.0))


@pytest.mark.defect(27)
def test_unfreeze_thaws(numpy_backend: Backend) -> None:
    """numpy-ml's wrapper has trainable == False after unfreeze()."""
    layer = unit(numpy_backend)
    wrapper = Dropout(layer, 0.5)
    wrapper.freeze()
    assert not wrapper.trainable and not layer.trainable
    wrapper.unfreeze()
    assert wrapper.trainable and layer.trainable


@pytest.mark.defect(28)
def test_wrappers_stack(backend: Backend) -> None:
    """numpy-ml's outer wrapper calls the innermost layer: only its own mask acts, and only it is
    listed in hyperparameters."""
    wrapper = Dropout(Dropout(unit(backend, None), 0.5), 0.25)
    Y = host(wrapper.forward(backend.asarray(np.ones((2000, 1)))))
    assert np.allclose(np.unique(Y), [1.0, 1 + 2 / 0.75])  # x is gone, or scaled twice
    assert abs((Y > 1).mean() - 0.5 * 0.75) < 0.06
    shown = [entry["p"] for entry in wrapper.hyperparameters["wrappers"]]
    assert shown == [0.5, 0.25]


@pytest.mark.defect(28)
def test_a_wrapper_updates_without_an_argument(backend: Backend) -> None:
    """numpy-ml's update() raises TypeError: it wants a positional argument."""
    wrapper = Dropout(unit(backend, optimizer="SGD(lr=0.5)"), 0.0)
    wrapper.forward(backend.asarray(np.ones((1, 1))))
    wrapper.backward(backend.asarray(np.ones((1, 1))))
    wrapper.update()
    assert_close(wrapper.parameters["W"], [[0.5]])


@pytest.mark.defect(28)
def test_init_wrappers_keeps_p(backend: Backend) -> None:
    """numpy-ml's init_wrappers leaves p = 1: the next forward raises ZeroDivisionError."""
    wrapper = init_wrappers(unit(backend), [{"wrapper": "Dropout", "p": 0.25}])
    Y = host(wrapper.forward(backend.asarray(np.ones((500, 1)))))
    assert np.allclose(np.unique(Y), [1.0, 1 + 1 / 0.75])


@pytest.mark.defect(28)
def test_set_params_gives_the_wrapper_back(backend: Backend) -> None:
    """numpy-ml's set_params returns the layer without its wrapper."""
    wrapper = Dropout(unit(backend), 0.25)
    restored = Dropout(layers.FullyConnected(1), 0.75).set_params(wrapper.summary())
    assert isinstance(restored, Dropout)
    assert restored.p == 0.25
    outs = []
    for each in (wrapper, restored):
        random.seed(3)
        outs.append(each.forward(backend.asarray(np.ones((20, 1)))))
    assert_same_bits(outs[0], outs[1])


@pytest.mark.defect(28)
def test_cells_can_be_wrapped(backend: Backend) -> None:
    """numpy-ml raises TypeError: its cells do not know the argument retain_derived."""
    for cell in (layers.RNNCell(2), layers.LSTMCell(2)):
        wrapper = Dropout(cell, 0.5)
        out = wrapper.forward(backend.asarray(np.ones((1, 3))))
        A = out[0] if isinstance(out, tuple) else out
        assert wrapper.backward(A).shape == (1, 3)
        wrapper.update()
