"""The C convolutions on shapes that leave remainders everywhere, for any number of threads."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from gpulayers.ops import Window, conv, use_engine
from gpulayers.ops.compiled import conv as compiled_conv
from gpulayers.threads import use_threads
from tests.ops.conftest import eighths
from tests.support.compare import assert_same_bits
from tests.support.naive import conv as naive

pytestmark = pytest.mark.compiled

# name: X, out_ch, kernel, stride, (top, bottom, left, right), spacing
CASES: dict[str, tuple[Any, ...]] = {
    "lenet": ((3, 14, 13, 6), 16, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "one-channel": ((2, 12, 13, 1), 6, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    "one-in-one-out": ((1, 9, 11, 1), 1, (2, 2), (1, 1), (1, 0, 0, 1), (1, 1)),
    "three-in-five-out": ((4, 7, 5, 3), 5, (3, 2), (1, 1), (0, 1, 2, 0), (1, 1)),
    "seventeen-channels": ((5, 6, 7, 17), 17, (2, 3), (1, 1), (1, 2, 0, 3), (1, 1)),
    "panels-and-a-rest": ((2, 5, 4, 31), 41, (1, 3), (1, 1), (0, 0, 1, 1), (1, 1)),
    "narrow-rest": ((2, 4, 9, 7), 19, (3, 1), (1, 1), (2, 0, 0, 0), (1, 1)),
    "stride-2": ((3, 9, 8, 5), 7, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "stride-3-1": ((2, 11, 6, 4), 9, (4, 2), (3, 1), (0, 2, 1, 0), (1, 1)),
    "stride-1-4": ((2, 5, 15, 3), 8, (2, 3), (1, 4), (1, 1, 3, 2), (1, 1)),
    "stride-beyond-kernel": ((2, 10, 9, 6), 3, (2, 1), (4, 3), (0, 0, 0, 0), (1, 1)),
    "stride-beyond-image": ((2, 3, 2, 2), 4, (2, 2), (5, 7), (0, 0, 1, 0), (1, 1)),
    "dilated": ((2, 9, 12, 5), 6, (3, 2), (1, 1), (2, 1, 0, 3), (2, 3)),
    "dilated-and-strided": ((2, 13, 12, 4), 5, (3, 3), (2, 3), (1, 3, 2, 0), (3, 2)),
    "dilation-is-stride": ((1, 12, 12, 3), 6, (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    "pad-beyond-kernel": ((2, 2, 3, 4), 5, (2, 2), (1, 1), (4, 3, 5, 2), (1, 1)),
    "pad-beyond-image-strided": ((1, 1, 2, 3), 2, (3, 3), (2, 2), (5, 4, 3, 6), (1, 1)),
    "pixel": ((7, 1, 1, 9), 10, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pixel-with-padding": ((3, 1, 1, 2), 3, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "pointwise": ((2, 7, 5, 33), 18, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-images": ((37, 3, 5, 7), 41, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-bands": ((1, 61, 45, 31), 17, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-empty": ((0, 5, 6, 3), 4, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-strided": ((3, 7, 9, 5), 11, (1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
    "whole-image": ((2, 6, 5, 3), 20, (6, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "bands": ((1, 40, 50, 33), 4, (4, 3), (1, 1), (1, 2, 1, 1), (1, 1)),
    "bands-strided": ((2, 61, 45, 24), 3, (3, 5), (3, 2), (2, 1, 2, 2), (1, 1)),
    "many-small-images": ((37, 3, 3, 2), 3, (2, 2), (1, 1), (0, 1, 1, 0), (1, 1)),
    "empty": ((0, 5, 6, 3), 4, (2, 2), (1, 1), (0, 1, 1, 0), (1, 1)),
}
cases = pytest.mark.parametrize("name", CASES)


class Gold:
    """Arguments and results of a case; multiples of 1/8, so exact in float32 too."""

    def __init__(self, name: str) -> None:
        self.x_shape, out_ch, kernel, stride, pad, spacing = CASES[name]
        self.window = Window(kernel, stride, pad, spacing)
        rest = (stride, pad, spacing)
        self.X = eighths(self.x_shape, 1, spread=8)
        self.W = eighths((*kernel, self.x_shape[3], out_ch), 2, spread=8)
        self.b = eighths((out_ch,), 3)
        if self.x_shape[0]:
            self.Z = naive.conv2d(self.X, self.W, self.b, *rest)
            self.dZ = eighths(self.Z.shape, 4, spread=8)
            self.dX = naive.conv2d_input_grad(self.dZ, self.W, self.x_shape, *rest)
            self.dW = naive.conv2d_weight_grad(self.X, self.dZ, kernel, *rest)
        else:
            out = self.window.output_size(*self.x_shape[1:3])
            self.Z = self.dZ = np.zeros((0, *out, out_ch))
            self.dX, self.dW = np.zeros(self.x_shape), np.zeros(self.W.shape)


_gold: dict[str, Gold] = {}


def gold_of(name: str) -> Gold:
    if name not in _gold:
        _gold[name] = Gold(name)
    return _gold[name]


@cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_remainders(name: str, dtype: str, threads: int) -> None:
    gold = gold_of(name)
    X, W, b, dZ = (a.astype(dtype) for a in (gold.X, gold.W, gold.b, gold.dZ))
    with use_engine("compiled"), use_threads(threads):
        assert_same_bits(conv.conv2d_forward(X, W, b, gold.window), gold.Z.astype(dtype))
        dX = conv.conv2d_input_grad(dZ, W, gold.x_shape, gold.window)
        assert_same_bits(dX, gold.dX.astype(dtype))
        assert_same_bits(conv.conv2d_weight_grad(X, dZ, gold.window), gold.dW.astype(dtype))
        db = conv.bias_grad(dZ)
        assert_same_bits(db, gold.dZ.sum(axis=(0, 1, 2)).astype(dtype))
        all_at_once = conv.conv2d_grads(X, dZ, W, gold.window)
        for one, wanted in zip(all_at_once, (gold.dX, gold.dW, db), strict=True):
            assert_same_bits(one, wanted.astype(dtype))


@cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_into_given_arrays(name: str, dtype: str) -> None:
    gold = gold_of(name)
    X, W, b, dZ = (a.astype(dtype) for a in (gold.X, gold.W, gold.b, gold.dZ))

    def guarded(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """An array between two others that must not change."""
        size = int(np.prod(shape))
        whole = np.full(size + 64, 99, dtype)
        return whole, whole[32 : 32 + size].reshape(shape)

    for relu in (False, True):
        whole, Z = guarded(gold.Z.shape)
        compiled_conv.conv2d_forward_into(X, W, b, gold.window, Z, relu)
        assert_same_bits(Z, (np.maximum(gold.Z, 0) if relu else gold.Z).astype(dtype))
        assert (whole[:32] == 99).all() and (whole[-32:] == 99).all()
    whole, dX = guarded(gold.x_shape)
    compiled_conv.conv2d_input_grad_into(dZ, W, gold.window, dX)
    assert_same_bits(dX, gold.dX.astype(dtype))
    assert (whole[:32] == 99).all() and (whole[-32:] == 99).all()
    for pointwise in {False, gold.window.is_pointwise}:
        whole, dW = guarded(gold.W.shape)
        around, db = guarded((1, gold.b.size))
        beside, dX = guarded(gold.x_shape)
        if pointwise:
            compiled_conv.pointwise_grads_into(X, dZ, W, gold.window, dX, dW, db)
            assert_same_bits(dX, gold.dX.astype(dtype))
        else:
            compiled_conv.conv2d_weight_grad_into(X, dZ, gold.window, dW, db)
        assert_same_bits(dW, gold.dW.astype(dtype))
        assert_same_bits(db[0], gold.dZ.sum(axis=(0, 1, 2)).astype(dtype))
        for array in (whole, around, beside):
            assert (array[:32] == 99).all() and (array[-32:] == 99).all()


@pytest.mark.parametrize("cols", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 31, 33, 70])
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_of_columns(cols: int, threads: int) -> None:
    for rows in (0, 1, 5, 8, 255, 256, 257, 600, 40_000 // cols):
        for dtype in ("float32", "float64"):
            dZ = eighths((rows, cols), 7)
            with use_engine("compiled"), use_threads(threads):
                db = conv.bias_grad(dZ.astype(dtype))
            assert_same_bits(db, dZ.sum(axis=0).astype(dtype))


# ------------------------------------------------------------------------------- bad numbers


def poisoned(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, shape).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        X[rng.random(shape) < 0.01] = value
    return X


@pytest.mark.parametrize(
    "name", ["lenet", "three-in-five-out", "stride-2", "dilated", "pad-beyond-kernel", "pointwise"]
)
def test_nan_and_infinity_as_in_numpy(name: str) -> None:
    gold = gold_of(name)
    X, dZ = poisoned(gold.x_shape, 1), poisoned(gold.Z.shape, 2)
    W, b = gold.W.astype(np.float32), gold.b.astype(np.float32)
    results = []
    for engine in ("reference", "numpy", "compiled"):
        with use_engine(engine), np.errstate(invalid="ignore"):
            results.append(
                (
                    conv.conv2d_forward(X, W, b, gold.window),
                    conv.conv2d_input_grad(dZ, W, gold.x_shape, gold.window),
                    conv.conv2d_weight_grad(X, dZ, gold.window),
                )
            )
    assert np.isnan(results[0][0]).any() and np.isfinite(results[0][0]).any()
    for other in results[1:]:
        for expected, actual in zip(results[0], other, strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", ["lenet", "one-channel", "seventeen-channels", "stride-2"])
def test_infinite_weights_as_in_numpy(name: str) -> None:
    gold = gold_of(name)
    W, dZ = gold.W.astype(np.float32), gold.dZ.astype(np.float32)
    W[0, -1, 0, 0] = np.inf
    results = []
    for engine in ("numpy", "compiled"):
        with use_engine(engine), np.errstate(invalid="ignore"):
            results.append(conv.conv2d_input_grad(dZ, W, gold.x_shape, gold.window))
    assert_same_bits(*results)


def test_relu_keeps_nan() -> None:
    X, W = np.full((1, 3, 3, 1), np.nan, np.float32), np.ones((1, 2, 1, 5), np.float32)
    Z = np.zeros((1, 3, 2, 5), np.float32)
    compiled_conv.conv2d_forward_into(X, W, None, Window((1, 2)), Z, relu=True)
    assert np.isnan(Z).all()


# ------------------------------------------------------------------------------------ memory


def test_read_only_mapped_swapped_and_unaligned(tmp_path: Any) -> None:
    gold = gold_of("three-in-five-out")
    path = tmp_path / "X"
    path.write_bytes(b"xyz" + gold.X.astype(np.float32).tobytes())
    mapped = np.memmap(path, np.float32, "r", offset=3, shape=gold.x_shape)
    assert mmap.ACCESS_READ and not mapped.flags.aligned and not mapped.flags.writeable
    W, b = gold.W.astype(">f4"), gold.b.astype(np.float32)
    with use_engine("compiled"):
        Z = conv.conv2d_forward(np.asarray(mapped), W, b, gold.window)
        assert_same_bits(Z, gold.Z.astype(np.float32))
        dW = conv.conv2d_weight_grad(mapped, gold.dZ.astype(">f4"), gold.window)
        assert_same_bits(dW, gold.dW.astype(np.float32))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_again(threads: int) -> None:
    rng = np.random.default_rng(3)
    X, W, dZ = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((9, 20, 21, 16), (3, 3, 16, 24), (9, 20, 21, 24))
    )
    window = Window((3, 3), pad=(1, 1, 1, 1))
    with use_engine("compiled"), use_threads(threads):
        for function, *args in (
            (conv.conv2d_forward, X, W, None, window),
            (conv.conv2d_input_grad, dZ, W, X.shape, window),
            (conv.conv2d_weight_grad, X, dZ, window),
            (conv.bias_grad, dZ),
        ):
            assert_same_bits(function(*args), function(*args))
