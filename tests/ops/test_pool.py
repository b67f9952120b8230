"""Pooling against loops: ties, NaN, minus infinity, padding, overlapping windows."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import ShapeError
from gpulayers.ops import Window, pool
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, scrambled
from tests.support.naive import pool as naive

# name: (x_shape, kernel, stride, pad)
CASES = {
    "2x2": ((2, 6, 4, 3), (2, 2), (2, 2), (0, 0, 0, 0)),
    "overlapping": ((2, 5, 5, 2), (3, 3), (1, 1), (0, 0, 0, 0)),
    "padded-overlapping": ((2, 5, 5, 2), (3, 3), (1, 1), (1, 1, 1, 1)),
    "k2-s2-p1": ((1, 4, 4, 1), (2, 2), (2, 2), (1, 1, 1, 1)),
    "k2-s3-p1": ((1, 7, 7, 1), (2, 2), (3, 3), (1, 1, 1, 1)),
    "rows-overlap": ((2, 7, 6, 2), (3, 2), (2, 2), (0, 0, 0, 0)),
    "cols-overlap": ((2, 6, 7, 2), (2, 3), (2, 2), (0, 0, 0, 0)),
    "asymmetric": ((3, 4, 7, 2), (2, 3), (1, 2), (1, 0, 2, 1)),
    "stride-beyond-kernel": ((2, 7, 8, 1), (2, 2), (3, 3), (0, 0, 0, 0)),
    "last-pixels-unseen": ((1, 5, 6, 3), (2, 2), (2, 4), (0, 0, 0, 0)),
    "global": ((2, 5, 3, 4), (5, 3), (1, 1), (0, 0, 0, 0)),
    "one-pixel": ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    "255-taps": ((1, 15, 18, 1), (15, 17), (1, 1), (0, 0, 0, 0)),
    "256-taps": ((1, 17, 16, 2), (16, 16), (1, 1), (0, 0, 0, 0)),
    "257-taps": ((1, 2, 258, 1), (1, 257), (1, 1), (0, 0, 0, 0)),
}
cases = pytest.mark.parametrize("name", CASES)


def image(name: str, kind: str) -> np.ndarray:
    x_shape = CASES[name][0]
    if kind == "ties":  # three values only, so that nearly every window has equal maxima
        return np.random.default_rng(7).integers(-1, 2, x_shape).astype(float)
    X = eighths(x_shape, 8)
    if kind == "negative":
        return -np.abs(X) - 1.0
    if kind == "increasing":  # the winner is each window's last tap
        return np.arange(X.size, dtype=float).reshape(x_shape) / 4.0
    if kind == "minus-infinity":
        return np.where(X > -1.0, -np.inf, X)
    if kind == "all-minus-infinity":
        return np.full(x_shape, -np.inf)
    if kind == "nan":
        return np.where(np.random.default_rng(9).random(x_shape) < 0.2, np.nan, X)
    raise ValueError(kind)


KINDS = ["ties", "negative", "increasing", "minus-infinity", "all-minus-infinity", "nan"]


@cases
@pytest.mark.parametrize("kind", KINDS)
def test_max_forward_and_backward(engine: Engine, name: str, kind: str, dtype: str) -> None:
    x_shape, kernel, stride, pad = CASES[name]
    window, X = Window(kernel, stride, pad), image(name, kind)
    if kind == "increasing" and dtype == "float16" and X.max() > 500:
        pytest.skip("quarters beyond 512 are no float16 numbers")
    Y, argmax = engine.call(pool.max_pool2d_forward, engine.array(X, dtype), window)
    gold_Y, gold_argmax = naive.max_pool2d(X, kernel, stride, pad)
    assert_same_bits(Y, gold_Y.astype(dtype))
    assert_same_bits(argmax, gold_argmax.astype("uint8" if window.taps <= 256 else "int32"))

    dY = eighths(Y.shape, 10)
    dX = engine.call(pool.max_pool2d_backward, engine.array(dY, dtype), argmax, x_shape, window)
    assert dX.dtype == dtype
    assert_close(dX, naive.max_pool2d_grad(X, dY, kernel, stride, pad))


@cases
def test_average_forward_and_backward(engine: Engine, name: str, dtype: str) -> None:
    x_shape, kernel, stride, pad = CASES[name]
    window, X = Window(kernel, stride, pad), eighths(x_shape, 11)
    Y = engine.call(pool.avg_pool2d_forward, engine.array(X, dtype), window)
    assert Y.dtype == dtype
    assert_close(Y, naive.avg_pool2d(X, kernel, stride, pad))

    dY = eighths(Y.shape, 12)
    dX = engine.call(pool.avg_pool2d_backward, engine.array(dY, dtype), x_shape, window)
    assert dX.dtype == dtype
    assert_close(dX, naive.avg_pool2d_grad(dY, x_shape, kernel, stride, pad))


def test_average_of_windows_wholly_in_the_padding_is_zero(engine: Engine) -> None:
    window = Window((2, 2), (1, 1), (3, 0, 0, 3))
    X = eighths((1, 3, 3, 2), 13)
    Y = pool.avg_pool2d_forward(engine.array(X), window)
    assert_close(Y, naive.avg_pool2d(X, (2, 2), (1, 1), (3, 0, 0, 3)))


def test_maximum_of_windows_wholly_in_the_padding_is_refused(engine: Engine) -> None:
    with pytest.raises(ShapeError, match="some window sees only padding"):
        pool.max_pool2d_forward(
            engine.array(np.ones((1, 3, 3, 1))), Window((2, 2), pad=(2, 0, 0, 0))
        )


def test_a_window_bigger_than_half_the_image_with_much_padding(engine: Engine) -> None:
    # every window touches a real pixel although the padding is as wide as the kernel minus one
    kernel, stride, pad = (4, 4), (1, 1), (3, 3, 3, 3)
    X = image("2x2", "ties")
    Y, argmax = pool.max_pool2d_forward(engine.array(X), Window(kernel, stride, pad))
    gold_Y, gold_argmax = naive.max_pool2d(X, kernel, stride, pad)
    assert_same_bits(Y, gold_Y)
    assert_same_bits(argmax, gold_argmax.astype("uint8"))


def test_dilated_maximum(engine: Engine) -> None:
    X = np.arange(25.0).reshape(1, 5, 5, 1)
    Y, argmax = pool.max_pool2d_forward(engine.array(X), Window((2, 2), dilation=(2, 3)))
    assert_same_bits(Y, X[:, 2:, 3:])
    assert_same_bits(argmax, np.full((1, 3, 2, 1), 3, np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    x_shape, kernel, stride, pad = CASES["asymmetric"]
    window = Window(kernel, stride, pad)
    X = engine.array(image("asymmetric", "ties"))
    Y, argmax = pool.max_pool2d_forward(X, window)
    y, a = engine.call(pool.max_pool2d_forward, scrambled(X, layout), window)
    assert_same_bits(y, Y)
    assert_same_bits(a, argmax)
    assert_same_bits(
        pool.avg_pool2d_forward(scrambled(X, layout), window), pool.avg_pool2d_forward(X, window)
    )
    dY = engine.array(eighths(Y.shape, 14))
    assert_same_bits(
        pool.max_pool2d_backward(scrambled(dY, layout), scrambled(a, layout), x_shape, window),
        pool.max_pool2d_backward(dY, argmax, x_shape, window),
    )
    assert_same_bits(
        pool.avg_pool2d_backward(scrambled(dY, layout), x_shape, window),
        pool.avg_pool2d_backward(dY, x_shape, window),
    )


def test_an_empty_batch(engine: Engine, dtype: str) -> None:
    window, shape = Window((2, 2), (2, 2)), (0, 4, 4, 3)
    X = engine.array(np.zeros(shape), dtype)
    Y, argmax = pool.max_pool2d_forward(X, window)
    assert (Y.shape, argmax.shape, Y.dtype) == ((0, 2, 2, 3), (0, 2, 2, 3), dtype)
    assert pool.max_pool2d_backward(Y, argmax, shape, window).shape == shape
    assert pool.avg_pool2d_forward(X, window).shape == (0, 2, 2, 3)
    assert pool.avg_pool2d_backward(Y, shape, window).shape == shape
