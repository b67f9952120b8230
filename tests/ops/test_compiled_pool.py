"""The C pooling kernels give the reference's bits on shapes that are awkward for vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.ops import Window, pool, use_engine
from gpulayers.ops.compiled import pool as compiled_pool
from gpulayers.threads import use_threads
from tests.support.compare import assert_same_bits

pytestmark = pytest.mark.compiled

CHANNELS = [1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 31, 40]
# name: (rows, cols, window)
WINDOWS = {
    "2x2": (6, 8, Window((2, 2), (2, 2))),
    "2x2-odd-image": (7, 9, Window((2, 2), (2, 2))),
    "2x2-one-output": (2, 3, Window((2, 2), (2, 2))),
    "2x2-one-sided-padding": (5, 5, Window((2, 2), (2, 2), (0, 1, 0, 1))),
    "2x2-padding": (4, 4, Window((2, 2), (2, 2), (1, 1, 1, 1))),
    "2x2-overlapping": (5, 6, Window((2, 2), (1, 1))),
    "2x2-gaps": (8, 7, Window((2, 2), (3, 3))),
    "2x2-dilated": (6, 7, Window((2, 2), (2, 2), (0, 0, 0, 0), (2, 3))),
    "3x3-stride-2": (9, 7, Window((3, 3), (2, 2), (1, 1, 1, 1))),
    "3x3-stride-2-unpadded": (8, 10, Window((3, 3), (2, 2))),
    "3x3-stride-2-one-sided": (6, 9, Window((3, 3), (2, 2), (0, 2, 2, 0))),
    "3x3-stride-3": (10, 11, Window((3, 3), (3, 3))),
    "3x3-dilated": (9, 9, Window((3, 3), (1, 2), (2, 1, 0, 2), (2, 2))),
    "4x1": (9, 3, Window((4, 1), (2, 1), (3, 3, 0, 0))),
    "1x1": (1, 1, Window((1, 1), (1, 1))),
    "1x1-stride-2": (3, 4, Window((1, 1), (2, 2))),
    "whole-image": (5, 3, Window((5, 3), (1, 1))),
    "256-taps": (16, 17, Window((16, 16), (1, 1))),
}
windows = pytest.mark.parametrize("name", WINDOWS)


def image(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Many ties, and every kind of number that a comparison treats in its own way."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, shape).astype(dtype)
    for value in (np.nan, np.inf, -np.inf, -0.0):
        X[rng.random(shape) < 0.08] = value
    return X


@windows
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
def test_maximum(name: str, dtype: str, threads: int) -> None:
    rows, cols, window = WINDOWS[name]
    for n, ch in [(0, 3), *((1, c) for c in CHANNELS), (3, 6), (5, 17)]:
        X = image((n, rows, cols, ch), dtype, ch)
        with use_engine("reference"):
            Y, argmax = pool.max_pool2d_forward(X, window)
            dY = np.random.default_rng(1).normal(size=Y.shape).astype(dtype)
            dX = pool.max_pool2d_backward(dY, argmax, X.shape, window)
            masked = dY * (Y > 0)
            dZ = pool.max_pool2d_backward(masked, argmax, X.shape, window)
        before = X.copy()
        with use_engine("compiled"), use_threads(threads):
            y, a = pool.max_pool2d_forward(X, window)
            dx = pool.max_pool2d_backward(dY, argmax, X.shape, window)
            dz = np.full_like(X, np.nan)
            compiled_pool.max_pool2d_relu_backward_into(dY, argmax, Y, dz, window)
        assert_same_bits(X, before)
        assert_same_bits(y, Y)
        assert_same_bits(a, argmax)
        assert_same_bits(dx, dX)
        assert_same_bits(dz, dZ)


@windows
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_average(name: str, dtype: str) -> None:
    rows, cols, window = WINDOWS[name]
    for n, ch in [(0, 3), *((1, c) for c in CHANNELS), (3, 6), (5, 17)]:
        X = np.random.default_rng(ch).integers(-64, 65, (n, rows, cols, ch)).astype(dtype)
        with use_engine("reference"):
            Y = pool.avg_pool2d_forward(X, window)
            dY = X.reshape(-1)[: Y.size].reshape(Y.shape)
            if dY.size != Y.size:
                dY = np.resize(X, Y.shape)
            dX = pool.avg_pool2d_backward(dY, X.shape, window)
        with use_engine("compiled"), use_threads(2):
            # sums of small whole numbers are exact, one product follows
            np.testing.assert_allclose(pool.avg_pool2d_forward(X, window), Y, rtol=1e-6)
            got = pool.avg_pool2d_backward(dY, X.shape, window)
        tolerance = 4 * np.finfo(dtype).eps * window.taps
        np.testing.assert_allclose(got, dX, rtol=tolerance, atol=64 * tolerance)


def test_average_with_windows_in_the_padding_and_more_taps_than_a_byte_counts() -> None:
    for window, size in [
        (Window((2, 2), (1, 1), (3, 0, 0, 3)), (3, 3)),
        (Window((1, 300), (1, 1)), (2, 301)),
        (Window((300, 1), (1, 1)), (301, 2)),
        (Window((20, 20), (1, 1)), (37, 37)),
        (Window((20, 20), (1, 1)), (20, 21)),
    ]:
        X = np.random.default_rng(2).integers(-8, 9, (2, *size, 5)).astype("float32")
        results = []
        for engine in ("reference", "compiled"):
            with use_engine(engine):
                Y = pool.avg_pool2d_forward(X, window)
                results.append((Y, pool.avg_pool2d_backward(Y, X.shape, window)))
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=1e-5)


def test_equal_for_every_number_of_threads() -> None:
    window = Window((3, 3), (2, 2), (1, 1, 1, 1))
    X = image((5, 33, 34, 20), "float32", 3)
    results = []
    for threads in (1, 2, 3, 5):
        with use_engine("compiled"), use_threads(threads):
            Y, argmax = pool.max_pool2d_forward(X, window)
            dX = pool.max_pool2d_backward(np.ones_like(Y), argmax, X.shape, window)
            average = pool.avg_pool2d_forward(np.nan_to_num(X), window)
            results.append((Y, argmax, dX, average))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(b, a)


def test_arrays_of_any_kind(tmp_path) -> None:
    """Read-only, byte-swapped and memory-mapped inputs give the same numbers."""
    window = Window((2, 2), (2, 2))
    X = np.random.default_rng(4).normal(size=(2, 6, 6, 5)).astype("float32")
    with use_engine("compiled"):
        Y, argmax = pool.max_pool2d_forward(X, window)
        frozen = X.copy()
        frozen.flags.writeable = False
        X.tofile(tmp_path / "x")
        mapped = np.memmap(tmp_path / "x", dtype="float32", mode="r", shape=X.shape)
        for same in (frozen, X.astype(">f4"), mapped):
            y, a = pool.max_pool2d_forward(same, window)
            np.testing.assert_array_equal(y, Y)
            np.testing.assert_array_equal(a, argmax)
            np.testing.assert_array_equal(
                pool.avg_pool2d_forward(same, window), pool.avg_pool2d_forward(X, window)
            )
