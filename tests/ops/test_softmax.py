"""Softmax and softmax cross-entropy against loops."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.ops import softmax
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import softmax as naive

SHAPES = [(1, 1), (3, 1), (1, 7), (5, 10), (2, 33), (3, 200), (2, 1100)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@functools.cache
def _gold(shape: tuple[int, int]):
    Y = naive.softmax(eighths(shape, 1, spread=40))
    return Y, naive.softmax_grad(eighths(shape, 2), Y)


@shapes
def test_forward_and_backward(engine: Engine, shape: tuple[int, int], dtype: str) -> None:
    Z, dY = eighths(shape, 1, spread=40), eighths(shape, 2)
    gold_Y, gold_dZ = _gold(shape)
    Y = engine.call(softmax.softmax_forward, engine.array(Z, dtype))
    assert Y.dtype == dtype
    assert_close(Y, gold_Y)
    dZ = engine.call(softmax.softmax_backward, engine.array(dY, dtype), Y)
    assert dZ.dtype == dtype
    assert_close(dZ, gold_dZ, factor=2)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -4])
def test_every_axis_of_four(engine: Engine, axis: int) -> None:
    Z, dY = eighths((2, 3, 4, 5), 3), eighths((2, 3, 4, 5), 4)
    Y = engine.call(softmax.softmax_forward, engine.array(Z), axis)
    dZ = engine.call(softmax.softmax_backward, engine.array(dY), Y, axis)
    gold, gold_grad = np.zeros(Z.shape), np.zeros(Z.shape)
    other = [n for k, n in enumerate(Z.shape) if k != axis % 4]
    for index in np.ndindex(*other):
        full = [*index[: axis % 4], slice(None), *index[axis % 4 :]]
        row = naive.softmax(Z[tuple(full)][None])
        gold[tuple(full)] = row[0]
        gold_grad[tuple(full)] = naive.softmax_grad(dY[tuple(full)][None], row)[0]
    assert_close(Y, gold)
    assert_close(dZ, gold_grad)


def test_large_numbers_do_not_overflow(engine: Engine, dtype: str) -> None:
    top = {"float16": 6e4, "float32": 3e38, "float64": 1e308}[dtype]
    with np.errstate(over="ignore"):  # the distance of -top from top is infinite
        Y = softmax.softmax_forward(engine.array([[top, top, -top], [-top, -top, -top]], dtype))
    assert_close(Y, [[0.5, 0.5, 0.0], [1 / 3] * 3])
    losses, _ = softmax.softmax_cross_entropy_forward(
        engine.array([[800.0, 0.0], [0.0, 800.0]], dtype), engine.array([0, 0])
    )
    assert_close(losses, [0.0, 800.0])


def test_minus_infinity_gets_no_probability(engine: Engine, dtype: str) -> None:
    Z = np.array([[-np.inf, 0.0, 0.0], [1.0, -np.inf, -np.inf]])
    Y = softmax.softmax_forward(engine.array(Z, dtype))
    assert_close(Y, [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])


def test_nan_and_infinity_spoil_their_row_alone(engine: Engine, dtype: str) -> None:
    Z = np.array([[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3, [1.0, 1.0, 1.0]])
    with np.errstate(invalid="ignore"):
        Y = softmax.softmax_forward(engine.array(Z, dtype))
    assert_close(Y, naive.softmax(Z))
    assert np.isnan(host(Y)[:3]).all()


@shapes
@pytest.mark.parametrize("integer", ["int64", "int32", "uint8"])
def test_cross_entropy(engine: Engine, shape: tuple[int, int], integer: str) -> None:
    Z = eighths(shape, 5, spread=40)
    labels = np.random.default_rng(6).integers(0, min(shape[1], 250), shape[0]).astype(integer)
    losses, probs = engine.call(
        softmax.softmax_cross_entropy_forward, engine.array(Z), engine.array(labels)
    )
    gold_losses, gold_probs = naive.cross_entropy(Z, labels)
    assert_close(losses, gold_losses)
    assert_close(probs, gold_probs)
    for scale in (1.0, 0.25):
        grad = engine.call(
            softmax.softmax_cross_entropy_backward, probs, engine.array(labels), scale
        )
        assert_close(grad, naive.cross_entropy_grad(gold_probs, labels, scale))


def test_cross_entropy_keeps_the_dtype(engine: Engine, dtype: str) -> None:
    Z, labels = eighths((4, 6), 7), np.array([5, 0, 3, 3])
    losses, probs = softmax.softmax_cross_entropy_forward(
        engine.array(Z, dtype), engine.array(labels)
    )
    grad = softmax.softmax_cross_entropy_backward(probs, engine.array(labels), 0.5)
    assert (losses.dtype, probs.dtype, grad.dtype) == (dtype, dtype, dtype)
    assert_close(losses, naive.cross_entropy(Z, labels)[0])
    assert_close(grad, naive.cross_entropy_grad(naive.softmax(Z), labels, 0.5))


@pytest.mark.parametrize("bad", [-1, 3, 100])
def test_a_label_out_of_range(engine: Engine, bad: int) -> None:
    logits, labels = engine.array(np.zeros((4, 3))), engine.array([0, bad, 2, 1])
    if engine.on_host:
        with pytest.raises(ParameterError, match=r"labels must be in 0\.\.2, got -?\d+\.\.\d+"):
            softmax.softmax_cross_entropy_forward(logits, labels)
    else:  # looking would stall the device: the loss tells
        losses, _ = softmax.softmax_cross_entropy_forward(logits, labels)
        assert list(np.isnan(host(losses))) == [False, True, False, False]
    # no class is hit: nothing is subtracted, and nothing outside the row is touched
    grad = host(softmax.softmax_cross_entropy_backward(logits, labels, 1.0))
    np.testing.assert_array_equal(grad.sum(axis=1), [-1, 0, -1, -1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    Z, dY = engine.array(eighths((4, 5), 8)), engine.array(eighths((4, 5), 9))
    labels = engine.array([1, 4, 0, 2])
    z, dy, wide = scrambled(Z, layout), scrambled(dY, layout), scrambled(labels, "strided")
    Y = softmax.softmax_forward(Z)
    assert_same_bits(engine.call(softmax.softmax_forward, z), Y)
    assert_same_bits(
        engine.call(softmax.softmax_backward, dy, scrambled(Y, layout)),
        softmax.softmax_backward(dY, Y),
    )
    losses, probs = softmax.softmax_cross_entropy_forward(Z, labels)
    other_losses, other_probs = engine.call(softmax.softmax_cross_entropy_forward, z, wide)
    assert_same_bits(other_losses, losses)
    assert_same_bits(other_probs, probs)
    assert_same_bits(
        engine.call(softmax.softmax_cross_entropy_backward, scrambled(probs, layout), wide, 1.0),
        softmax.softmax_cross_entropy_backward(probs, labels, 1.0),
    )


def test_an_empty_batch(engine: Engine, dtype: str) -> None:
    for shape in [(0, 3), (2, 0, 3)]:
        Z = engine.array(np.zeros(shape), dtype)
        Y = softmax.softmax_forward(Z)
        assert (Y.shape, Y.dtype) == (shape, dtype)
        assert softmax.softmax_backward(Y, Y).shape == shape
    labels = engine.array(np.zeros(0, np.int64))
    losses, probs = softmax.softmax_cross_entropy_forward(
        engine.array(np.zeros((0, 3)), dtype), labels
    )
    assert (losses.shape, probs.shape) == ((0,), (0, 3))
    assert softmax.softmax_cross_entropy_backward(probs, labels, 1.0).shape == (0, 3)


def test_wrong_calls(engine: Engine) -> None:
    Z, labels = engine.array(np.zeros((2, 3))), engine.array([0, 1])
    with pytest.raises(ShapeError, match=r"softmax_forward: axis 2 does not exist .* \(2, 3\)"):
        softmax.softmax_forward(Z, axis=2)
    with pytest.raises(ShapeError, match=r"softmax_backward: dY must have shape \(2, 3\), got"):
        softmax.softmax_backward(Z[:, :2], Z)
    with pytest.raises(ShapeError, match=r"logits must have shape \(m, classes\), got \(2, 3, 1\)"):
        softmax.softmax_cross_entropy_forward(Z[:, :, None], labels)
    with pytest.raises(ShapeError, match=r"labels must have shape \(2,\), got \(1,\)"):
        softmax.softmax_cross_entropy_forward(Z, labels[:1])
    with pytest.raises(ShapeError, match=r"labels must have shape \(2,\), got \(2, 1\)"):
        softmax.softmax_cross_entropy_backward(Z, labels[:, None])
    with pytest.raises(ShapeError, match=r"at least one class, got shape \(2, 0\)"):
        softmax.softmax_cross_entropy_forward(Z[:, :0], labels)
    with pytest.raises(DTypeError, match="labels must be integers, got float64"):
        softmax.softmax_cross_entropy_forward(Z, labels.astype("float64"))
    with pytest.raises(DTypeError, match="labels must be integers, got bool"):
        softmax.softmax_cross_entropy_forward(Z, labels.astype(bool))
