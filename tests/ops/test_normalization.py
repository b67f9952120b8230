"""Batch normalisation against loops."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import normalization
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, scrambled
from tests.support.naive import normalization as naive

SHAPES = [(2, 1), (7, 3), (12, 33), (130, 5)]


def arguments(shape: tuple[int, int]):
    return eighths(shape, 1), eighths(shape[1:], 2), eighths(shape[1:], 3), eighths(shape, 4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_forward_and_backward(engine: Engine, shape: tuple[int, int], eps: float, dtype: str):
    X, scaler, intercept, dY = arguments(shape)
    forward = engine.call(
        normalization.batchnorm_forward,
        *(engine.array(a, dtype) for a in (X, scaler, intercept)),
        eps,
    )
    gold = naive.batchnorm(X, scaler, intercept, eps)
    for actual, expected in zip(forward, gold, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, factor=3)
    _, X_hat, _, _, inv_std = forward
    backward = engine.call(
        normalization.batchnorm_backward,
        engine.array(dY, dtype),
        X_hat,
        engine.array(scaler, dtype),
        inv_std,
    )
    for actual, expected in zip(backward, naive.batchnorm_grads(X, dY, scaler, eps), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, factor=5)


def test_one_row_and_constant_columns(engine: Engine) -> None:
    for X in (np.full((1, 3), 2.0), np.full((5, 3), -3.0)):
        Y, X_hat, _, var, inv_std = normalization.batchnorm_forward(
            engine.array(X), engine.array(np.ones(3)), engine.array(np.arange(3.0)), 1e-5
        )
        assert_close(Y, np.broadcast_to(np.arange(3.0), X.shape))
        assert_same_bits(var, np.zeros(3))
        dX, _, _ = normalization.batchnorm_backward(
            engine.array(np.ones(X.shape)), X_hat, engine.array(np.ones(3)), inv_std
        )
        assert_close(dX, np.zeros(X.shape), factor=1e3)  # 1/sqrt(eps) magnifies the rounding


def test_a_mean_far_from_zero(engine: Engine) -> None:
    # the variance must not come from mean(x**2) - mean(x)**2, which cancels
    X = eighths((64, 2), 5) + 4096.0
    _, _, mean, var, _ = normalization.batchnorm_forward(
        engine.array(X, "float32"),
        engine.array(np.ones(2), "float32"),
        engine.array(np.zeros(2), "float32"),
        1e-5,
    )
    gold = naive.batchnorm(X, np.ones(2), np.zeros(2), 1e-5)
    assert_close(mean, gold[2])
    assert_close(var, gold[3], factor=100)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    X, scaler, intercept, dY = (engine.array(a) for a in arguments((7, 3)))
    forward = normalization.batchnorm_forward(X, scaler, intercept, 1e-5)
    other = engine.call(
        normalization.batchnorm_forward,
        scrambled(X, layout),
        scrambled(scaler, "strided"),
        scrambled(intercept, "reversed"),
        1e-5,
    )
    for a, b in zip(other, forward, strict=True):
        assert_same_bits(a, b)
    backward = normalization.batchnorm_backward(dY, forward[1], scaler, forward[4])
    other = engine.call(
        normalization.batchnorm_backward,
        scrambled(dY, layout),
        scrambled(forward[1], layout),
        scaler,
        forward[4],
    )
    for a, b in zip(other, backward, strict=True):
        assert_same_bits(a, b)


def test_wrong_calls(engine: Engine) -> None:
    X, ones = engine.array(np.ones((4, 3))), engine.array(np.ones(3))
    forward, backward = normalization.batchnorm_forward, normalization.batchnorm_backward
    with pytest.raises(ShapeError, match=r"batchnorm_forward: X must have shape \(m, ch\)"):
        forward(X[None], ones, ones, 1e-5)
    with pytest.raises(ShapeError, match=r"at least one row, got X of shape \(0, 3\)"):
        forward(X[:0], ones, ones, 1e-5)
    with pytest.raises(ShapeError, match=r"scaler must have shape \(3,\), got \(2,\)"):
        forward(X, ones[:2], ones, 1e-5)
    with pytest.raises(ShapeError, match=r"intercept must have shape \(3,\), got \(3, 1\)"):
        forward(X, ones, ones[:, None], 1e-5)
    with pytest.raises(DTypeError, match="scaler is float32, but X is float64"):
        forward(X, ones.astype("float32"), ones, 1e-5)
    with pytest.raises(ShapeError, match=r"batchnorm_backward: X_hat must have shape \(4, 3\)"):
        backward(X, X[:2], ones, ones)
    with pytest.raises(ShapeError, match=r"inv_std must have shape \(3,\)"):
        backward(X, X, ones, ones[:1])
