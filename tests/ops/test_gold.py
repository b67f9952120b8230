"""The gold values themselves: against central differences, and against PyTorch where installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.ops.conftest import eighths
from tests.support.naive import activation, conv, dense, normalization, pool, recurrent, softmax

GEOMETRIES = [
    ((1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 1), (1, 0, 2, 1), (1, 2)),
    ((1, 3), (0, 2, 1, 1), (2, 1)),
]


def slope(function: Callable[[np.ndarray], np.ndarray], at, dY) -> np.ndarray:
    """d sum(function(x) * dY) / dx, one central difference a number."""
    at = np.array(at, dtype=np.float64)
    result, h = np.zeros(at.shape), 1e-5
    for index in np.ndindex(at.shape):
        kept = at[index]
        at[index] = kept + h
        above = np.sum(function(at) * dY)
        at[index] = kept - h
        below = np.sum(function(at) * dY)
        at[index] = kept
        result[index] = (above - below) / (2 * h)
    return result


def close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("stride, pad, spacing", GEOMETRIES)
def test_conv2d_gradients(stride, pad, spacing) -> None:
    X, W = eighths((2, 4, 5, 2), 1), eighths((2, 2, 2, 3), 2)
    dZ = eighths(conv.conv2d(X, W, None, stride, pad, spacing).shape, 3)
    close(
        conv.conv2d_input_grad(dZ, W, X.shape, stride, pad, spacing),
        slope(lambda x: conv.conv2d(x, W, None, stride, pad, spacing), X, dZ),
    )
    close(
        conv.conv2d_weight_grad(X, dZ, (2, 2), stride, pad, spacing),
        slope(lambda w: conv.conv2d(X, w, None, stride, pad, spacing), W, dZ),
    )


@pytest.mark.parametrize("stride, pad, spacing", GEOMETRIES)
def test_conv2d_is_im2col_times_weights(stride, pad, spacing) -> None:
    X, W = eighths((2, 4, 5, 2), 4), eighths((2, 2, 2, 3), 5)
    columns = conv.im2col(X, (2, 2), stride, pad, spacing)
    Z = conv.conv2d(X, W, None, stride, pad, spacing)
    close(columns @ W.reshape(-1, 3), Z.reshape(-1, 3))
    dcolumns = eighths(columns.shape, 6)
    close(
        conv.col2im(dcolumns, X.shape, (2, 2), stride, pad, spacing),
        slope(lambda x: conv.im2col(x, (2, 2), stride, pad, spacing), X, dcolumns),
    )


def test_conv1d_gradients() -> None:
    X, W = eighths((2, 6, 2), 7), eighths((3, 2, 2), 8)
    geometry = (2, (1, 2), 2)
    dZ = eighths(conv.conv1d(X, W, None, *geometry).shape, 9)
    dX, dW, db = conv.conv1d_grads(X, W, dZ, *geometry)
    close(dX, slope(lambda x: conv.conv1d(x, W, None, *geometry), X, dZ))
    close(dW, slope(lambda w: conv.conv1d(X, w, None, *geometry), W, dZ))
    close(db, slope(lambda b: conv.conv1d(X, W, b, *geometry), np.zeros(2), dZ))


def test_deconv2d_gradients() -> None:
    X, W = eighths((2, 3, 2, 2), 10), eighths((3, 2, 2, 3), 11)
    geometry = ((2, 1), (1, 0, 0, 1))
    dZ = eighths(conv.deconv2d(X, W, None, *geometry).shape, 12)
    dX, dW, db = conv.deconv2d_grads(X, W, dZ, *geometry)
    close(dX, slope(lambda x: conv.deconv2d(x, W, None, *geometry), X, dZ))
    close(dW, slope(lambda w: conv.deconv2d(X, w, None, *geometry), W, dZ))
    close(db, slope(lambda b: conv.deconv2d(X, W, b, *geometry), np.zeros(3), dZ))


def test_pooling_gradients() -> None:
    X = np.random.default_rng(13).permutation(2 * 5 * 4 * 2).reshape(2, 5, 4, 2) / 4.0  # no ties
    geometry = ((3, 2), (2, 1), (1, 1, 0, 1))
    dY = eighths(pool.avg_pool2d(X, *geometry).shape, 14)
    close(
        pool.max_pool2d_grad(X, dY, *geometry),
        slope(lambda x: pool.max_pool2d(x, *geometry)[0], X, dY),
    )
    close(
        pool.avg_pool2d_grad(dY, X.shape, *geometry),
        slope(lambda x: pool.avg_pool2d(x, *geometry), X, dY),
    )


def test_dense_softmax_batchnorm_gradients() -> None:
    X, W, dZ = eighths((3, 4), 15), eighths((4, 2), 16), eighths((3, 2), 17)
    dX, dW, db = dense.dense_grads(X, W, dZ)
    close(dX, slope(lambda x: dense.dense(x, W, None), X, dZ))
    close(dW, slope(lambda w: dense.dense(X, w, None), W, dZ))
    close(db, slope(lambda b: dense.dense(X, W, b), np.zeros(2), dZ))

    dY = eighths((3, 4), 18)
    close(softmax.softmax_grad(dY, softmax.softmax(X)), slope(softmax.softmax, X, dY))
    labels = [2, 0, 3]
    close(
        softmax.cross_entropy_grad(softmax.softmax(X), labels, 1.0),
        slope(lambda x: softmax.cross_entropy(x, labels)[0], X, np.ones(3)),
    )

    scaler, shift = eighths((4,), 19), eighths((4,), 20)
    dX, dscaler, dshift = normalization.batchnorm_grads(X, dY, scaler, 1e-3)
    close(dX, slope(lambda x: normalization.batchnorm(x, scaler, shift, 1e-3)[0], X, dY))
    close(dscaler, slope(lambda s: normalization.batchnorm(X, s, shift, 1e-3)[0], scaler, dY))
    close(dshift, slope(lambda s: normalization.batchnorm(X, scaler, s, 1e-3)[0], shift, dY))


@pytest.mark.parametrize("act", ["tanh", "softplus"])
def test_backpropagation_through_time(act: str) -> None:
    X, Wax, Waa = eighths((2, 3, 4), 21), eighths((3, 2), 22, 4), eighths((2, 2), 23, 4)
    ba, bx, dA = eighths((2,), 24, 4), eighths((2,), 25, 4), eighths((2, 2, 4), 26)
    gradients = recurrent.rnn_grads(X, Wax, Waa, ba, bx, act, dA)
    arguments = [X, Wax, Waa, ba, bx]
    for k, gradient in enumerate(gradients):

        def output(value, k=k):
            changed = [*arguments[:k], value, *arguments[k + 1 :]]
            return recurrent.rnn(*changed, act)[0]

        close(gradient, slope(output, arguments[k], dA))


@pytest.mark.parametrize("name", activation.ACTIVATIONS)
def test_activation_derivatives(name: str) -> None:
    Z = np.array([-4.0, -2.0, -0.7, -0.1, 0.05, 0.4, 1.3, 3.1])
    dY = eighths(Z.shape, 27)
    close(activation.backward(name, dY, Z), slope(lambda z: activation.value(name, z), Z, dY))


def test_padding_gold() -> None:
    # 3 taps, 5 pixels, stride 2: 2 * 4 + 3 - 5 = 6 in all; even kernels put the odd one last
    assert conv.same_pad(5, 3, 2, 1) == (3, 3)
    assert conv.same_pad(5, 2, 1, 1) == (0, 1)
    assert conv.same_pad(4, 4, 1, 2) == (3, 3)
    assert conv.positions(5, 3, 2, 0, 0, 1) == 2
    assert conv.positions(2, 3, 1, 0, 0, 1) == 0


# ------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("stride, pad, spacing", GEOMETRIES)
def test_conv2d_against_torch(stride, pad, spacing) -> None:
    torch = pytest.importorskip("torch")
    X, W, b = eighths((2, 4, 5, 2), 28), eighths((2, 2, 2, 3), 29), eighths((3,), 30)
    top, bottom, left, right = pad
    padded = torch.nn.functional.pad(
        torch.tensor(X).permute(0, 3, 1, 2), (left, right, top, bottom)
    )
    Z = torch.nn.functional.conv2d(
        padded, torch.tensor(W).permute(3, 2, 0, 1), torch.tensor(b), stride, 0, spacing
    )
    close(conv.conv2d(X, W, b, stride, pad, spacing), Z.permute(0, 2, 3, 1).numpy())


def test_deconv2d_against_torch() -> None:
    torch = pytest.importorskip("torch")
    X, W, b = eighths((2, 3, 4, 2), 31), eighths((3, 2, 2, 3), 32), eighths((3,), 33)
    Z = torch.nn.functional.conv_transpose2d(
        torch.tensor(X).permute(0, 3, 1, 2),
        torch.tensor(W).permute(2, 3, 0, 1),
        torch.tensor(b),
        (2, 3),
    )
    full = Z.permute(0, 2, 3, 1).numpy()
    close(conv.deconv2d(X, W, b, (2, 3), (0, 0, 0, 0)), full)
    close(conv.deconv2d(X, W, b, (2, 3), (1, 0, 2, 1)), full[:, 1:, 2:-1])


def test_pooling_against_torch() -> None:
    torch = pytest.importorskip("torch")
    X = eighths((2, 5, 6, 3), 34)
    images = torch.tensor(X).permute(0, 3, 1, 2)
    Y = torch.nn.functional.max_pool2d(images, (3, 2), (2, 1), (1, 1))
    geometry = ((3, 2), (2, 1), (1, 1, 1, 1))
    close(pool.max_pool2d(X, *geometry)[0], Y.permute(0, 2, 3, 1).numpy())
    Y = torch.nn.functional.avg_pool2d(images, (3, 2), (2, 1), (1, 1))
    close(pool.avg_pool2d(X, *geometry), Y.permute(0, 2, 3, 1).numpy())
