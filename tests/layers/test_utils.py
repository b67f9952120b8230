"""`gpulayers.utils`: numpy-ml's layouts and return values, against loops and PyTorch."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from gpulayers import random, utils
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from tests.support.compare import LAYOUTS, assert_close, scrambled

rng = np.random.default_rng(7)

# (rows, cols), (fr, fc), pad, stride, dilation
WINDOWS: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "valid": ((5, 6), (2, 3), 0, 1, 0),
    "stride": ((7, 6), (2, 3), 0, 2, 0),
    "dilated": ((7, 8), (2, 3), 1, 1, 2),
    "uneven pad": ((5, 4), (3, 2), (2, 0, 1, 3), 2, 1),
    "pair pad": ((4, 5), (3, 3), (1, 2), 1, 0),
    "list pad": ((4, 5), (3, 3), [np.int64(1), 0, 0, 2], 1, 0),
    "numpy int": ((4, 5), (3, 3), np.int32(2), np.int64(2), np.int8(0)),
    "same": ((5, 4), (2, 3), "same", 1, 0),
    "same, stride": ((5, 4), (3, 2), "same", 2, 1),
    "one pixel": ((1, 1), (1, 1), 0, 1, 0),
    "whole image": ((3, 4), (3, 4), 0, 1, 0),
}
windows = pytest.mark.parametrize("case", WINDOWS)


def pads_of(case: str) -> tuple[int, int, int, int]:
    """The resolved padding, worked out here from the rules."""
    size, kernel, pad, stride, dilation = WINDOWS[case]
    if isinstance(pad, str):
        pads = []
        for n, f in zip(size, kernel, strict=True):
            total = stride * (n - 1) + (f - 1) * (dilation + 1) + 1 - n
            pads += [total // 2, total - total // 2]
        return tuple(pads)  # pyright: ignore[reportReturnType]
    if isinstance(pad, (int, np.integer)):
        return (int(pad),) * 4
    if len(pad) == 2:
        return pad[0], pad[0], pad[1], pad[1]
    return tuple(int(p) for p in pad)  # pyright: ignore[reportReturnType]


def gold_conv(X: np.ndarray, W: np.ndarray, case: str) -> np.ndarray:
    _, _, _, stride, dilation = WINDOWS[case]
    top, bottom, left, right = pads_of(case)
    n_ex, rows, cols, in_ch = X.shape
    fr, fc, _, out_ch = W.shape
    out_rows = (rows + top + bottom - (fr - 1) * (dilation + 1) - 1) // stride + 1
    out_cols = (cols + left + right - (fc - 1) * (dilation + 1) - 1) // stride + 1
    Z = np.zeros((n_ex, out_rows, out_cols, out_ch))
    for index in np.ndindex(*Z.shape, fr, fc, in_ch):
        n, r, c, o, i, j, k = index
        row = r * stride + i * (dilation + 1) - top
        col = c * stride + j * (dilation + 1) - left
        if 0 <= row < rows and 0 <= col < cols:
            Z[n, r, c, o] += X[n, row, col, k] * W[i, j, k, o]
    return Z


def arrays(case: str, n_ex: int = 2, in_ch: int = 2, out_ch: int = 3):
    size, kernel, pad, stride, dilation = WINDOWS[case]
    X = rng.normal(size=(n_ex, *size, in_ch))
    W = rng.normal(size=(*kernel, in_ch, out_ch))
    return X, W, pad, stride, dilation


# ---- im2col, col2im


@windows
@pytest.mark.parametrize("n_ex", [3, 1])
def test_im2col_has_numpy_mls_layout(case, n_ex, backend):
    X, W, pad, stride, dilation = arrays(case, n_ex)
    columns, pads = utils.im2col(backend.asarray(X), W.shape, pad, stride, dilation)
    top, bottom, left, right = pads_of(case)
    assert pads == (top, bottom, left, right)
    padded = np.zeros((n_ex, X.shape[1] + top + bottom, X.shape[2] + left + right, 2))
    padded[:, top : top + X.shape[1], left : left + X.shape[2]] = X

    out_rows, out_cols = gold_conv(X, W, case).shape[1:3]
    fr, fc, in_ch, _ = W.shape
    assert columns.shape == (fr * fc * in_ch, out_rows * out_cols * n_ex)
    columns = backend.asnumpy(columns)
    for k, i, j, r, c, m in np.ndindex(in_ch, fr, fc, out_rows, out_cols, n_ex):
        seen = padded[m, r * stride + i * (dilation + 1), c * stride + j * (dilation + 1), k]
        assert columns[(k * fr + i) * fc + j, (r * out_cols + c) * n_ex + m] == seen


@windows
def test_col2im_is_the_adjoint_and_channels_first(case, backend):
    X, W, pad, stride, dilation = arrays(case)
    columns, pads = utils.im2col(backend.asarray(X), W.shape, pad, stride, dilation)
    C = rng.normal(size=columns.shape)
    back = utils.col2im(backend.asarray(C), X.shape, W.shape, pads, stride, dilation)
    assert back.shape == (X.shape[0], X.shape[3], X.shape[1], X.shape[2])
    inner = np.sum(backend.asnumpy(columns) * C)
    np.testing.assert_allclose(np.sum(backend.asnumpy(back).transpose(0, 2, 3, 1) * X), inner)

    # one entry alone lands on the pixel it was read from
    for row, col in ((0, 0), (C.shape[0] - 1, C.shape[1] - 1)):
        one = np.zeros_like(C)
        one[row, col] = 1.0
        landed = utils.col2im(backend.asarray(one), X.shape, W.shape, pads, stride, dilation)
        landed = backend.asnumpy(landed)
        expected = backend.asnumpy(columns)[row, col]
        assert np.sum(landed.transpose(0, 2, 3, 1) * X) == expected


def test_col2im_takes_every_kind_of_pad(numpy_backend):
    C = rng.normal(size=(2 * 9, 4 * 4 * 3))
    results = [
        utils.col2im(C, (3, 4, 4, 2), (3, 3, 2, 5), pad, 1)
        for pad in ((1, 1, 1, 1), 1, (1, 1), [1, 1, 1, 1], "same")
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


# ---- convolutions


@windows
def test_conv2D_and_its_naive_twin(case, backend):
    X, W, pad, stride, dilation = arrays(case)
    gold = gold_conv(X, W, case)
    x, w = backend.asarray(X), backend.asarray(W)
    assert_close(utils.conv2D(x, w, stride, pad, dilation), gold)
    assert_close(utils.conv2D_naive(x, w, stride, pad, dilation), gold)
    assert utils.calc_conv_out_dims(X.shape, W.shape, stride, pad, dilation) == gold.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2D_in_other_memory_layouts(layout, backend):
    X, W, pad, stride, dilation = arrays("uneven pad")
    x = scrambled(backend.asarray(X), layout)
    w = scrambled(backend.asarray(W), layout)
    gold = gold_conv(X, W, "uneven pad")
    assert_close(utils.conv2D(x, w, stride, pad, dilation), gold)
    assert_close(utils.conv2D_naive(x, w, stride, pad, dilation), gold)
    np.testing.assert_array_equal(backend.asnumpy(x), X)
    np.testing.assert_array_equal(backend.asnumpy(w), W)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_conv2D_keeps_the_dtype(dtype, backend):
    X, W, pad, stride, dilation = arrays("stride")
    x, w = backend.asarray(X.astype(dtype)), backend.asarray(W.astype(dtype))
    Z = utils.conv2D(x, w, stride, pad, dilation)
    assert Z.dtype == dtype
    assert_close(
        Z, gold_conv(X.astype(dtype).astype(float), W.astype(dtype).astype(float), "stride")
    )


@pytest.mark.parametrize(
    ("pad", "stride", "dilation", "pads"),
    [
        (0, 1, 0, (0, 0)),
        (1, 2, 1, (1, 1)),
        ((0, 3), 1, 0, (0, 3)),
        ([2, np.int64(1)], 2, 0, (2, 1)),
        ("same", 1, 1, (2, 2)),
        ("same", 2, 0, (4, 4)),
        ("causal", 1, 2, (6, 0)),
        ("causal", 2, 0, (8, 0)),
    ],
)
def test_conv1D_and_pad1D(pad, stride, dilation, pads, backend):
    X, W = rng.normal(size=(2, 7, 2)), rng.normal(size=(3, 2, 4))
    padded, used = utils.pad1D(backend.asarray(X), pad, 3, stride, dilation)
    assert used == pads
    P = np.pad(X, ((0, 0), pads, (0, 0)))
    np.testing.assert_array_equal(backend.asnumpy(padded), P)

    l_out = (P.shape[1] - 2 * (dilation + 1) - 1) // stride + 1
    gold = np.zeros((2, l_out, 4))
    for n, t, o, i, k in np.ndindex(2, l_out, 4, 3, 2):
        gold[n, t, o] += P[n, t * stride + i * (dilation + 1), k] * W[i, k, o]
    Z = utils.conv1D(backend.asarray(X), backend.asarray(W), stride, pad, dilation)
    assert_close(Z, gold)
    assert utils.calc_conv_out_dims(X.shape, W.shape, stride, pad, dilation) == gold.shape
    if isinstance(pad, str):
        assert l_out == 7  # for any stride


DECONVOLUTIONS = [
    # pad, stride, dilation
    (0, 1, 0),
    (1, 2, 0),
    ((1, 0), 3, 0),
    ((0, 2, 1, 0), 2, 0),  # uneven: numpy-ml shifts the image
    (4, 3, 0),  # beyond f - 1: numpy-ml refuses
    (1, 2, 1),
    ("same", 1, 0),
    ("same", 2, 0),
]


@pytest.mark.parametrize(("pad", "stride", "dilation"), DECONVOLUTIONS)
def test_deconv2D_naive_paints_the_kernel(pad, stride, dilation, backend):
    X, W = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(2, 3, 2, 3))
    full = np.zeros((2, 3 * stride + dilation + 2, 4 * stride + 2 * dilation + 3, 3))
    for n, r, c, i, j, k, o in np.ndindex(2, 4, 5, 2, 3, 2, 3):
        row, col = r * stride + i * (dilation + 1), c * stride + j * (dilation + 1)
        full[n, row, col, o] += X[n, r, c, k] * W[i, j, k, o]
    if pad == "same":  # what is added by the kernel is cut off again, the odd one below and right
        top, bottom, left, right = 0, 1, 1, 1
    elif isinstance(pad, int):
        top = bottom = left = right = pad
    else:
        top, bottom, left, right = pad if len(pad) == 4 else (pad[0], pad[0], pad[1], pad[1])
    gold = full[:, top : full.shape[1] - bottom, left : full.shape[2] - right]
    x, w = backend.asarray(X), backend.asarray(W)
    assert_close(utils.deconv2D_naive(x, w, stride, pad, dilation), gold)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize(
    ("pad", "stride", "dilation"), [(0, 1, 0), ((1, 2), 2, 1), (1, 3, 0), (3, 4, 0)]
)
def test_convolutions_equal_pytorch(pad, stride, dilation, numpy_backend):
    import torch
    import torch.nn.functional as nn

    X, W = rng.normal(size=(2, 6, 7, 2)), rng.normal(size=(2, 3, 2, 4))
    x = torch.tensor(np.ascontiguousarray(X.transpose(0, 3, 1, 2)))
    w = torch.tensor(np.ascontiguousarray(W.transpose(3, 2, 0, 1)))
    Z = nn.conv2d(x, w, None, stride, pad, dilation + 1).numpy().transpose(0, 2, 3, 1)
    assert_close(utils.conv2D(X, W, stride, pad, dilation), Z)
    wt = torch.tensor(np.ascontiguousarray(W.transpose(2, 3, 0, 1)))
    Z = nn.conv_transpose2d(x, wt, None, stride, pad, dilation=dilation + 1)
    ours = utils.deconv2D_naive(X, W, stride, pad, dilation)
    assert_close(ours, Z.numpy().transpose(0, 2, 3, 1))


# ---- padding


@windows
def test_pad2D(case, backend):
    X, W, pad, stride, dilation = arrays(case)
    x = backend.asarray(X)
    padded, pads = utils.pad2D(x, pad, W.shape[:2], stride, dilation)
    top, bottom, left, right = pads_of(case)
    assert pads == (top, bottom, left, right)
    expected = np.pad(X, ((0, 0), (top, bottom), (left, right), (0, 0)))
    np.testing.assert_array_equal(backend.asnumpy(padded), expected)
    if pad != "same":
        again, pads = utils.pad2D(x, pad)  # kernel and stride are for 'same' alone
        assert pads == (top, bottom, left, right)
        np.testing.assert_array_equal(backend.asnumpy(again), expected)


# ---- minibatches, initializers


@pytest.mark.parametrize(("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (6, 3, [3, 3]), (2, 9, [2])])
def test_minibatch_visits_every_example_once(n, size, sizes, backend):
    X = backend.asarray(rng.normal(size=(n, 3)))
    random.seed(3)
    batches, count = utils.minibatch(X, size)
    batches = list(batches)
    assert count == len(batches) == len(sizes)
    assert [X[b].shape for b in batches] == [(s, 3) for s in sizes]
    order = np.concatenate([backend.asnumpy(b) for b in batches])
    assert sorted(order) == list(range(n))

    random.seed(3)
    again = np.concatenate([backend.asnumpy(b) for b in utils.minibatch(X, size)[0]])
    np.testing.assert_array_equal(again, order)
    more = np.concatenate([backend.asnumpy(b) for b in utils.minibatch(X, size)[0]])
    assert n < 6 or not np.array_equal(more, order)

    straight, _ = utils.minibatch(X, size, shuffle=False)
    straight = np.concatenate([backend.asnumpy(b) for b in straight])
    np.testing.assert_array_equal(straight, range(n))


def test_minibatch_of_nothing(numpy_backend):
    batches, count = utils.minibatch(np.zeros((0, 3)))
    assert (list(batches), count) == ([], 0)


def test_numpy_mls_names_are_there():
    names = [
        "minibatch",
        "calc_pad_dims_2D",
        "calc_pad_dims_1D",
        "pad1D",
        "pad2D",
        "dilate",
        "calc_fan",
        "calc_conv_out_dims",
        "im2col",
        "col2im",
        "conv2D",
        "conv1D",
        "deconv2D_naive",
        "conv2D_naive",
        "he_uniform",
        "he_normal",
        "glorot_uniform",
        "glorot_normal",
        "truncated_normal",
    ]
    assert sorted(utils.__all__) == sorted(names)
    for name in names:
        assert callable(getattr(utils, name))
    assert utils.calc_fan((3, 2, 4, 5)) == (24, 30)


# ---- bad calls

X4, W4 = np.ones((2, 5, 5, 3)), np.ones((3, 3, 3, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: utils.conv2D(X4[0], W4, 1, 0), ShapeError, r"conv2D: X must be .*\(5, 5, 3\)"),
        (lambda: utils.conv2D(X4, W4[:, :, :2], 1, 0), ShapeError, r"conv2D: expected .*in_ch"),
        (lambda: utils.conv2D(X4, W4, 0, 0), ParameterError, "conv2D: stride .* >= 1, got 0"),
        (lambda: utils.conv2D(X4, W4, 1, -1), ParameterError, "conv2D: pad .* >= 0, got -1"),
        (lambda: utils.conv2D(X4, W4, 1, "valid"), ParameterError, "'same', got 'valid'"),
        (lambda: utils.conv2D(X4, W4, 1, 0, 4), ShapeError, "spans 11 x 11 .* 5 x 5"),
        (lambda: utils.conv2D(X4, W4.astype("float32"), 1, 0), DTypeError, "float32"),
        (lambda: utils.conv2D(X4.astype(int), W4, 1, 0), DTypeError, "int64"),
        (lambda: utils.conv2D_naive(X4, W4[0], 1, 0), ShapeError, "conv2D_naive: expected"),
        (lambda: utils.conv1D(X4, W4, 1, 0), ShapeError, "conv1D: X must be"),
        (lambda: utils.deconv2D_naive(X4, W4, 1, 4), ShapeError, "output of -1 x -1"),
        (lambda: utils.deconv2D_naive(X4, W4, 0, 0), ParameterError, "stride"),
        (lambda: utils.im2col(X4, (3, 3, 2, 1), 0, 1), ShapeError, "im2col: expected"),
        (lambda: utils.col2im(X4[0, 0], X4.shape, W4.shape, 0, 1), ShapeError, r"\(27, 18\)"),
        (lambda: utils.pad2D(X4, "same"), ParameterError, "needs kernel_shape and stride"),
        (lambda: utils.pad2D(X4, (1, 2, 3)), ParameterError, "pad2D: pad"),
        (lambda: utils.pad1D(X4[0], "causal"), ParameterError, "needs kernel_width and stride"),
        (lambda: utils.pad1D(X4, 1), ShapeError, "pad1D: X must be"),
        (lambda: utils.dilate(X4, -1), ParameterError, "dilate: d .* got -1"),
        (lambda: utils.dilate(X4, True), ParameterError, "dilate: d .* got True"),
        (lambda: utils.minibatch(X4, 0), ParameterError, "batchsize .* got 0"),
        (lambda: utils.minibatch([1, 2]), DTypeError, "minibatch: X: .* got list"),
        (lambda: utils.minibatch(X4, 2, "no"), ParameterError, "shuffle must be True or False"),
        (lambda: utils.conv2D([1], W4, 1, 0), DTypeError, "conv2D: X: .* got list"),
        (lambda: utils.conv2D(X4, None, 1, 0), DTypeError, "conv2D: W: expected .* got none"),
        (lambda: utils.conv1D(3, W4, 1, 0), DTypeError, "conv1D: X: .* got int"),
        (lambda: utils.conv2D_naive(X4, "a", 1, 0), DTypeError, "conv2D_naive: W"),
        (lambda: utils.deconv2D_naive([1], W4, 1, 0), DTypeError, "deconv2D_naive: X"),
        (lambda: utils.im2col([1], W4.shape, 0, 1), DTypeError, "im2col: X"),
        (lambda: utils.im2col(X4, None, 0, 1), ShapeError, "im2col: expected .* and None"),
        (lambda: utils.col2im([1], X4.shape, W4.shape, 0, 1), DTypeError, "col2im: X_col"),
        (lambda: utils.col2im(X4[0, 0], None, W4.shape, 0, 1), ShapeError, "col2im: X .* None"),
        (lambda: utils.pad2D([1], 1), DTypeError, "pad2D: X: .* got list"),
        (lambda: utils.pad2D(X4, 1, (3, 3), 0), ParameterError, "pad2D: stride .* got 0"),
        (lambda: utils.pad1D([1], 1), DTypeError, "pad1D: X: .* got list"),
        (lambda: utils.dilate([1], 1), DTypeError, "dilate: X: .* got list"),
        (lambda: utils.calc_pad_dims_2D(None, (5, 5), 3, 1), ShapeError, "X_shape .* got None"),
        (lambda: utils.calc_pad_dims_1D((1, "a", 2), 5, 3, 1), ShapeError, "X_shape .* 'a'"),
        (
            lambda: utils.calc_pad_dims_1D((1, 5, 2), 5, 3, 1, causal="no"),
            ParameterError,
            "calc_pad_dims_1D: causal",
        ),
        (lambda: utils.calc_conv_out_dims(None, None), ShapeError, "got None and None"),
        (lambda: utils.calc_pad_dims_2D(X4.shape, 5, (3, 3), 1), ParameterError, "out_dim"),
        (lambda: utils.calc_pad_dims_2D((5, 5, 3), (5, 5), (3, 3), 1), ShapeError, "X_shape"),
        (lambda: utils.calc_pad_dims_1D(X4.shape, 5, 3, 1), ShapeError, "X_shape"),
        (lambda: utils.calc_conv_out_dims(X4.shape, (3, 3, 2)), ShapeError, "calc_conv_out_dims"),
    ],
)
def test_bad_calls_say_what_was_expected(call, error, message, numpy_backend):
    with pytest.raises(error, match=message):
        call()


def test_mixed_libraries(emulated):
    with pytest.raises(BackendError):
        utils.conv2D(emulated.asarray(X4), W4, 1, 0)
    with pytest.raises(BackendError):
        utils.conv2D_naive(emulated.asarray(X4), W4, 1, 0)
