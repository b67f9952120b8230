"""SparseEvolution and the restricted Boltzmann machine."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.defects.support import assert_mended, known
from tests.support.compare import assert_close, host

WEIGHTS = np.array([[1.0, 2], [3, 4], [5, 6]])
MASK = np.array([[1.0, 0], [0, 1], [1, 1]])


def sparse_of_three(backend: Backend) -> layers.SparseEvolution:
    layer = layers.SparseEvolution(2, epsilon=1, optimizer="SGD(lr=0.1)")
    return known(layer, backend, (1, 3), W=WEIGHTS, W_mask=MASK)


@pytest.mark.defect(5)
def test_sparse_evolution_runs(backend: Backend) -> None:
    """numpy-ml's first forward raises TypeError: binomial() has no argument 'shape'. For small
    layers the probability it would pass is above 1, too (20 * 7 / 12 for 4 inputs, 3 outputs)."""
    for n_in, n_out in [(4, 5), (4, 3), (3, 3)]:
        layer = layers.SparseEvolution(n_out)
        X = backend.asarray(np.ones((2, n_in)))
        Y = layer.forward(X)
        W, mask = (host(layer.parameters[k]) for k in ("W", "W_mask"))
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert mask.all() or 20 * (n_in + n_out) < n_in * n_out
        assert_close(Y, np.ones((2, n_in)) @ (W * mask))
    sparse = layers.SparseEvolution(100, epsilon=2)
    sparse.forward(backend.asarray(np.ones((1, 100))))
    share = host(sparse.parameters["W_mask"]).mean()
    assert abs(share - 0.04) < 5 * (0.04 * 0.96 / 10_000) ** 0.5


@pytest.mark.defect(8)
def test_only_connections_get_a_gradient(backend: Backend) -> None:
    """numpy-ml's dW is that of the full matrix: 1, 10; 2, 20; 3, 30."""
    layer = sparse_of_three(backend)
    X, dY = np.array([[1.0, 2, 3]]), np.array([[1.0, 10]])
    assert_close(layer.forward(backend.asarray(X)), [[16.0, 26.0]])
    assert_close(layer.backward(backend.asarray(dY)), [[1.0, 40.0, 65.0]])
    assert_mended(layer.gradients["W"], [[1, 0], [0, 20], [3, 30]], X.T @ dY)


@pytest.mark.defect(8)
def test_evolved_connections_are_used(backend: Backend) -> None:
    """numpy-ml's update() raises AttributeError (np.shuffle); the new mask would go to an
    attribute that nothing reads."""
    layer = layers.SparseEvolution(20, epsilon=3, optimizer="SGD(lr=0.1, momentum=0.5)")
    X = backend.asarray(np.ones((2, 30)))
    layer.backward(layer.forward(X))
    before = host(layer.parameters["W_mask"]).copy()
    layer.update(cur_loss=1.0)
    W, mask, b = (host(layer.parameters[k]) for k in ("W", "W_mask", "b"))
    assert layer.optimizer.cur_step == 1
    assert (mask != before).any() and mask.sum() == before.sum()
    assert_close(layer.forward(X), np.ones((2, 30)) @ (W * mask) + b)


@pytest.mark.defect(6)
def test_a_boltzmann_machine_can_be_made(backend: Backend) -> None:
    """numpy-ml's RBM(4) raises TypeError (it draws weights for None inputs); its hyperparameters
    would raise AttributeError (`hyperparameterse`)."""
    layer = layers.RBM(4)
    assert layer.hyperparameters["optimizer"]["hyperparameters"]["id"] == "SGD"
    layer.forward(backend.asarray(np.ones((2, 3))))
    assert {k: a.shape for k, a in layer.parameters.items()} == {
        "W": (3, 4), "b_in": (1, 3), "b_out": (1, 4),
    }  # fmt: skip
    assert layers.RBM(2).set_params(layer.summary()).n_out == 4


@pytest.mark.defect(7)
def test_bias_gradients_are_summed_over_examples(backend: Backend) -> None:
    """numpy-ml (its constructor repaired) gives b_in and b_out gradients of shapes (4, 3) and
    (4, 2), and update() makes b_in a (4, 3) array."""
    layer = layers.RBM(2, optimizer="SGD(lr=0.1)")
    known(layer, backend, (1, 3), W=WEIGHTS / 10, b_in=50.0)  # visible units are drawn as ones
    layer.CD_update(backend.asarray(np.arange(12.0).reshape(4, 3) % 2))
    derived = {k: host(v[0]) for k, v in layer.derived_variables.items()}
    assert_close(layer.gradients["b_in"], [[2.0, 2.0, 2.0]])  # four ones, of which two were there
    b_out = (derived["p_H_prime"] - derived["p_H"]).sum(axis=0, keepdims=True)
    assert_close(layer.gradients["b_out"], b_out)
    layer.update()
    assert_close(layer.parameters["b_in"], [[49.8, 49.8, 49.8]])
    assert_close(layer.parameters["b_out"], -0.1 * b_out)


@pytest.mark.defect(7)
def test_descending_the_gradient_learns_the_data(backend: Backend) -> None:
    """numpy-ml (its constructor repaired) climbs the gradient of its loss: after 100 updates the
    mean error of a reconstruction is 0.5, from 0.4955 at the start."""
    layer = layers.RBM(2, optimizer="SGD(lr=0.1)")
    data = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]] * 10)
    V = backend.asarray(data)

    def error() -> float:
        W, b_in, b_out = (host(layer.parameters[k]) for k in ("W", "b_in", "b_out"))
        H = 1 / (1 + np.exp(-(data @ W + b_out)))
        return float(np.abs(1 / (1 + np.exp(-(H @ W.T + b_in))) - data).mean())

    layer.forward(V, retain_derived=False)
    assert error() > 0.4
    for _ in range(100):
        layer.CD_update(V)
        layer.update()
    assert error() < 0.2


@pytest.mark.defect(7)
def test_a_boltzmann_machine_obeys_the_k_it_is_called_with(backend: Backend) -> None:
    """numpy-ml's forward(V, K=2) looks at self.K = 1 to find the last step: the second one starts
    from hidden probabilities instead of states, so that p_V_prime is neither of the two values."""
    layer = known(layers.RBM(1, K=1), backend, (1, 1), W=2.0, b_in=-1.0, b_out=0.3)
    V = np.linspace(0, 1, 64)[:, None]
    layer.forward(backend.asarray(V), K=2)
    p = host(layer.derived_variables["p_V_prime"][0])
    off, on = 1 / (1 + np.exp(1)), 1 / (1 + np.exp(-1))
    assert np.isclose(p, off).any() and np.isclose(p, on).any()
    assert (np.isclose(p, off) | np.isclose(p, on)).all()
    assert layer.K == 1
