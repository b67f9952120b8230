"""Batch normalisation and standardisation against loops."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import normalization
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
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


# ------------------------------------------------------------------------------ standardisation

# the axes, and the same axes moved to the end as one
AXES = {(1,): (0, 2, 3, 1), (-1,): (0, 1, 2, 3), (3, 1, 2): (0, 1, 2, 3), (1, 3): (0, 2, 1, 3)}
SHAPE = (2, 3, 4, 5)


def as_rows(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    length = int(np.prod([SHAPE[axis] for axis in axes]))
    return a.transpose(AXES[axes]).reshape(-1, length)


def from_rows(rows: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    order = AXES[axes]
    return rows.reshape([SHAPE[axis] for axis in order]).transpose(np.argsort(order))


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_standardize(engine: Engine, axes: tuple[int, ...], eps: float, dtype: str) -> None:
    X, dX_hat = eighths(SHAPE, 1), eighths(SHAPE, 2)
    X_hat, inv_std = engine.call(
        normalization.standardize_forward, engine.array(X, dtype), axes, eps
    )
    gold = naive.standardize(as_rows(X, axes), eps)
    assert_close(X_hat, from_rows(gold[0], axes))
    assert X_hat.dtype == dtype
    assert inv_std.dtype == ("float32" if dtype == "float16" else dtype)
    kept = [axis for axis in range(4) if axis not in {a % 4 for a in axes}]
    assert inv_std.shape == tuple(SHAPE[a] if a in kept else 1 for a in range(4))
    assert_close(inv_std.reshape(-1), gold[1])
    dX = engine.call(
        normalization.standardize_backward, engine.array(dX_hat, dtype), X_hat, inv_std, axes
    )
    assert dX.dtype == dtype
    wanted = naive.standardize_grad(as_rows(X, axes), as_rows(dX_hat, axes), eps)
    assert_close(dX, from_rows(wanted, axes), factor=2)


def test_standardize_far_from_zero_and_long(engine: Engine) -> None:
    for dtype, centre in (("float32", 256.0), ("float16", 64.0)):
        X = eighths((2, 4000), 3) + centre
        X_hat, _ = normalization.standardize_forward(engine.array(X, dtype), (1,), 1e-5)
        assert_close(X_hat, naive.standardize(X, 1e-5)[0], factor=10)
    # squares and sums beyond float16's 65504
    X = 8.0 * eighths((2, 4000), 4, spread=400)
    X_hat, inv_std = normalization.standardize_forward(engine.array(X, "float16"), (1,), 1e-5)
    gold = naive.standardize(X, 1e-5)
    assert_close(X_hat, gold[0])
    dX_hat = 64.0 * np.ones(X.shape) + eighths(X.shape, 5)
    dX = normalization.standardize_backward(engine.array(dX_hat, "float16"), X_hat, inv_std, (1,))
    inner = dX_hat - dX_hat.mean(1, keepdims=True)
    inner = inner - gold[0] * (dX_hat * gold[0]).mean(1, keepdims=True)
    assert_close(dX, gold[1][:, None] * inner, factor=0.1)


def test_standardize_constant_rows_and_no_rows(engine: Engine) -> None:
    X = engine.array(np.full((2, 3), 5.0))
    X_hat, inv_std = normalization.standardize_forward(X, (1,), 0.25)
    assert_same_bits(X_hat, np.zeros((2, 3)))
    assert_same_bits(inv_std, np.full((2, 1), 2.0))
    X_hat, inv_std = normalization.standardize_forward(X[:0], (1,), 0.25)
    assert (X_hat.shape, inv_std.shape) == ((0, 3), (0, 1))
    assert normalization.standardize_backward(X_hat, X_hat, inv_std, (1,)).shape == (0, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_standardize_any_layout(engine: Engine, layout: str) -> None:
    X = engine.array(eighths((7, 5), 1))
    X_hat, inv_std = normalization.standardize_forward(X, (1,), 1e-5)
    other = engine.call(normalization.standardize_forward, scrambled(X, layout), (1,), 1e-5)
    assert_same_bits(other[0], X_hat)
    dX = normalization.standardize_backward(X, X_hat, inv_std, (1,))
    other = engine.call(
        normalization.standardize_backward,
        scrambled(X, layout),
        scrambled(X_hat, layout),
        scrambled(inv_std, layout),
        (1,),
    )
    assert_same_bits(other, dX)


def test_wrong_calls_of_standardize(engine: Engine) -> None:
    X = engine.array(np.ones((4, 3)))
    forward, backward = normalization.standardize_forward, normalization.standardize_backward
    inv_std = engine.array(np.ones((4, 1)))
    for axes in ((2,), (-3,), (0, 5), ()):
        with pytest.raises(
            ShapeError, match=r"standardize_forward: X of shape \(4, 3\) has no axes"
        ):
            forward(X, axes, 1e-5)
    with pytest.raises(ShapeError, match=r"hold no element in X of shape \(4, 0\)"):
        forward(X[:, :0], (1,), 1e-5)
    with pytest.raises(
        DTypeError, match="standardize_forward: X must be a floating array, got int"
    ):
        forward(X.astype("int64"), (1,), 1e-5)
    with pytest.raises(DTypeError, match=r"standardize_forward: X: expected .* array, got list"):
        forward([1.0], (0,), 1e-5)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"standardize_backward: dX_hat must have shape \(4, 3\)"):
        backward(X[:2], X, inv_std, (1,))
    with pytest.raises(ShapeError, match=r"inv_std must have shape \(4, 1\), got \(4, 3\)"):
        backward(X, X, X, (1,))
    with pytest.raises(DTypeError, match="X_hat is float32, but dX_hat is float64"):
        backward(X, X.astype("float32"), inv_std, (1,))
    with pytest.raises(DTypeError, match="inv_std must be float64 for X_hat float64, got float32"):
        backward(X, X, inv_std.astype("float32"), (1,))


# -------------------------------------------------------------------------- layer normalisation


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (12, 33), (5, 130)], ids=str)
def test_layer_normalisation(engine: Engine, shape: tuple[int, int], dtype: str) -> None:
    X, scaler, intercept, dY = arguments(shape)
    Y, X_hat, inv_std = engine.call(
        normalization.layernorm_forward,
        *(engine.array(a, dtype) for a in (X, scaler, intercept)),
        0.1,
    )
    gold_X_hat, gold_inv_std = naive.standardize(X, 0.1)
    assert_close(X_hat, gold_X_hat)
    assert_close(inv_std, gold_inv_std[:, None])
    assert_close(Y, scaler * gold_X_hat + intercept)
    assert (Y.dtype, X_hat.dtype) == (dtype, dtype)
    assert inv_std.dtype == ("float32" if dtype == "float16" else dtype)
    dX, dscaler, dintercept = engine.call(
        normalization.layernorm_backward,
        engine.array(dY, dtype),
        X_hat,
        engine.array(scaler, dtype),
        inv_std,
    )
    assert_close(dX, naive.standardize_grad(X, dY * scaler, 0.1), factor=5)
    assert_close(dscaler, (dY * gold_X_hat).sum(axis=0), factor=5)
    assert_close(dintercept, dY.sum(axis=0))
    assert {a.dtype for a in (dX, dscaler, dintercept)} == {np.dtype(dtype)}


@pytest.mark.parametrize("value", [255.0, 1.0 / 3.0, -1e5])
def test_layer_normalisation_of_constant_rows(engine: Engine, value: float) -> None:
    """1/sqrt(eps) magnifies what the mean of a long row is off by."""
    X = engine.array(np.full((5, 2352), value), "float32")
    scaler, intercept = (engine.array(np.full(2352, v), "float32") for v in (2.0, 0.5))
    Y, X_hat, _ = normalization.layernorm_forward(X, scaler, intercept, 1e-5)
    by_last_axis, _ = normalization.standardize_forward(X, (1,), 1e-5)
    most = 300 * 1e-7 * abs(value)  # of a mean that is right to its last bit
    for found in (X_hat, by_last_axis):
        assert abs(host(found)).max() <= most
    assert abs(host(Y) - 0.5).max() <= 2 * most


def test_layer_normalisation_of_rows_that_are_nearly_constant(engine: Engine) -> None:
    X = (1000 + 1e-2 * np.random.default_rng(0).standard_normal((6, 2352))).astype("float32")
    X[3] -= 1000  # among rows that are not
    wide = X.astype("float64")
    gold = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    one = engine.array(np.ones(2352), "float32")
    _, X_hat, _ = normalization.layernorm_forward(engine.array(X), one, one, 1e-5)
    assert abs(host(X_hat) - gold).max() < 2e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer_normalisation_of_any_layout(engine: Engine, layout: str) -> None:
    X, scaler, intercept, dY = (engine.array(a) for a in arguments((7, 5)))
    forward = normalization.layernorm_forward(X, scaler, intercept, 1e-5)
    other = normalization.layernorm_forward(
        scrambled(X, layout), scrambled(scaler, "strided"), scrambled(intercept, "reversed"), 1e-5
    )
    backward = normalization.layernorm_backward(dY, forward[1], scaler, forward[2])
    other += normalization.layernorm_backward(
        scrambled(dY, layout),
        scrambled(forward[1], layout),
        scrambled(scaler, "strided"),
        scrambled(forward[2], layout),
    )
    for a, b in zip(other, forward + backward, strict=True):
        assert_same_bits(a, b)


def test_wrong_calls_of_layer_normalisation(engine: Engine) -> None:
    X, ones, inv_std = (engine.array(np.ones(s)) for s in ((4, 3), (3,), (4, 1)))
    forward, backward = normalization.layernorm_forward, normalization.layernorm_backward
    with pytest.raises(ShapeError, match=r"layernorm_forward: X must have shape \(m, width\)"):
        forward(X[None], ones, ones, 1e-5)
    with pytest.raises(ShapeError, match=r"hold no element in X of shape \(4, 0\)"):
        forward(X[:, :0], ones[:0], ones[:0], 1e-5)
    with pytest.raises(ShapeError, match=r"scaler must have shape \(3,\), got \(2,\)"):
        forward(X, ones[:2], ones, 1e-5)
    with pytest.raises(ShapeError, match=r"intercept must have shape \(3,\), got \(3, 1\)"):
        forward(X, ones, ones[:, None], 1e-5)
    with pytest.raises(DTypeError, match="intercept is float32, but X is float64"):
        forward(X, ones, ones.astype("float32"), 1e-5)
    with pytest.raises(ShapeError, match=r"layernorm_backward: X_hat must have shape \(4, 3\)"):
        backward(X, X[:2], ones, inv_std)
    with pytest.raises(ShapeError, match=r"inv_std must have shape \(4, 1\), got \(4,\)"):
        backward(X, X, ones, inv_std[:, 0])
    with pytest.raises(DTypeError, match="inv_std must be float64 for X_hat float64, got float32"):
        backward(X, X, ones, inv_std.astype("float32"))
    with pytest.raises(ShapeError, match=r"hold no element in dY of shape \(4, 0\)"):
        backward(X[:, :0], X[:, :0], ones[:0], inv_std)
