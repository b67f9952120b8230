"""Pooled embeddings, dot-product attention, and the softmax inside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.defects.support import assert_mended
from tests.layers.harness import values
from tests.support.compare import assert_close, host
from tests.support.naive.attention import attention_grads


@pytest.mark.defect(13)
@pytest.mark.parametrize("pool, share", [("sum", 1.0), ("mean", 1 / 3)])
def test_a_repeated_id_counts_every_time(pool: str, share: float, backend: Backend) -> None:
    """numpy-ml counts the id 1 of (1, 1, 2) once: rows 1 and 2 of dW are equal."""
    layer = layers.Embedding(2, 4, pool=pool)
    Y = layer.forward(backend.asarray(np.array([[1, 1, 2]])))
    assert Y.shape == (1, 1, 2)
    layer.backward(backend.asarray(np.array([[[1.0, 10.0]]])))
    right = share * np.array([[0, 0], [2, 20], [1, 10], [0, 0]])
    numpy_ml = share * np.array([[0, 0], [1, 10], [1, 10], [0, 0]])
    assert_mended(layer.gradients["W"], right, numpy_ml)


def inputs(shape: tuple[int, ...], seed: int = 1) -> list[np.ndarray]:
    return [values(shape, seed + k) for k in range(3)]


def attend(layer: Any, Xs: list[np.ndarray], backend: Backend, **kwargs: Any) -> Any:
    return layer.forward(*(backend.asarray(X) for X in Xs), **kwargs)


@pytest.mark.defect(20)
@pytest.mark.parametrize("before", ["update", "evaluation", "two inputs"])
def test_attention_goes_backward_again(before: str, backend: Backend) -> None:
    """numpy-ml never flushes its inner softmax: backward raises AttributeError ('list' object has
    no attribute 'swapaxes') after an update, after retain_derived=False, and for two inputs."""
    layer = layers.DotProductAttention()
    Xs, others = inputs((2, 3, 4)), inputs((2, 5, 4), 7)
    dY = values((2, 3, 4), 9)
    if before == "update":
        layer.backward(attend(layer, others, backend))
        layer.update()
    elif before == "evaluation":
        attend(layer, others, backend, retain_derived=False)
    attend(layer, Xs, backend)
    gradients: Any = backend.asarray(dY)
    if before == "two inputs":
        gradients = [gradients, attend(layer, others, backend)]
    dXs = layer.backward(gradients)
    if before == "two inputs":
        dXs = [dX[0] for dX in dXs]
    for dX, right in zip(dXs, attention_grads(*Xs, dY), strict=True):
        assert_close(dX, right)


@pytest.mark.defect(21)
def test_attention_goes_backward_with_heads(backend: Backend) -> None:
    """numpy-ml's backward raises ValueError for inputs (n_ex, heads, T, d)."""
    layer = layers.DotProductAttention()
    Xs, dY = inputs((2, 2, 3, 4)), values((2, 2, 3, 4), 9)
    attend(layer, Xs, backend)
    dXs = layer.backward(backend.asarray(dY))
    for head in np.ndindex(2, 2):
        rights = attention_grads(*(X[head][None] for X in Xs), dY[head][None])
        for dX, right in zip(dXs, rights, strict=True):
            assert_close(dX[head], right[0])


@pytest.mark.defect(22)
def test_dropout_acts_on_the_attention_weights(backend: Backend) -> None:
    """numpy-ml drops scores and doubles what the softmax makes of the rest: with p = 0.5 and four
    equal keys all weights are 0.5 and sum to 2, whatever was dropped."""
    layer = layers.DotProductAttention(dropout_p=0.5)
    ones = [backend.asarray(np.ones((200, n, 1))) for n in (1, 4, 4)]
    Y = host(layer.forward(*ones))
    weights = host(layer.derived_variables["attention_weights"][0])
    assert not np.isclose(weights, 0.5).all()
    # dropout(softmax(Z)): a weight of 1/4 is gone or doubled, and half of them are gone
    assert set(np.unique(Y)) <= {0.0, 0.5, 1.0, 1.5, 2.0}
    assert len(np.unique(Y)) >= 4
    assert abs(Y.mean() - 1.0) < 5 * 0.5 / 200**0.5


@pytest.mark.defect(22)
def test_dropped_attention_weights_get_no_gradient(backend: Backend) -> None:
    """numpy-ml ignores the mask on the way back: with values 1, 10, 100, keys 1, 2, 3 and the last
    score dropped it gives the third key the gradient 15.14."""
    layer = layers.DotProductAttention(scale=False, dropout_p=0.5)
    Q = np.ones((1, 1, 1))
    K = np.array([[[1.0], [2.0], [3.0]]])
    V = np.array([[[1.0], [10.0], [100.0]]])
    softmax = np.exp([1.0, 2, 3]) / np.exp([1.0, 2, 3]).sum()
    seen = set()
    for _ in range(40):
        Y = attend(layer, [Q, K, V], backend).item()
        (kept,) = [
            kept for kept in np.ndindex(2, 2, 2) if math.isclose(
                Y, 2 * sum(k * w * v for k, w, v in zip(kept, softmax, V.ravel(), strict=True))
            )
        ]  # fmt: skip
        seen.add(kept)
        factors = 2.0 * np.array(kept)
        dQ, dK, dV = layer.backward(backend.asarray(np.ones((1, 1, 1))))
        assert_close(dV.ravel(), factors * softmax)
        d_weights = factors * V.ravel()
        d_scores = softmax * (d_weights - softmax @ d_weights)
        assert_close(dK.ravel(), d_scores)
        assert_close(dQ.ravel(), [d_scores @ K.ravel()])
        layer.flush_gradients()
    assert len(seen) > 4


Z = np.log([[1.0, 2], [3, 2]])  # columns 1/4, 3/4 and 1/2, 1/2


@pytest.mark.defect(23)
@pytest.mark.parametrize(
    "X, dim, dY, right, numpy_ml",
    [
        pytest.param(
            Z, 0, [[1, 0], [0, 1]], [[3 / 16, -1 / 4], [-3 / 16, 1 / 4]], [[0, -1], [-1, 0]],
            id="2-D, first axis",
        ),
        pytest.param(
            Z[None], 1, [[[1, 0], [0, 0]]], [[[3 / 16, 0], [-3 / 16, 0]]],
            [[[0.222222, -0.222222], [0, 0]]], id="3-D, middle axis",
        ),
        pytest.param(
            Z.T[None, None], -1, [[[[1, 0], [0, 1]]]], [[[[3 / 16, -3 / 16], [-1 / 4, 1 / 4]]]],
            None, id="4-D",
        ),
    ],
)  # fmt: skip
def test_softmax_has_a_gradient_along_every_axis(
    X: np.ndarray, dim: int, dY: Any, right: Any, numpy_ml: Any, backend: Backend
) -> None:
    """numpy-ml takes its Jacobians along the last axis: the wrong numbers above; for four
    dimensions ValueError."""
    layer = layers.Softmax(dim=dim)
    Y = layer.forward(backend.asarray(X))
    assert_close(Y.sum(axis=dim), np.ones_like(X.sum(axis=dim)))
    assert_mended(layer.backward(backend.asarray(np.array(dY, float))), right, numpy_ml)
