"""Operations in one pass against the plain ones of the reference, in the backend's own dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops import kernels_for
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

REFERENCE = Reference()
DTYPES = [np.float32, np.float64]


def numbers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Normal numbers with some zeros: ReLU has its kink there."""
    values = np.random.default_rng(seed).standard_normal(shape)
    values[np.abs(values) < 0.1] = 0.0
    return values.astype(dtype)


def assert_close(backend: Any, ours: Any, theirs: Any, dtype: Any) -> None:
    theirs = np.asarray(theirs)
    assert ours.dtype == dtype and ours.shape == theirs.shape
    # Winograd's bound for float32, see gpulayers.ops.cpu
    tolerance = 3e-5 if dtype == np.float32 else 1e-11
    largest = max(1.0, float(np.abs(theirs).max(initial=0.0, where=np.isfinite(theirs))))
    np.testing.assert_allclose(backend.asnumpy(ours), theirs, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, k, n", [(1, 1, 1), (7, 5, 3), (64, 400, 120), (0, 3, 4), (65, 257, 33)]
)
@pytest.mark.parametrize("relu", [False, True])
def test_dense(backend: Any, dtype: Any, m: int, k: int, n: int, relu: bool) -> None:
    X, W, b = (numbers(s, dtype, i) for i, s in enumerate([(m, k), (k, n), (n,)]))
    x, w, c = (backend.asarray(a.copy()) for a in (X, W, b))
    Y = kernels_for(x).dense_forward(x, w, c, relu)
    assert_close(backend, Y, REFERENCE.dense_forward(X, W, b, relu), dtype)
    for given, kept in ((x, X), (w, W), (c, b)):
        np.testing.assert_array_equal(backend.asnumpy(given), kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_with_what_is_no_number(backend: Any, dtype: Any) -> None:
    X, W, b = numbers((40, 64), dtype), numbers((64, 64), dtype), numbers((64,), dtype)
    X[3, 5], X[7, 2], b[9] = np.nan, np.inf, -np.inf
    x, w, c = (backend.asarray(a) for a in (X, W, b))
    with np.errstate(invalid="ignore"):
        Y = backend.asnumpy(kernels_for(x).dense_forward(x, w, c, True))
        expected = REFERENCE.dense_forward(X, W, b, True)
    np.testing.assert_array_equal(np.isnan(Y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(Y), np.isinf(expected))


CONVOLUTIONS = [
    ((2, 9, 7, 3), 5, Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
    ((3, 12, 12, 1), 6, Window((5, 5), (1, 1), (2, 2, 2, 2), (1, 1))),
    ((1, 8, 8, 16), 32, Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
    ((2, 9, 11, 33), 17, Window((3, 3), (2, 1), (0, 1, 2, 0), (1, 2))),
    ((2, 5, 4, 7), 9, Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))),
    ((0, 6, 6, 2), 3, Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("x_shape, out_ch, window", CONVOLUTIONS)
def test_convolution_and_relu(
    backend: Any, dtype: Any, with_bias: bool, x_shape: Any, out_ch: int, window: Window
) -> None:
    X = numbers(x_shape, dtype)
    W = numbers((*window.kernel, x_shape[3], out_ch), dtype, 1)
    b = numbers((out_ch,), dtype, 2) if with_bias else None
    x, w = backend.asarray(X.copy()), backend.asarray(W)
    c = None if b is None else backend.asarray(b)
    Y = kernels_for(x).conv2d_relu_forward(x, w, c, window)
    expected = REFERENCE.conv2d_relu_forward(X, W, b, window)
    assert_close(backend, Y, expected, dtype)
    np.testing.assert_array_equal(backend.asnumpy(x), X)

    dZ = numbers(expected.shape, dtype, 3)
    dW, db = kernels_for(x).conv2d_param_grads(x, backend.asarray(dZ), window)
    right_W, right_b = REFERENCE.conv2d_param_grads(X, dZ, window)
    assert_close(backend, dW, right_W, dtype)
    assert_close(backend, db.reshape(-1), right_b.reshape(-1), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 9, 9, 6), (0, 4), (130_001,)])
def test_relus_gradient_is_told_by_its_output(backend: Any, dtype: Any, shape: Any) -> None:
    dY, Z = numbers(shape, dtype), numbers(shape, dtype, 1)
    if Z.size > 1:
        Z.flat[0], dY.flat[1] = np.nan, np.inf
    Y = np.maximum(Z, 0)
    y = backend.asarray(Y)
    with np.errstate(invalid="ignore"):
        dZ = kernels_for(y).relu_backward(backend.asarray(dY), y)
        expected = dY * (Z > 0)
        np.testing.assert_array_equal(REFERENCE.relu_backward(dY, Y), expected)
    np.testing.assert_array_equal(backend.asnumpy(dZ), expected)
    assert dZ.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "x_shape, window",
    [
        ((2, 8, 8, 6), Window((2, 2), (2, 2), (0, 0, 0, 0), (1, 1))),
        ((2, 9, 7, 16), Window((2, 2), (2, 2), (0, 0, 0, 0), (1, 1))),
        ((1, 7, 8, 5), Window((3, 3), (2, 2), (1, 0, 0, 1), (1, 1))),
        ((2, 6, 6, 33), Window((3, 2), (1, 1), (0, 0, 0, 0), (1, 1))),
        ((0, 4, 4, 3), Window((2, 2), (2, 2), (0, 0, 0, 0), (1, 1))),
    ],
)
def test_pooling_and_relu_backward(backend: Any, dtype: Any, x_shape: Any, window: Window) -> None:
    Z = numbers(x_shape, dtype)
    A = np.maximum(Z, 0)
    P, argmax = REFERENCE.max_pool2d_forward(A, window)
    dP = numbers(P.shape, dtype, 1)
    # one after the other: through the pooling, then through ReLU at each pixel
    expected = REFERENCE.max_pool2d_backward(dP, argmax, x_shape, window) * (Z > 0)
    p = backend.asarray(P)
    dZ = kernels_for(p).max_pool2d_relu_backward(
        backend.asarray(dP), backend.asarray(argmax), p, x_shape, window
    )
    assert_close(backend, dZ, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, classes", [(1, 1), (64, 10), (5, 1000), (0, 3), (33, 17)])
def test_cross_entropy_with_its_gradient(backend: Any, dtype: Any, m: int, classes: int) -> None:
    logits = (numbers((m, classes), dtype) * 30).astype(dtype)
    labels = np.random.default_rng(1).integers(0, classes, m)
    z = backend.asarray(logits)
    losses, dZ = kernels_for(z).softmax_cross_entropy_both(z, backend.asarray(labels), 0.25)
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True) if m else wide
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    onehot = np.eye(classes)[labels]
    expected = np.log(np.exp(shifted).sum(axis=1)) - (shifted * onehot).sum(axis=1)
    assert_close(backend, losses, expected.astype(dtype), dtype)
    assert_close(backend, dZ, ((p - onehot) * 0.25).astype(dtype), dtype)
