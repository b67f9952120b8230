"""Crops, flips, cut squares and mixtures against loops over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.ops import augment, use_engine
from tests.conftest import Backend

DTYPES = ["uint8", "float32", "float64", "float16"]


def images(shape: tuple[int, ...] = (5, 7, 4, 3), dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, shape).astype(dtype)


def mirror(place: int, size: int) -> int:
    """Walk along the line and turn round at its ends."""
    if size == 1:
        return 0
    at, step = 0, 1
    for _ in range(abs(place)):
        if not 0 <= at + step < size:
            step = -step
        at += step
    return at  # the line mirrored at pixel 0 is the same on both sides


def crop_by_loops(X: Any, tops: Any, lefts: Any, size: Any, mode: str, fill: Any) -> np.ndarray:
    n, rows, cols, channels = X.shape
    Y = np.empty((n, *size, channels), X.dtype)
    for k in range(n):
        for i in range(size[0]):
            for j in range(size[1]):
                r, c = tops[k] + i, lefts[k] + j
                if mode == "reflect":
                    Y[k, i, j] = X[k, mirror(r, rows), mirror(c, cols)]
                elif 0 <= r < rows and 0 <= c < cols:
                    Y[k, i, j] = X[k, r, c]
                else:
                    Y[k, i, j] = fill
    return Y


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_crop(mode: str, dtype: str, backend: Backend) -> None:
    X = images(dtype=dtype)
    before = X.copy()
    for size in [(7, 4), (3, 3), (9, 6), (1, 1)]:
        tops, lefts = np.array([-3, 0, 2, 5, -9]), np.array([-1, 0, 1, 3, 12])
        want = crop_by_loops(X, tops, lefts, size, mode, 7)
        got = augment.crop(
            backend.asarray(X), backend.asarray(tops), backend.asarray(lefts), size, mode, 7
        )
        assert got.dtype == X.dtype and got.flags.c_contiguous
        np.testing.assert_array_equal(backend.asnumpy(got), want)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_windows_far_outside(mode: str, backend: Backend) -> None:
    """Of a wide border: more of it than of the image, and no memory for all the way there."""
    X = images((3, 2, 1, 2))
    tops, lefts = np.array([-(10**12), 10**12, 40]), np.array([10**12, 0, -(10**12)])
    args = (backend.asarray(X), backend.asarray(tops), backend.asarray(lefts), (5, 3), mode)
    got = backend.asnumpy(augment.crop(*args, fill=9))
    if mode == "constant":
        assert (got == 9).all()
    else:
        # one column, so all places are 0; two rows, so even and odd ones alternate
        want = crop_by_loops(X, tops % 2, 0 * lefts, (5, 3), mode, 9)
        np.testing.assert_array_equal(got, want)


def test_crop_fill_by_channel(backend: Backend) -> None:
    X = images()
    fill = np.array([1, 2, 3], np.uint8)
    tops = lefts = np.full(5, 6)
    got = augment.crop(
        *(backend.asarray(a) for a in (X, tops, lefts)), (7, 4), fill=backend.asarray(fill)
    )
    want = crop_by_loops(X, tops, lefts, (7, 4), "constant", fill)
    np.testing.assert_array_equal(backend.asnumpy(got), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7, 4, 3), (1, 1, 1, 1), (3, 2, 5, 1)])
def test_flip(dtype: str, shape: tuple[int, ...], backend: Backend) -> None:
    X = images(shape, dtype)
    chosen = np.arange(shape[0]) % 2 == 0
    got = backend.asnumpy(augment.flip_columns(backend.asarray(X), backend.asarray(chosen)))
    for k in range(shape[0]):
        for j in range(shape[2]):
            from_column = shape[2] - 1 - j if chosen[k] else j
            np.testing.assert_array_equal(got[k, :, j], X[k, :, from_column])
    assert got.dtype == X.dtype


@pytest.mark.parametrize("side", [0, 1, 2, 3, 8, 50])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_cut_squares(side: int, dtype: str, backend: Backend) -> None:
    X = images(dtype=dtype)
    rows, cols = np.array([0, 6, 3, 1, 5]), np.array([0, 3, 2, 1, 0])
    args = (backend.asarray(X), backend.asarray(rows), backend.asarray(cols))
    got = backend.asnumpy(augment.cut_squares(*args, side, 200))
    want = X.copy()
    for k in range(5):
        for i in range(rows[k] - side // 2, rows[k] - side // 2 + side):
            for j in range(cols[k] - side // 2, cols[k] - side // 2 + side):
                if 0 <= i < 7 and 0 <= j < 4:
                    want[k, i, j] = 200
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_mix(dtype: str, backend: Backend) -> None:
    X = images(dtype=dtype)
    partners = np.array([4, 0, 2, 2, 1])
    got = augment.mix(backend.asarray(X), backend.asarray(partners), 0.3)
    assert got.dtype == X.dtype
    for k, other in enumerate(partners):
        want = 0.3 * X[k].astype(float) + 0.7 * X[other].astype(float)
        np.testing.assert_allclose(
            backend.asnumpy(got)[k], want, rtol=4 * np.finfo(dtype).eps, atol=1e-6
        )
    np.testing.assert_array_equal(
        backend.asnumpy(augment.mix(backend.asarray(X), backend.asarray(partners), 1.0)), X
    )


def test_all_engines_give_the_same_bits(backend: Backend) -> None:
    X = images((9, 6, 5, 3), "float32")
    rng = np.random.default_rng(2)
    places, flags = rng.integers(-3, 4, (2, 9)), rng.random(9) < 0.5
    order = rng.permutation(9)

    def results() -> list[np.ndarray]:
        x, i, j = (backend.asarray(a) for a in (X, places[0], places[1]))
        made = [
            augment.crop(x, i, j, (6, 5), "reflect"),
            augment.crop(x, i, j, (6, 5), fill=0.5),
            augment.flip_columns(x, backend.asarray(flags)),
            augment.cut_squares(x, i, j, 3),
            augment.mix(x, backend.asarray(order), 0.123),
        ]
        return [backend.asnumpy(a) for a in made]

    with use_engine("reference"):
        want = results()
    for a, b in zip(results(), want, strict=True):
        assert a.tobytes() == b.tobytes()


def test_nothing_waits_for_the_device(emulated: Backend) -> None:
    X = emulated.asarray(images(dtype="float32"))
    ids, flags = emulated.asarray(np.arange(5)), emulated.asarray(np.arange(5) > 2)
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h", "iterate"):
        augment.crop(X, ids, ids, (7, 4))
        augment.crop(X, ids, ids, (7, 4), "reflect")
        augment.flip_columns(X, flags)
        augment.cut_squares(X, ids, ids, 3)
        augment.mix(X, ids, 0.5)
    assert 0 < events["launch"] < 80  # and so no loop over the images


def test_hostile_layouts_and_no_images(backend: Backend) -> None:
    X = images((6, 5, 4, 3), "float32")
    at = np.array([1, 2])
    for view in (X[::3], np.asfortranarray(X)[::3], X[::-1][::3], X.astype(">f4")[::3]):
        if backend.library == "cupy" and not view.dtype.isnative:
            continue
        want = crop_by_loops(view.astype("f4"), at, at, (3, 3), "constant", 0)
        x, i = backend.asarray(view), backend.asarray(at)
        np.testing.assert_array_equal(backend.asnumpy(augment.crop(x, i, i, (3, 3))), want)
        flipped = augment.flip_columns(x, backend.asarray(at == 1))
        np.testing.assert_array_equal(backend.asnumpy(flipped)[0], view[0, :, ::-1])
    none, ids = backend.asarray(X[:0]), backend.asarray(at[:0])
    for mode in ("constant", "reflect"):
        assert augment.crop(none, ids, ids, (3, 2), mode).shape == (0, 3, 2, 3)
    assert augment.flip_columns(none, backend.asarray(at[:0] > 0)).shape == none.shape
    assert augment.cut_squares(none, ids, ids, 3).shape == none.shape
    assert augment.mix(none, ids, 0.5).shape == none.shape


def test_read_only_images(numpy_backend: Backend) -> None:
    X, at = images(), np.arange(5)
    X.flags.writeable = at.flags.writeable = False
    augment.crop(X, at, at, (7, 4))[...] = 0  # the results are new
    augment.crop(X, 0 * at, 0 * at, (7, 4))[...] = 0
    augment.flip_columns(X, at > 2)[...] = 0
    augment.cut_squares(X, at, at, 0)[...] = 0
    assert X.any()


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda X, i: augment.crop(X[0], i, i, (2, 2)), ShapeError, r"\(n, rows, cols, channels\)"),
    (lambda X, i: augment.crop(X, i[:3], i, (2, 2)), ShapeError, r"tops must have shape \(5,\)"),
    (lambda X, i: augment.crop(X, i, i * 0.5, (2, 2)), DTypeError, "lefts must be integers"),
    (lambda X, i: augment.crop(X, i, i, (0, 2)), ParameterError, "at least 1 x 1, got 0 x 2"),
    (lambda X, i: augment.crop(X, i, i, (2, 2), "reflekt"), ParameterError, "mean 'reflect'"),
    (lambda X, i: augment.crop(X, i, i, (2, 2), fill=-1), ParameterError, "0..255, got -1"),
    (lambda X, i: augment.crop(X, i, i, (2, 2), fill=0.5), ParameterError, "0..255, got 0.5"),
    (lambda X, i: augment.crop(X, i, i, (2, 2), fill=i), ShapeError, r"fill must have shape"),
    (lambda X, i: augment.crop(X, i, i, (2, 2), fill=i[:3]), DTypeError, "fill is int64"),
    (lambda X, i: augment.crop(X.astype(int), i, i, (2, 2)), DTypeError, "uint8 or floating"),
    (lambda X, i: augment.crop(X[:, :0], i, i, (2, 2)), ShapeError, "at least one row"),
    (lambda X, i: augment.crop(X, [0] * 5, i, (2, 2)), DTypeError, "crop: tops: expected a numpy"),
    (lambda X, i: augment.flip_columns(X, i), DTypeError, "chosen must be bool, got int64"),
    (lambda X, i: augment.cut_squares(X, i, i, 1.5), ParameterError, "side must be an integer"),
    (lambda X, i: augment.mix(X, i, 0.5), DTypeError, "images must be a floating array"),
    (lambda X, i: augment.mix(X.astype("f"), i, 1.5), ParameterError, r"weight must be in \[0, 1"),
    (lambda X, i: augment.mix(X.astype("f"), i + 1, 0.5), ParameterError, r"0..4, got 1..5"),
    (lambda X, i: augment.mix(X.astype("f"), i[:2], 0.5), ShapeError, r"shape \(5,\), got \(2,\)"),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(images(), np.arange(5))


def test_mixed_libraries(emulated: Backend) -> None:
    at = np.arange(5)
    with pytest.raises(BackendError, match="crop: numpy and cupy"):
        augment.crop(emulated.asarray(images()), at, at, (2, 2))
