"""The restricted Boltzmann machine; defects D6, D7 of numpy-ml."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from gpulayers.errors import (
    BackendError,
    DTypeError,
    FrozenLayerError,
    ParameterError,
    ShapeError,
)
from tests.conftest import Backend
from tests.layers.gold import SEED
from tests.layers.harness import default_dtype, snapshot, values
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import philox

NAMES = ("V", "p_H", "p_V_prime", "p_H_prime", "positive_grad", "negative_grad")


def units(n_ex: int, n: int, seed: int = 1) -> np.ndarray:
    """Zeros and ones."""
    return (values((n_ex, n), seed) > 0).astype(float)


def fresh(
    backend: Backend, n_in: int = 4, n_out: int = 3, dtype: str = "float64", **settings: Any
) -> layers.RBM:
    layer = layers.RBM(n_out, **settings)
    with default_dtype(dtype):
        layer.forward(backend.asarray(units(2, n_in), dtype), retain_derived=False)
    for k, (name, known) in enumerate(parameters(n_in, n_out, dtype).items()):
        assert list(layer.parameters)[k] == name
        layer.parameters[name][...] = backend.asarray(known, dtype)
    return layer


def parameters(n_in: int = 4, n_out: int = 3, dtype: str = "float64") -> dict[str, np.ndarray]:
    shapes = {"W": (n_in, n_out), "b_in": (1, n_in), "b_out": (1, n_out)}
    return {n: 0.5 * values(s, 100 + k, dtype) for k, (n, s) in enumerate(shapes.items())}


# ----------------------------------------------------------------------------------------- gold


class Draws:
    """The uniform numbers that follow `random.seed(SEED)`, one draw after another."""

    def __init__(self) -> None:
        self.block = 0

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        n = math.prod(shape)
        words = philox.words((SEED, 0), self.block, -(-n // 2))
        self.block += -(-len(words) // 4)
        halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        return np.array([(half >> 8) / 2**24 for half in halves[:n]]).reshape(shape)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def p_hidden(p: dict, V: np.ndarray) -> np.ndarray:
    W, n_out = p["W"], p["W"].shape[1]
    out = np.zeros((len(V), n_out))
    for m, j in np.ndindex(out.shape):
        out[m, j] = sigmoid(sum(V[m, i] * W[i, j] for i in range(len(W))) + p["b_out"][0, j])
    return out


def p_visible(p: dict, H: np.ndarray) -> np.ndarray:
    W, n_out = p["W"], p["W"].shape[1]
    out = np.zeros((len(H), len(W)))
    for m, i in np.ndindex(out.shape):
        out[m, i] = sigmoid(sum(H[m, j] * W[i, j] for j in range(n_out)) + p["b_in"][0, i])
    return out


def contrastive_divergence(p: dict, V: np.ndarray, K: int) -> tuple[dict, dict]:
    """Derived variables, and gradients of the parameters."""
    draws = Draws()
    p_H = p_H_prime = p_hidden(p, V)
    p_V_prime = V_prime = V
    for _ in range(K):
        H = (draws(p_H_prime.shape) < p_H_prime).astype(float)
        p_V_prime = p_visible(p, H)
        V_prime = (draws(V.shape) < p_V_prime).astype(float)
        p_H_prime = p_hidden(p, V_prime)
    positive, negative = np.zeros(p["W"].shape), np.zeros(p["W"].shape)
    for m, i, j in np.ndindex(len(V), *p["W"].shape):
        positive[i, j] += V[m, i] * p_H[m, j]
        negative[i, j] += V_prime[m, i] * p_H_prime[m, j]
    derived = dict(zip(NAMES, (V, p_H, p_V_prime, p_H_prime, positive, negative), strict=True))
    return derived, {
        "W": negative - positive,
        "b_in": np.sum(V_prime - V, axis=0, keepdims=True),
        "b_out": np.sum(p_H_prime - p_H, axis=0, keepdims=True),
    }


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("n_ex, n_in, n_out", [(5, 4, 3), (1, 1, 1), (3, 7, 2)])
def test_against_loops(K: int, n_ex: int, n_in: int, n_out: int, backend: Backend) -> None:
    layer, V = fresh(backend, n_in, n_out, K=K), units(n_ex, n_in, 2)
    random.seed(SEED)
    assert layer.forward(backend.asarray(V)) is None
    assert layer.backward() is None
    derived, grads = contrastive_divergence(parameters(n_in, n_out), V, K)
    assert layer.derived_variables.keys() == set(NAMES)
    for name, expected in derived.items():
        assert_close(layer.derived_variables[name][0], expected)
    assert layer.gradients.keys() == grads.keys()
    for name, expected in grads.items():
        assert_close(layer.gradients[name], expected)


# ------------------------------------------------- the likelihood itself, by counting all states


def free_energy(p: dict, v: np.ndarray) -> float:
    """-log sum over h of exp(-E(v, h))."""
    hidden = v @ p["W"] + p["b_out"][0]
    return -float(v @ p["b_in"][0]) - sum(math.log1p(math.exp(z)) for z in hidden)


def log_likelihood(p: dict, V: np.ndarray) -> float:
    states = [np.array(s, float) for s in itertools.product((0, 1), repeat=len(p["W"]))]
    log_Z = math.log(sum(math.exp(-free_energy(p, v)) for v in states))
    return sum(-free_energy(p, v) - log_Z for v in V)


def test_many_rounds_give_the_gradient_of_the_likelihood(numpy_backend: Backend) -> None:
    """Central differences of the negative log-likelihood, by counting all 16 states of v."""
    layer, p = fresh(numpy_backend, K=40), parameters()
    few = units(5, 4, 2)
    repeats = 8000
    V = np.repeat(few, repeats, axis=0)
    random.seed(1)
    layer.CD_update(V)
    for name, known in p.items():
        estimate = layer.gradients[name] / repeats
        for index in np.ndindex(known.shape):
            sides = []
            for h in (1e-4, -1e-4):
                moved = {n: a.copy() for n, a in p.items()}
                moved[name][index] += h
                sides.append(-log_likelihood(moved, few))
            exact = (sides[0] - sides[1]) / 2e-4
            # the noise of 5 numbers in [-1, 1], averaged over the repeats
            assert abs(estimate[index] - exact) < 5 * (5 / repeats) ** 0.5, (name, index)
    assert max(abs(layer.gradients["W"]).max() / repeats, 0) > 0.3


def test_training_makes_the_data_more_likely(backend: Backend) -> None:
    """D7: numpy-ml's gradients point up the likelihood, and its optimizer goes down them."""
    layer = fresh(backend, 4, 3, optimizer="SGD(lr=0.02)")
    V = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]] * 10)
    likelihood = []
    random.seed(2)
    for _ in range(150):
        likelihood.append(log_likelihood({n: host(a) for n, a in layer.parameters.items()}, V))
        layer.CD_update(backend.asarray(V))
        layer.update()
    assert np.mean(likelihood[-10:]) > 0.6 * likelihood[0]
    assert likelihood[0] < -40
    random.seed(3)
    drawn = host(layer.reconstruct(backend.asarray(V), n_steps=3))
    right = np.mean((drawn[:, 0] == drawn[:, 1]) & (drawn[:, 2] == drawn[:, 3]))
    assert right > 0.6


# ------------------------------------------------------------------------- numpy-ml's defects


def test_it_can_be_made(numpy_backend: Backend) -> None:
    """D6: L.RBM(4) raises TypeError, hyperparameters AttributeError in numpy-ml."""
    layer = layers.RBM(4)
    assert layer.parameters == {"W": None, "b_in": None, "b_out": None}
    assert layer.hyperparameters.keys() == {"layer", "K", "n_in", "n_out", "init", "optimizer"}
    layer.forward(units(3, 5))
    assert {n: a.shape for n, a in layer.parameters.items()} == {
        "W": (5, 4), "b_in": (1, 5), "b_out": (1, 4),
    }  # fmt: skip


def test_gradients_have_the_parameters_shapes(backend: Backend) -> None:
    """D7: numpy-ml's b_in and b_out gradients have one row an example, and update() turns the
    biases into such arrays."""
    layer = fresh(backend)
    layer.CD_update(backend.asarray(units(6, 4, 2)))
    shapes = {n: a.shape for n, a in parameters().items()}
    assert {n: g.shape for n, g in layer.gradients.items()} == shapes
    layer.update()
    assert {n: p.shape for n, p in layer.parameters.items()} == shapes


def test_forward_obeys_its_own_k(backend: Backend) -> None:
    """D7: numpy-ml's forward(V, K=k) compares with self.K."""
    layer, V = fresh(backend, K=1), units(5, 4, 2)
    random.seed(SEED)
    layer.forward(backend.asarray(V), K=3)
    derived, _ = contrastive_divergence(parameters(), V, 3)
    assert_close(layer.derived_variables["p_H_prime"][0], derived["p_H_prime"])
    assert layer.K == 1


# -------------------------------------------------------------------------- the layers' contract


def test_several_forwards_before_one_backward(backend: Backend) -> None:
    layer = fresh(backend)
    total: dict[str, Any] = {}
    for n in (2, 1, 3):
        random.seed(SEED)
        layer.forward(backend.asarray(units(n, 4, 2)))
        for name, grad in contrastive_divergence(parameters(), units(n, 4, 2), 1)[1].items():
            total[name] = total.get(name, 0) + grad
    assert [len(X) for X in layer.X] == [2, 1, 3]
    layer.backward()
    for name, expected in total.items():
        assert_close(layer.gradients[name], expected)
    layer.backward(True, "ignored")
    assert_close(layer.gradients["W"], 2 * total["W"])


def test_flags(backend: Backend) -> None:
    layer, V = fresh(backend), backend.asarray(units(5, 4, 2))
    kept = host(V).copy()
    layer.forward(V, retain_derived=False)
    assert layer.X == []
    with pytest.raises(ShapeError, match="RBM: no input is retained"):
        layer.backward()
    layer.forward(V)
    layer.backward(retain_grads=False)
    assert not any(host(g).any() for g in layer.gradients.values())
    layer.freeze()
    layer.backward()
    assert not any(host(g).any() for g in layer.gradients.values())
    with pytest.raises(FrozenLayerError):
        layer.update()
    layer.unfreeze()
    layer.update()
    assert layer.derived_variables == {name: [] for name in NAMES}
    assert_same_bits(V, kept)


def test_an_empty_batch(backend: Backend) -> None:
    layer = fresh(backend)
    layer.CD_update(backend.asarray(units(0, 4)))
    assert not any(host(g).any() for g in layer.gradients.values())
    assert layer.reconstruct(backend.asarray(units(0, 4))).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_dtype_is_kept(dtype: str, backend: Backend) -> None:
    layer, V = fresh(backend, dtype=dtype), units(5, 4, 2)
    random.seed(SEED)
    layer.CD_update(backend.asarray(V, "float64"))
    derived, grads = contrastive_divergence(parameters(dtype=dtype), V, 1)
    for name, expected in grads.items():
        assert layer.gradients[name].dtype == dtype
        assert_close(layer.gradients[name], expected, factor=3)
    assert {a[0].dtype.name for a in layer.derived_variables.values()} == {dtype}
    assert layer.reconstruct(backend.asarray(V, dtype)).dtype == dtype
    assert_close(layer.derived_variables["p_H"][0], derived["p_H"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str, backend: Backend) -> None:
    results = []
    for change in (lambda a: a, lambda a: scrambled(a, layout)):
        layer = fresh(backend)
        random.seed(SEED)
        layer.CD_update(change(backend.asarray(units(5, 4, 2))))
        results.append(snapshot(layer.gradients))
    for name, grad in results[0].items():
        assert_same_bits(results[1][name], grad)


@pytest.mark.parametrize("steps", [1, 4])
def test_reconstruct(steps: int, backend: Backend) -> None:
    layer, p, V = fresh(backend), parameters(), units(5, 4, 2)
    X = backend.asarray(V)
    draws, drawn, probability = Draws(), V, V
    for _ in range(steps):
        hidden = p_hidden(p, drawn)
        H = (draws(hidden.shape) < hidden).astype(float)
        probability = p_visible(p, H)
        drawn = (draws(V.shape) < probability).astype(float)
    random.seed(SEED)
    assert_same_bits(layer.reconstruct(X, steps), drawn)
    random.seed(SEED)
    assert_close(layer.reconstruct(X, steps, return_prob=True), probability)
    assert layer.X == []
    assert_same_bits(X, V)


def test_a_step_neither_waits_nor_copies(emulated: Backend) -> None:
    layer = fresh(emulated, dtype="float32", optimizer="Adam", K=2)
    V = emulated.asarray(units(5, 4, 2), "float32")
    layer.CD_update(V)
    layer.update()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.CD_update(V)
        layer.update()
        layer.reconstruct(V)


def test_summary_and_moving(emulated: Backend) -> None:
    layer = fresh(emulated, K=2, optimizer="Adam")
    V = units(5, 4, 2)
    layer.CD_update(emulated.asarray(V))
    layer.update()
    other = layers.RBM(9).set_params(copy.deepcopy(layer.summary()))
    assert (other.K, other.n_in, other.n_out) == (2, 4, 3)
    other.to("numpy")
    for one, X in ((layer, emulated.asarray(V)), (other, V)):
        random.seed(SEED)
        one.CD_update(X)
        one.update()
    for name, array in layer.parameters.items():
        assert_close(other.parameters[name], host(array))
    layer.forward(emulated.asarray(V))
    layer.to("numpy")
    layer.backward()
    assert type(layer.gradients["W"]) is np.ndarray


def test_bad_calls(emulated: Backend) -> None:
    layer, V = fresh(emulated), emulated.asarray(units(5, 4))
    for given, error, message in [
        (V[:, :3], ShapeError, r"RBM: expected an input \(n_ex, n_in\) with n_in = 4"),
        (V[0], ShapeError, "RBM: expected an input"),
        (V.astype("int32"), DTypeError, "RBM: the input must have a floating dtype"),
        (units(5, 4), BackendError, "RBM: the parameters are cupy arrays"),
    ]:
        for call in (layer.forward, layer.reconstruct, layer.CD_update):
            with pytest.raises(error, match=message):
                call(given)
    assert layer.X == []
    for k in (0, -1, 1.5, "2"):
        with pytest.raises(ParameterError, match="RBM: K must be an integer >= 1"):
            layer.forward(V, K=k)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="RBM: K must be an integer >= 1"):
            layers.RBM(3, K=k)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="RBM: n_steps must be an integer >= 1"):
            layer.reconstruct(V, n_steps=k)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="RBM: n_out must be an integer >= 1"):
            layers.RBM(k)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="unknown mode"):
        layers.RBM(3, init="glorot")
