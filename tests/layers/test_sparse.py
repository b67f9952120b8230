"""SparseEvolution: which connections there are, and how they move; defects D5, D8 of numpy-ml."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from gpulayers.errors import FrozenLayerError, ParameterError
from tests.conftest import Backend
from tests.layers.harness import default_dtype, values
from tests.support.compare import assert_close, assert_same_bits, host

SGD = "SGD(lr=0.1)"


def layer_of(backend: Backend, n_in: int, n_out: int, **settings: Any) -> layers.SparseEvolution:
    """A layer that has seen one input, its connections drawn from a known seed."""
    layer = layers.SparseEvolution(n_out, **settings)
    random.seed(5)
    with default_dtype("float64"):
        layer.forward(backend.asarray(values((2, n_in), 1)), retain_derived=False)
    return layer


def evolve(layer: layers.SparseEvolution, backend: Backend, steps: int = 1) -> None:
    """Updates with zero gradients: only the connections change."""
    for _ in range(steps):
        layer.forward(backend.asarray(np.zeros((1, layer.n_in or 1))))
        layer.update()


def arrays(layer: layers.SparseEvolution) -> tuple[np.ndarray, np.ndarray]:
    return host(layer.parameters["W"]).copy(), host(layer.parameters["W_mask"]).copy()


def test_it_runs(backend: Backend) -> None:
    """D5: numpy-ml's first forward raises TypeError (binomial() got an argument 'shape')."""
    layer = layer_of(backend, 6, 5, act_fn="ReLU")
    Y = layer.forward(backend.asarray(values((4, 6), 1)))
    assert Y.shape == (4, 5)
    assert layer.backward(Y).shape == (4, 6)
    layer.update()


@pytest.mark.parametrize("n_in, n_out, epsilon", [(60, 40, 2), (60, 40, 10), (100, 80, 5)])
def test_the_share_of_connections(n_in: int, n_out: int, epsilon: int, backend: Backend) -> None:
    mask = arrays(layer_of(backend, n_in, n_out, epsilon=epsilon))[1]
    p, n = epsilon * (n_in + n_out) / (n_in * n_out), n_in * n_out
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert abs(mask.mean() - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_a_small_layer_has_all_connections(backend: Backend) -> None:
    """D5: for 3 x 3 units and epsilon = 20 numpy-ml's probability is 13."""
    assert arrays(layer_of(backend, 3, 3))[1].all()


def test_there_is_no_gradient_where_there_is_no_connection(backend: Backend) -> None:
    """D8: numpy-ml's dW is that of the full matrix (error 2.9)."""
    layer = layer_of(backend, 20, 10, epsilon=2)
    X, dY = values((4, 20), 2), values((4, 10), 3)
    layer.forward(backend.asarray(X))
    layer.backward(backend.asarray(dY))
    mask = arrays(layer)[1]
    assert 0 < mask.sum() < mask.size
    assert_close(layer.gradients["W"], (X.T @ dY) * mask)
    assert layer.gradients.keys() == {"W", "b"}


def test_update_evolves_the_mask_that_is_used(backend: Backend) -> None:
    """D8: numpy-ml's update() raises AttributeError (np.shuffle); the new mask went into
    self.mask, which nothing reads; it took no cur_loss, and the optimizer's step stood still."""
    layer = layer_of(backend, 30, 20, epsilon=3, optimizer=SGD)
    W, mask = arrays(layer)
    X = values((5, 30), 2)
    Y = layer.forward(backend.asarray(X))
    layer.backward(Y)
    layer.update(cur_loss=1.0)
    assert layer.optimizer.cur_step == 1
    new_W, new_mask = arrays(layer)
    assert (new_mask != mask).any()
    expected = X @ (new_W * new_mask) + host(layer.parameters["b"])
    assert_close(layer.forward(backend.asarray(X)), expected)
    assert not new_W[new_mask == 0].any()
    assert W[mask == 0].any()


@pytest.mark.parametrize("zeta", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_weakest_of_each_sign_go(zeta: float, dtype: str, backend: Backend) -> None:
    """Algorithm 1 of Mocanu et al., one number at a time."""
    layer = layer_of(backend, 12, 9, zeta=zeta, epsilon=3)
    with default_dtype(dtype):
        other = layers.SparseEvolution(9, zeta=zeta, epsilon=3)
        other.forward(backend.asarray(np.zeros((1, 12)), dtype))
        other.set_params({"parameters": layer.parameters})
    W, mask = arrays(other)
    gone = np.zeros(mask.shape, bool)
    for sign in (1, -1):
        group = sorted(
            (abs(W[i]), i) for i in np.ndindex(W.shape) if mask[i] and (W[i] >= 0) == (sign > 0)
        )
        for _, i in group[: int(zeta * len(group))]:
            gone[i] = True
    evolve(other, backend)
    new_W, new_mask = arrays(other)
    stays = (mask == 1) & ~gone
    assert_same_bits(new_W[stays], W[stays])
    assert (new_mask[stays] == 1).all()
    assert new_mask.sum() == mask.sum()  # as many come as go
    assert (new_mask - stays).sum() == gone.sum()
    assert not new_W[new_mask == 0].any()
    assert other.parameters["W"].dtype == other.parameters["W_mask"].dtype == dtype


def test_the_number_of_connections_stays(backend: Backend) -> None:
    layer = layer_of(backend, 25, 15, epsilon=4)
    W, mask = layer.parameters["W"], layer.parameters["W_mask"]
    count = host(mask).sum()
    seen = host(mask) != 0
    for _ in range(30):
        evolve(layer, backend)
        assert host(mask).sum() == count
        seen |= host(mask) != 0
    assert layer.parameters["W"] is W  # in place
    assert layer.parameters["W_mask"] is mask
    assert seen.mean() > 0.9  # they get everywhere


@pytest.mark.parametrize(
    "init, std",
    [("he_uniform", (2 / 400) ** 0.5), ("glorot_normal", 5 / 3 * (2 / 700) ** 0.5),
     ("std_normal", 1.0)],
)  # fmt: skip
def test_new_weights_have_the_variance_of_init(
    init: str, std: float, numpy_backend: Backend
) -> None:
    layer = layer_of(numpy_backend, 400, 300, zeta=1, epsilon=50, act_fn="Tanh", init=init)
    evolve(layer, numpy_backend)
    W, mask = arrays(layer)
    new = W[mask == 1]
    assert new.std() == pytest.approx(std, rel=0.02)
    assert abs(new).max() <= 3**0.5 * std
    assert abs(new.mean()) < 5 * std / new.size**0.5


@pytest.mark.parametrize("spec", ["SGD(lr=0.1, momentum=0.9)", "Adam(lr=0.1)", "RMSProp(lr=0.1)"])
def test_the_optimizers_state_of_moved_connections_starts_at_zero(
    spec: str, backend: Backend
) -> None:
    layer = layer_of(backend, 15, 10, epsilon=3, optimizer=spec)
    Y = layer.forward(backend.asarray(values((5, 15), 2)))
    layer.backward(Y + 1.0)
    before = arrays(layer)[1]
    grads = host(layer.gradients["W"]).copy()
    layer.update()
    W, mask = arrays(layer)
    state = layer.optimizer.cache["W"]
    for held in state.values() if isinstance(state, dict) else [state]:
        if getattr(held, "shape", None) != W.shape:
            continue
        values_ = host(held)
        assert not values_[mask == 0].any()
        moved = (before == 1) & (values_ == 0) & (grads != 0)
        assert 0 < moved.sum() < before.sum()


def test_zeta_zero_moves_nothing(backend: Backend) -> None:
    layer = layer_of(backend, 12, 9, zeta=0, epsilon=3)
    before, state = arrays(layer), random.get_state()
    evolve(layer, backend, 3)
    for a, b in zip(arrays(layer), before, strict=True):
        assert_same_bits(a, b)
    assert random.get_state() == state


def test_a_frozen_layer_stands_still(backend: Backend) -> None:
    layer = layer_of(backend, 12, 9, epsilon=3)
    before = arrays(layer)
    layer.freeze()
    with pytest.raises(FrozenLayerError):
        evolve(layer, backend)
    for a, b in zip(arrays(layer), before, strict=True):
        assert_same_bits(a, b)
    layers.SparseEvolution(3).update()  # before the first input, too


def test_both_backends_evolve_alike(emulated: Backend) -> None:
    states = []
    for backend in (Backend("numpy", np, "auto"), emulated):
        layer = layer_of(backend, 20, 10, epsilon=3, optimizer=SGD)
        for seed in (2, 3):
            Y = layer.forward(backend.asarray(values((4, 20), seed)))
            layer.backward(Y)
            layer.update()
        states.append(arrays(layer))
    assert_same_bits(states[0][1], states[1][1])
    assert_close(states[1][0], states[0][0])


def test_evolution_neither_waits_nor_copies(emulated: Backend) -> None:
    layer = layer_of(emulated, 20, 10, epsilon=3, optimizer="Adam")
    X = emulated.asarray(values((4, 20), 2))
    layer.backward(layer.forward(X))
    layer.update()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.backward(layer.forward(X))
        layer.update()


def test_a_summary_keeps_the_connections(backend: Backend) -> None:
    layer = layer_of(backend, 20, 10, epsilon=3, optimizer="Adam")
    evolve(layer, backend, 2)
    summary = copy.deepcopy(layer.summary())
    assert summary["layer"] == "SparseEvolutionary"
    assert summary["parameters"].keys() == {"W", "b", "W_mask"}
    other = layers.SparseEvolution(10).set_params(summary)
    for _ in range(2):
        random.seed(9)
        evolve(layer, backend)
        random.seed(9)
        evolve(other, backend)
        for a, b in zip(arrays(layer), arrays(other), strict=True):
            assert_same_bits(a, b)


def test_it_learns(backend: Backend) -> None:
    """A target of few inputs is learned by few connections, which first have to find it."""
    random.seed(3)
    layer = layers.SparseEvolution(4, epsilon=2, optimizer="Adam(lr=0.05)")
    X = values((60, 30), 1, "float32").astype("float32")
    target = backend.asarray(X[:, :4] * 2)
    X = backend.asarray(X)
    losses = []
    for _ in range(150):
        error = layer.forward(X) - target
        losses.append(float(host(error * error).mean()))
        layer.backward(error)
        layer.update()
    assert min(losses[-20:]) < 0.3 * losses[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_out": 0}, "n_out must be an integer >= 1, got 0"),
        ({"zeta": 1.1}, r"zeta must be a number in \[0, 1\], got 1.1"),
        ({"zeta": None}, "zeta must be a number"),
        ({"epsilon": 0}, r"epsilon must be a number in \(0, inf\), got 0"),
        ({"init": "glorot"}, "unknown mode 'glorot'"),
        ({"act_fn": "rellu"}, "rellu"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        layers.SparseEvolution(**{"n_out": 3, **arguments})
