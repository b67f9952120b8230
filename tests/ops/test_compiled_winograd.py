"""Winograd's convolution in C: its error bound, the edges of images, what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops import Window, conv, use_engine
from gpulayers.ops.compiled import conv as compiled_conv
from gpulayers.threads import use_threads
from tests.support.compare import assert_same_bits

pytestmark = pytest.mark.compiled

BOUND = 2e-5  # of the largest result, against float64; as conv2d_forward_into states it

# X, out_ch, (top, bottom, left, right): tiles of 4 x 4 outputs that the image's edge cuts
SHAPES: list[Any] = [
    ((2, 32, 32, 32), 64, (1, 1, 1, 1)),
    ((1, 4, 4, 16), 16, (1, 1, 1, 1)),
    ((3, 7, 10, 8), 9, (1, 1, 1, 1)),
    ((3, 5, 7, 16), 17, (1, 1, 1, 1)),
    ((5, 6, 9, 19), 31, (0, 0, 0, 0)),
    ((2, 11, 8, 24), 16, (2, 2, 2, 2)),
    ((2, 9, 10, 33), 20, (0, 2, 3, 1)),
    ((1, 13, 6, 16), 40, (4, 0, 1, 5)),
    ((7, 8, 8, 130), 70, (1, 1, 1, 1)),
    ((1, 40, 3, 18), 18, (1, 1, 1, 1)),
    ((4, 8, 8, 512), 64, (1, 1, 1, 1)),  # many channels to add up
    ((64, 32, 32, 16), 16, (1, 1, 1, 1)),  # many tiles
    ((2, 16, 15, 16), 17, (2, 2, 2, 2), (2, 2)),  # every second pixel is an image of its own
    ((3, 17, 12, 9), 8, (1, 3, 2, 0), (3, 1)),
]
shapes = pytest.mark.parametrize(
    ("x_shape", "out_ch", "pad"), [(*s[:2], s[2:]) for s in SHAPES], ids=str
)


def arguments(x_shape: Any, out_ch: int, pad: Any, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    window = Window((3, 3), pad=pad[0], dilation=pad[1] if len(pad) > 1 else (1, 1))
    out = window.output_size(*x_shape[1:3])
    sizes = (x_shape, (3, 3, x_shape[3], out_ch), (out_ch,), (x_shape[0], *out, out_ch))
    return window, *(rng.standard_normal(size).astype(np.float32) for size in sizes)


def products(X: Any, W: Any, b: Any, dZ: Any, window: Window) -> list[Any]:
    return [
        conv.conv2d_forward(X, W, b, window),
        conv.conv2d_input_grad(dZ, W, X.shape, window),
        conv.conv2d_weight_grad(X, dZ, window),
    ]


def gold(*arrays: Any, window: Window) -> list[Any]:
    with use_engine("reference"):
        return products(*(a.astype(np.float64) for a in arrays), window)


def count_direct(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The direct kernels called from now on."""
    calls: list[str] = []
    for name in ("_forward", "_input_grad", "_weight_grad"):
        kernel = getattr(compiled_conv, name)

        def counted(*args: Any, _name: str = name, _kernel: Any = kernel) -> Any:
            calls.append(_name)
            return _kernel(*args)

        monkeypatch.setattr(compiled_conv, name, counted)
    return calls


@shapes
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_error_bound(
    x_shape: Any, out_ch: int, pad: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, *arrays = arguments(x_shape, out_ch, pad)
    expected = gold(*arrays, window=window)
    calls = count_direct(monkeypatch)
    with use_engine("compiled"), use_threads(threads):
        for actual, wanted in zip(products(*arrays, window), expected, strict=True):
            assert actual.dtype == np.float32
            assert np.abs(actual - wanted).max() <= BOUND * np.abs(wanted).max()
    assert calls == []  # it was Winograd's


@shapes
def test_into_given_arrays(x_shape: Any, out_ch: int, pad: Any) -> None:
    window, X, W, b, dZ = arguments(x_shape, out_ch, pad, seed=1)
    Z_gold, dX_gold, dW_gold = gold(X, W, b, dZ, window=window)

    def guarded(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        size = int(np.prod(shape))
        whole = np.full(size + 64, 99, np.float32)
        return whole, whole[32 : 32 + size].reshape(shape)

    arrays = [guarded(a.shape) for a in (Z_gold, dX_gold, dW_gold, b)]
    wholes, (Z, dX, dW, db) = zip(*arrays, strict=True)
    compiled_conv.conv2d_forward_into(X, W, b, window, Z, relu=True)
    compiled_conv.conv2d_input_grad_into(dZ, W, window, dX)
    compiled_conv.conv2d_weight_grad_into(X, dZ, window, dW, db)
    wanted = (np.maximum(Z_gold, 0), dX_gold, dW_gold, dZ.sum(axis=(0, 1, 2), dtype=np.float64))
    for actual, right in zip((Z, dX, dW, db), wanted, strict=True):
        assert np.abs(actual - right).max() <= BOUND * np.abs(right).max()
    for whole in wholes:
        assert (whole[:32] == 99).all() and (whole[-32:] == 99).all()


@shapes
def test_float64_is_direct_and_sharp(x_shape: Any, out_ch: int, pad: Any) -> None:
    window, *arrays = arguments(x_shape, out_ch, pad)
    arrays = [a.astype(np.float64) for a in arrays]
    with use_engine("compiled"):
        for actual, wanted in zip(
            products(*arrays, window), gold(*arrays, window=window), strict=True
        ):
            assert np.abs(actual - wanted).max() <= 1e-13 * np.abs(wanted).max()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 5, 6, 15), (1, 8, 10, 3), (0, 3, 4, 7)])
def test_nan_and_infinity_reach_only_the_outputs_that_see_them(
    value: float, place: tuple[int, int, int, int]
) -> None:
    window = Window((3, 3), pad=(1, 1, 1, 1))
    rng = np.random.default_rng(2)
    X, W, dZ = (
        rng.integers(-3, 4, s).astype(np.float32)
        for s in ((2, 9, 11, 16), (3, 3, 16, 20), (2, 9, 11, 20))
    )
    b = np.ones(20, np.float32)
    X[place] = dZ[place] = value
    results = []
    for engine in ("reference", "numpy", "compiled"):
        with use_engine(engine), np.errstate(invalid="ignore"):
            results.append(products(X, W, b, dZ, window))
    assert 0 < (~np.isfinite(results[0][0])).sum() <= 9 * 20
    for other in results[1:]:
        for expected, actual in zip(results[0], other, strict=True):
            assert_same_bits(actual, expected)


def test_nan_in_the_last_row_of_a_tile() -> None:
    """Only the tile's last outputs see it, and no other tile does."""
    X, W = np.ones((1, 6, 6, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    X[0, 5, 3, 0] = np.nan
    with use_engine("compiled"):
        Z = conv.conv2d_forward(X, W, None, Window((3, 3)))
    gold = np.full((1, 4, 4, 16), 144, np.float32)
    gold[0, 3, 1:] = np.nan
    assert_same_bits(Z, gold)


@pytest.mark.parametrize("weight", [np.inf, np.nan])
def test_weights_that_are_not_finite(weight: float) -> None:
    window, X, W, b, dZ = arguments((2, 9, 10, 16), 18, ((1, 1, 1, 1),))
    W[1, 2, 3, 4] = weight
    results = []
    for engine in ("numpy", "compiled"):
        with use_engine(engine), np.errstate(invalid="ignore"):
            results.append(products(X, W, b, dZ, window))
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))


def test_what_overflows_only_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transforms of numbers near the largest overflow; the results do not."""
    window, X, W, b, _ = arguments((1, 8, 8, 16), 16, ((1, 1, 1, 1),))
    X = np.where(X > 0, 8e37, -8e37).astype(np.float32)
    W *= 1e-3
    calls = count_direct(monkeypatch)
    with use_engine("compiled"):
        Z = conv.conv2d_forward(X, W, b, window)
    assert calls == ["_forward"] and np.isfinite(Z).all()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_again(threads: int) -> None:
    window, *arrays = arguments((9, 20, 21, 16), 24, ((1, 1, 1, 1),))
    with use_engine("compiled"), use_threads(threads):
        for first, again in zip(products(*arrays, window), products(*arrays, window), strict=True):
            assert_same_bits(first, again)


def test_arguments_stay_as_they_are() -> None:
    window, *arrays = arguments((2, 9, 10, 16), 18, ((1, 1, 1, 1),))
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    with use_engine("compiled"):
        products(*arrays, window)
    for a, copy in zip(arrays, copies, strict=True):
        assert_same_bits(a, copy)
