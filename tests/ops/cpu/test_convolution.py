"""Convolution in pure NumPy: Winograd's algorithm, bands, blocks, and numbers that are not finite.

Against float64 formulas of NumPy, and the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from gpulayers.ops import Window
from gpulayers.ops.cpu import Cpu, _columns, _spaced, _winograd, _winograd2d, _winograd_layer
from gpulayers.ops.reference import Reference
from gpulayers.threads import use_threads
from tests.ops.cpu.conftest import normal
from tests.support.compare import assert_close, assert_same_bits

CPU, REFERENCE = Cpu(), Reference()
WINOGRAD_BOUND, DIRECT_BOUND = 4e-6, 1e-6  # of the largest output, float32
WINOGRAD_2D_BOUND = 2e-5


def gold_forward(X: np.ndarray, W: np.ndarray, window: Window) -> np.ndarray:
    top, bottom, left, right = window.pad
    padded = np.pad(X.astype(float), ((0, 0), (top, bottom), (left, right), (0, 0)))
    (sr, sc), (dr, dc), (span_r, span_c) = window.stride, window.dilation, window.span
    seen = sliding_window_view(padded, (span_r, span_c), (1, 2))[:, ::sr, ::sc, :, ::dr, ::dc]
    return np.einsum("nrckij,ijko->nrco", seen, W.astype(float), optimize=True)


def gold_gradients(
    X: np.ndarray, W: np.ndarray, dZ: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray]:
    """dX and dW, tap by tap."""
    top, bottom, left, right = window.pad
    padded = np.pad(X.astype(float), ((0, 0), (top, bottom), (left, right), (0, 0)))
    dpadded, dW = np.zeros_like(padded), np.zeros(W.shape)
    (sr, sc), (dr, dc) = window.stride, window.dilation
    rows, cols = dZ.shape[1:3]
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            at = (
                slice(None),
                slice(i * dr, i * dr + sr * (rows - 1) + 1, sr),
                slice(j * dc, j * dc + sc * (cols - 1) + 1, sc),
            )
            dpadded[at] += dZ.astype(float) @ W[i, j].T.astype(float)
            dW[i, j] = np.einsum("nrck,nrco->ko", padded[at], dZ.astype(float))
    height, width = X.shape[1:3]
    return dpadded[:, top : top + height, left : left + width], dW


def error(actual: np.ndarray, gold: np.ndarray) -> float:
    assert actual.shape == gold.shape
    return float(np.abs(actual - gold).max() / np.abs(gold).max())


# n, rows, cols, ch, out_ch, pad: outputs of 4 to 11 rows, some columns, odd channels
TILES = [
    (1, 4, 4, 24, 24, (1, 1, 1, 1)),
    (5, 8, 8, 32, 64, (1, 1, 1, 1)),
    (3, 9, 7, 25, 33, (1, 1, 1, 1)),
    (7, 10, 5, 64, 27, (2, 1, 0, 2)),
    (4, 13, 14, 32, 48, (0, 0, 0, 0)),
    (9, 11, 6, 40, 24, (2, 2, 2, 2)),
    (2, 3, 6, 24, 31, (2, 1, 1, 0)),
    (2, 7, 4, 130, 24, (3, 4, 3, 5)),
    (2, 5, 6, 24, 25, (6, 7, 0, 1)),  # tiles that see no pixel
]


def refuse(*args: Any) -> None:
    raise AssertionError("computed the direct way")


@pytest.fixture(params=["1d", "2d"])
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """One of Winograd's algorithms, worth while or not; how far off its results may be."""
    monkeypatch.setattr(_winograd, "_GAIN", 99)
    monkeypatch.setattr(_winograd2d, "_FEWEST", 1 if request.param == "2d" else 10**6)
    monkeypatch.setattr(_winograd2d, "_WASTE", 99)
    return WINOGRAD_BOUND if request.param == "1d" else WINOGRAD_2D_BOUND


@pytest.mark.parametrize("case", TILES, ids=str)
@pytest.mark.parametrize("cut", [False, True])
def test_winograd(
    case: Any,
    cut: bool,
    count: int,
    bound: float,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, rows, cols, ch, out_ch, pad = case
    if cut:
        request.getfixturevalue("small_blocks")
    if rows > 3:  # else dX has too few rows
        # memory that was to be written, and was not, may look like an infinity
        monkeypatch.setattr(_columns, "forward", refuse)
        monkeypatch.setattr(_columns, "param_grads", refuse)
    window = Window((3, 3), pad=pad)
    X, W, b = normal((n, rows, cols, ch), 1), normal((3, 3, ch, out_ch), 2), normal((out_ch,), 3)
    assert _winograd.serves(X, out_ch, window)
    assert _winograd2d.serves(X, out_ch, window) == (bound == WINOGRAD_2D_BOUND)
    gold = gold_forward(X, W, window)
    dZ = normal(gold.shape, 4)
    dX, dW = gold_gradients(X, W, dZ, window)
    assert error(CPU.conv2d_forward(X, W, None, window), gold) < bound
    assert error(CPU.conv2d_forward(X, W, b, window), gold + b) < bound
    rectified = CPU.conv2d_relu_forward(X, W, b, window)
    assert error(rectified, np.maximum(gold + b, 0)) < bound
    assert error(CPU.conv2d_weight_grad(X, dZ, window), dW) < bound
    assert error(CPU.conv2d_input_grad(dZ, W, X.shape, window), dX) < bound
    fused_dW, db = CPU.conv2d_param_grads(X, dZ, window)
    assert error(fused_dW, dW) < bound
    gold_db = dZ.sum(axis=(0, 1, 2), dtype=float)
    assert error(db, gold_db) < DIRECT_BOUND * 4
    three = CPU.conv2d_grads(X, dZ, W, window)
    for actual, wanted, most in zip(three, (dX, dW, gold_db), (bound, bound, 4e-6), strict=True):
        assert error(actual, wanted) < most


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (3, 2)},
        {"stride": (1, 2)},
        {"dilation": (2, 1)},
        {"ch": 15},
        {"out_ch": 15},
        {"dtype": "float64"},
        {"dtype": "float16"},
        {"rows": 1},
        {"rows": 5},
        {"n": 0},
    ],
    ids=str,
)
def test_where_winograd_does_not_serve(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"n": 2, "rows": 8, "ch": 64, "out_ch": 64, "dtype": "float32"}
    shape = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1)}

    def serves(**changed: Any) -> bool:
        now = {**given, **shape, **changed}
        window = Window(now["kernel"], now["stride"], (1, 1, 1, 1), now["dilation"])
        X = np.zeros((now["n"], now["rows"], 8, now["ch"]), now["dtype"])
        return _winograd.serves(X, now["out_ch"], window)

    assert serves()
    assert not serves(**change)


def test_many_channels_on_whole_tiles_go_through_both_directions() -> None:
    window = Window((3, 3), pad=(1, 1, 1, 1))
    many = np.zeros((1, 8, 8, 128), np.float32)
    assert _winograd2d.serves(many, 128, window)
    assert not _winograd2d.serves(many, 127, window)
    assert not _winograd2d.serves(many[..., :127], 128, window)
    assert not _winograd2d.serves(many[:, :5, :5], 128, window)  # 64 outputs for 25
    assert not _winograd2d.serves(many.astype(float), 128, window)
    assert not _winograd2d.serves(many, 128, Window((3, 3), (2, 2), (1, 1, 1, 1)))


# n, rows, cols, spacing, pad
SPACED = [
    (3, 12, 10, (2, 2), (2, 2, 2, 2)),
    (2, 12, 15, (2, 3), (0, 2, 3, 6)),
    (1, 8, 20, (1, 4), (1, 1, 4, 4)),
]


@pytest.mark.parametrize("case", SPACED, ids=str)
def test_spacing_between_the_taps(case: Any, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    n, rows, cols, spacing, pad = case
    window = Window((3, 3), pad=pad, dilation=spacing)
    X, W, b = normal((n, rows, cols, 24), 1), normal((3, 3, 24, 31), 2), normal((31,), 3)
    gold = gold_forward(X, W, window)
    dZ = normal(gold.shape, 4)
    dX, dW = gold_gradients(X, W, dZ, window)
    for spoiled in (False, True):  # then the columns of the parts, and of the whole
        if spoiled:
            monkeypatch.setattr(_winograd_layer, "all_finite", lambda array: False)
        rectified = CPU.conv2d_relu_forward(X, W, b, window)
        assert error(rectified, np.maximum(gold + b, 0)) < bound
        assert error(CPU.conv2d_input_grad(dZ, W, X.shape, window), dX) < bound
        assert error(CPU.conv2d_param_grads(X, dZ, window)[0], dW) < bound
        three = CPU.conv2d_grads(X, dZ, W, window)
        for actual, wanted in zip(three, (dX, dW, dZ.sum(axis=(0, 1, 2))), strict=True):
            assert error(actual, wanted) < bound


@pytest.mark.parametrize(
    ("size", "pad", "parts"),
    [((8, 12), (2, 2, 2, 2), True), ((9, 12), (2, 2, 2, 2), False), ((8, 12), (2, 1, 2, 2), False)],
)
def test_spacing_is_taken_apart_where_the_parts_are_alike(
    size: tuple[int, int], pad: Any, parts: bool
) -> None:
    dense = _spaced.dense_window(Window((3, 3), pad=pad, dilation=(2, 2)), size)
    assert dense == (Window((3, 3), pad=(1, 1, 1, 1)) if parts else None)
    assert _spaced.dense_window(Window((3, 3), (2, 2), pad, (2, 2)), size) is None
    images = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    assert_same_bits(_spaced.apart(images, (2, 3))[4], images[0, 1::2, 1::3])
    assert_same_bits(_spaced.together(_spaced.apart(images, (2, 3)), (2, 3)), images)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("where", ["X", "W", "dZ"])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_not_finite_stays_where_it_belongs(
    value: float, where: str, threads: int, bound: float
) -> None:
    window = Window((3, 3), pad=(1, 1, 1, 1))
    arrays = {"X": normal((6, 9, 9, 24), 1), "W": normal((3, 3, 24, 24), 2)}
    arrays["dZ"] = normal((6, 9, 9, 24), 3)
    spoiled = arrays[where].copy()
    spoiled.flat[spoiled.size // 2] = value
    arrays[where] = spoiled
    X, W, dZ = arrays["X"], arrays["W"], arrays["dZ"]
    with use_threads(threads), np.errstate(invalid="ignore", over="ignore"):
        pairs = [
            (CPU.conv2d_forward(X, W, None, window), REFERENCE.conv2d_forward(X, W, None, window)),
            (
                CPU.conv2d_input_grad(dZ, W, X.shape, window),
                REFERENCE.conv2d_input_grad(dZ, W, X.shape, window),
            ),
            (CPU.conv2d_weight_grad(X, dZ, window), REFERENCE.conv2d_weight_grad(X, dZ, window)),
            (CPU.conv2d_param_grads(X, dZ, window)[0], REFERENCE.conv2d_weight_grad(X, dZ, window)),
            *zip(
                CPU.conv2d_grads(X, dZ, W, window),
                REFERENCE.conv2d_grads(X, dZ, W, window),
                strict=True,
            ),
        ]
    for actual, expected in pairs:
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        np.testing.assert_array_equal(actual == np.inf, expected == np.inf)
        np.testing.assert_array_equal(actual == -np.inf, expected == -np.inf)
        near = np.isfinite(expected)
        largest = np.abs(expected[near]).max(initial=1.0)
        assert np.abs(actual[near] - expected[near]).max(initial=0.0) < 2 * bound * largest


@pytest.mark.parametrize("row", [0, 9])
def test_what_is_not_finite_at_the_rim_of_images_without_padding(row: int, bound: float) -> None:
    X, W = normal((2, 10, 10, 24), 1).copy(), normal((3, 3, 24, 24), 2)
    X[1, row, 4, 3] = np.inf
    with np.errstate(invalid="ignore"):
        actual = CPU.conv2d_forward(X, W, None, Window((3, 3)))
        expected = REFERENCE.conv2d_forward(X, W, None, Window((3, 3)))
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    assert 0 < np.count_nonzero(~np.isfinite(expected)) <= 3 * 24


COLUMNS = {
    "band": ((11, 12, 14, 1), (5, 5), 6, Window((5, 5), pad=(2, 2, 2, 2))),
    "band of 2": ((5, 9, 9, 3), (3, 3), 5, Window((3, 3), pad=(1, 0, 2, 1))),
    "strided band": ((7, 12, 13, 2), (3, 3), 4, Window((3, 3), (2, 2), (1, 1, 1, 1))),
    "pairs": ((5, 7, 8, 3), (3, 3), 33, Window((3, 3), pad=(1, 1, 1, 1))),
    "pairs, no fours": ((3, 5, 6, 2), (3, 3), 32, Window((3, 3), pad=(1, 1, 1, 1))),
    "no pairs": ((3, 5, 7, 2), (3, 3), 32, Window((3, 3), pad=(1, 1, 1, 1))),
    "five by five": ((9, 14, 14, 6), (5, 5), 16, Window((5, 5))),
    "stride": ((5, 9, 11, 17), (3, 3), 19, Window((3, 3), (2, 2), (1, 1, 1, 1))),
    "dilation": ((5, 9, 10, 17), (3, 3), 9, Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))),
    "dilated rows": ((3, 9, 10, 3), (3, 2), 9, Window((3, 2), (1, 3), (0, 2, 0, 2), (3, 1))),
    "pointwise, strided": ((3, 5, 6, 7), (1, 1), 3, Window((1, 1), (2, 3))),
    "pointwise": ((3, 5, 6, 7), (1, 1), 3, Window((1, 1))),
    "pointwise, more channels": ((2, 3, 5, 33), (1, 1), 17, Window((1, 1))),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_columns(name: str, dtype: str, count: int, small_blocks: None) -> None:
    shape, kernel, out_ch, window = COLUMNS[name]
    X, W = normal(shape, 1, dtype), normal((*kernel, shape[3], out_ch), 2, dtype)
    b = normal((out_ch,), 3, dtype)
    gold = gold_forward(X, W, window)
    dZ = normal(gold.shape, 4, dtype)
    dX, dW = gold_gradients(X, W, dZ, window)
    bound = DIRECT_BOUND if dtype == "float32" else 1e-14
    assert error(CPU.conv2d_forward(X, W, b, window), gold + b) < bound
    assert error(CPU.conv2d_relu_forward(X, W, b, window), np.maximum(gold + b, 0)) < bound
    assert error(CPU.conv2d_weight_grad(X, dZ, window), dW) < bound
    assert error(CPU.conv2d_input_grad(dZ, W, X.shape, window), dX) < bound
    db = dZ.sum(axis=(0, 1, 2), dtype=float)
    assert error(CPU.bias_grad(dZ), db) < bound
    found = [*CPU.conv2d_param_grads(X, dZ, window), *CPU.conv2d_grads(X, dZ, W, window)]
    for actual, expected in zip(found, (dW, db, dX, dW, db), strict=True):
        assert error(actual, expected) < bound
    columns = CPU.im2col(X, window)
    assert_same_bits(columns, REFERENCE.im2col(X, window))
    assert_close(CPU.col2im(columns, X.shape, window), REFERENCE.col2im(columns, X.shape, window))


def test_the_same_bits_every_time(count: int) -> None:
    window = Window((3, 3), pad=(1, 1, 1, 1))
    X, W, rows = normal((16, 16, 16, 32), 1), normal((3, 3, 32, 32), 2), normal((70000, 8), 3)

    def everything() -> list[np.ndarray]:
        ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
        Z = CPU.conv2d_forward(X, W, None, window)
        return [
            Z,
            CPU.conv2d_weight_grad(X, Z, window),
            CPU.conv2d_input_grad(Z, W, X.shape, window),
            *CPU.batchnorm_forward(rows, ones, zeros, 1e-5),
            CPU.softmax_forward(rows),
            *CPU.max_pool2d_forward(X, Window((2, 2), (2, 2))),
        ]

    first = everything()
    for _ in range(3):
        for actual, expected in zip(everything(), first, strict=True):
            assert_same_bits(actual, expected)
