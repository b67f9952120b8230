"""Embedding: integer arrays, lists, pooling; every occurrence of an id counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.layers.embeddings import IDS, RAGGED, VOCAB, WIDTH, embedding, run, with_pools
from tests.layers.harness import default_dtype
from tests.support.compare import assert_close, assert_same_bits, host
from tests.support.naive import embedding as naive


@pytest.fixture(autouse=True)
def float64():
    with default_dtype("float64"):
        yield


# ------------------------------------------------------------------------- values and gradients


@with_pools
@pytest.mark.parametrize(
    "ids", [IDS, IDS[:1], IDS[:, :1], IDS[:0], IDS[:, :0]], ids=lambda a: str(a.shape)
)
def test_against_loops(pool: str | None, ids: np.ndarray, backend: Backend) -> None:
    layer = embedding(pool)
    Y, dY = run(layer, backend.asarray(ids), backend)
    W = host(layer.parameters["W"])
    gold = naive.lookup(W, ids.tolist(), pool)
    assert Y.shape == ((len(ids), 1, WIDTH) if pool else (*ids.shape, WIDTH))
    assert_close(Y, gold.reshape(Y.shape))
    assert_close(layer.gradients["W"], naive.lookup_grad(W.shape, ids.tolist(), dY, pool))


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["arrays", "lists", "tuples"])
def test_ragged_lists_against_loops(pool: str, kind: str, backend: Backend) -> None:
    X: Any = {
        "arrays": lambda: [backend.asarray(np.array(ids, np.int32)) for ids in RAGGED],
        "lists": lambda: RAGGED,
        "tuples": lambda: tuple(tuple(ids) for ids in RAGGED),
    }[kind]()
    layer = embedding(pool).to(backend.library)
    Y, dY = run(layer, X, backend)
    W = host(layer.parameters["W"])
    assert Y.shape == (5, 1, WIDTH)
    assert_close(Y, naive.lookup(W, RAGGED, pool))
    assert not host(Y)[2].any()  # no ids: zero, for the mean too (as PyTorch's EmbeddingBag)
    assert_close(layer.gradients["W"], naive.lookup_grad(W.shape, RAGGED, dY, pool))
    assert RAGGED == [[1, 4, 1], [6], [], [2, 2, 2, 2, 5], [0, 6]]


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_lists_of_one_length_equal_the_array(pool: str, backend: Backend) -> None:
    layer, other = embedding(pool).to(backend.library), embedding(pool)
    Y, _ = run(layer, IDS.tolist(), backend)
    expected, _ = run(other, backend.asarray(IDS), backend)
    assert_close(Y, host(expected))
    assert_close(layer.gradients["W"], host(other.gradients["W"]))


def test_lists_without_pooling(backend: Backend) -> None:
    layer = embedding().to(backend.library)
    expected = layer.forward(backend.asarray(IDS))
    assert_same_bits(layer.forward(IDS.tolist()), expected)
    assert_same_bits(layer.forward([backend.asarray(ids) for ids in IDS]), expected)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2)])
def test_other_shapes_without_pooling(shape: tuple[int, ...], backend: Backend) -> None:
    ids = np.random.default_rng(3).integers(0, VOCAB, shape)
    layer = embedding()
    Y, dY = run(layer, backend.asarray(ids), backend)
    W = host(layer.parameters["W"])
    assert_same_bits(Y, W[ids])
    gold = naive.lookup_grad(W.shape, ids.reshape(1, -1).tolist(), dY.reshape(1, -1, WIDTH))
    assert_close(layer.gradients["W"], gold)


@with_pools
def test_against_pytorch(pool: str | None, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    layer = embedding(pool)
    Y, dY = run(layer, backend.asarray(IDS), backend)
    W = torch.tensor(host(layer.parameters["W"]), requires_grad=True)
    if pool is None:
        expected = torch.nn.functional.embedding(torch.tensor(IDS), W)
    else:
        expected = torch.nn.functional.embedding_bag(torch.tensor(IDS), W, mode=pool)[:, None]
    expected.backward(torch.tensor(dY))
    assert_close(Y, expected.detach().numpy())
    assert W.grad is not None
    assert_close(layer.gradients["W"], W.grad.numpy())


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_ragged_lists_against_pytorch(pool: str, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    layer = embedding(pool).to(backend.library)
    Y, dY = run(layer, RAGGED, backend)
    W = torch.tensor(host(layer.parameters["W"]), requires_grad=True)
    starts = np.cumsum([0, *(len(ids) for ids in RAGGED[:-1])])
    joined = torch.tensor([i for ids in RAGGED for i in ids])
    bags = torch.nn.functional.embedding_bag(joined, W, torch.tensor(starts), mode=pool)
    bags.backward(torch.tensor(dY[:, 0]))
    assert_close(Y[:, 0], bags.detach().numpy())
    assert W.grad is not None
    assert_close(layer.gradients["W"], W.grad.numpy())


@with_pools
def test_central_differences(pool: str | None, backend: Backend) -> None:
    layer = embedding(pool)
    ids = backend.asarray(IDS)
    _, dY = run(layer, ids, backend)
    gradient, W = host(layer.gradients["W"]), host(layer.parameters["W"])
    for index in np.ndindex(W.shape):
        sides = []
        for step in (1e-5, -1e-5):
            moved = W.copy()
            moved[index] += step
            layer.parameters["W"][...] = backend.asarray(moved)
            sides.append(np.sum(host(layer.forward(ids, retain_derived=False)) * dY))
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "pool, expected", [(None, [0, 2, 1]), ("sum", [0, 2, 1]), ("mean", [0, 2 / 3, 1 / 3])]
)
def test_d13_a_repeated_id_is_counted_each_time(
    pool: str | None, expected: list[float], backend: Backend
) -> None:
    """numpy-ml gives row 1 here the gradient 1 (sum) and 1/3 (mean), half of what is right."""
    layer = layers.Embedding(2, 3, pool)
    Y = layer.forward(backend.asarray(np.array([[1, 1, 2]])))
    layer.backward(backend.asarray(np.ones(Y.shape)))
    assert_close(layer.gradients["W"], np.array(expected)[:, None] * np.ones(2))
