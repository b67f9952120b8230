"""Half precision adds up in a wider type: float16 stalls at 2048 ones, bfloat16 at 256."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops import Window, conv, normalization, pool, softmax
from tests.ops.conftest import Engine, eighths
from tests.support.compare import assert_close, host
from tests.support.naive import conv as conv_gold
from tests.support.naive import normalization as naive

MANY = 3000


@pytest.fixture(params=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest) -> Any:
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(np.float16)


def test_bias_grad(engine: Engine, half: Any) -> None:
    db = conv.bias_grad(engine.array(np.ones((MANY, 3)), half))
    assert db.dtype == half
    assert_close(db, np.full(3, MANY))


def test_bias_grad_whose_partial_sums_are_no_float16(engine: Engine) -> None:
    dZ = np.full((160, 2), 1000.0)
    dZ[80:] = -999.0  # 80,000 on the way, beyond float16's 65,504
    assert_close(conv.bias_grad(engine.array(dZ, "float16")), [80.0, 80.0])


def test_softmax_of_many_equal_classes(engine: Engine, half: Any) -> None:
    Z = engine.array(np.zeros((2, MANY)), half)
    Y = softmax.softmax_forward(Z)
    assert Y.dtype == half
    assert_close(Y * MANY, np.ones((2, MANY)))
    losses, probs = softmax.softmax_cross_entropy_forward(Z, engine.array([0, MANY - 1]))
    assert (losses.dtype, probs.dtype) == (half, half)
    assert_close(losses, np.full(2, np.log(MANY)))
    assert_close(probs * MANY, np.ones((2, MANY)))


def test_softmax_backward_of_many_classes(engine: Engine, half: Any) -> None:
    Y, dY = np.full((1, 512), 1 / 512), np.full((1, 512), 8.0)
    dZ = softmax.softmax_backward(engine.array(dY, half), engine.array(Y, half))
    assert dZ.dtype == half
    np.testing.assert_array_equal(host(dZ), np.zeros((1, 512)))


def test_batchnorm_over_many_rows(engine: Engine, half: Any) -> None:
    X = 1.0 + eighths((MANY, 2), 1)
    scaler, intercept = np.array([1.0, 2.0]), np.array([0.5, 0.0])
    forward = normalization.batchnorm_forward(
        *(engine.array(a, half) for a in (X, scaler, intercept)), 1e-5
    )
    for actual, gold in zip(forward, naive.batchnorm(X, scaler, intercept, 1e-5), strict=True):
        assert actual.dtype == half
        assert_close(actual, gold)
    dY = np.ones((MANY, 2))
    dY[:, 1] = eighths((MANY,), 2)
    backward = normalization.batchnorm_backward(
        engine.array(dY, half), forward[1], engine.array(scaler, half), forward[4]
    )
    gold_dX, gold_dscaler, gold_dintercept = naive.batchnorm_grads(X, dY, scaler, 1e-5)
    assert {a.dtype for a in backward} == {half}
    assert_close(backward[0], gold_dX)
    assert_close(backward[2], gold_dintercept)
    # the rounding of X_hat itself, summed over 3000 rows
    np.testing.assert_allclose(host(backward[1]), gold_dscaler, atol=6.0)


def test_average_of_a_large_window(engine: Engine, half: Any) -> None:
    window = Window((60, 50))
    Y = pool.avg_pool2d_forward(engine.array(np.ones((1, 60, 50, 2)), half), window)
    assert Y.dtype == half
    assert_close(Y, np.ones((1, 1, 1, 2)))


def test_pixels_under_many_windows(engine: Engine, half: Any) -> None:
    """The middle pixels of the image lie under all 18 x 18 positions of the kernel."""
    window, x_shape = Window((18, 18)), (1, 35, 35, 1)
    out = np.ones((1, 18, 18, 1))
    dX = pool.avg_pool2d_backward(engine.array(out * 324, half), x_shape, window)
    assert_close(dX[0, 17, 17], [324.0])
    columns = engine.array(np.ones((324, 324)), half)
    X = conv.col2im(columns, x_shape, window)
    dZ, W = engine.array(out, half), engine.array(np.ones((18, 18, 1, 1)), half)
    for image in (dX, X, conv.conv2d_input_grad(dZ, W, x_shape, window)):
        assert image.dtype == half
        assert_close(image[0, 17, 17], [324.0])
    argmax = engine.array(17 * 18 + 17 - np.add.outer(18 * np.arange(18), np.arange(18)), "int32")
    dX = pool.max_pool2d_backward(dZ, argmax.reshape(dZ.shape), x_shape, window)
    assert_close(dX[0, 17, 17], [324.0])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2)])
@pytest.mark.parametrize("channels", [2, 40])
def test_the_products_keep_the_dtype(
    engine: Engine, half: Any, kernel: tuple[int, int], channels: int
) -> None:
    window, x_shape = Window(kernel), (2, 4, 5, channels)
    X, W, b = (
        eighths(s, 3, spread=8) for s in (x_shape, (*kernel, channels, channels), (channels,))
    )
    arrays = [engine.array(a, half) for a in (X, W, b)]
    Z = conv.conv2d_forward(*arrays, window)
    dX = conv.conv2d_input_grad(Z, arrays[1], x_shape, window)
    dW = conv.conv2d_weight_grad(arrays[0], Z, window)
    assert {a.dtype for a in (Z, dX, dW)} == {half}
    assert_close(Z, conv_gold.conv2d(X, W, b, (1, 1), (0, 0, 0, 0)))
    rounded = host(Z)
    assert_close(dX, conv_gold.conv2d_input_grad(rounded, W, x_shape, (1, 1), (0, 0, 0, 0)))
    assert_close(dW, conv_gold.conv2d_weight_grad(X, rounded, kernel, (1, 1), (0, 0, 0, 0)))
