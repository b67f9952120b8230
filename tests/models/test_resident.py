"""`Resident`: what lies on the device, how an epoch goes through it, and what is read from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.errors import DataError, DTypeError, ParameterError, ShapeError
from gpulayers.models import Pixels
from gpulayers.models.resident import Resident
from tests.conftest import Backend

COLOURS = Pixels((100.0, 90.0, 0.0), (50.0, 60.0, 200.0))


def made(n: int = 7, channels: int = 3, **arguments: Any) -> Resident:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 4, 4, channels), np.uint8)
    return Resident(images, rng.integers(0, 5, n).astype(np.int16), **arguments)


def test_arrays_are_as_kernels_take_them(backend: Backend) -> None:
    images = np.asfortranarray(np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1))
    resident = Resident(images[::-1], np.array([2, 0, 1], np.uint8)[::-1])
    for array in (resident.images, resident.labels, resident.order):
        assert isinstance(array, backend.xp.ndarray)
        assert array.flags.c_contiguous
    assert resident.labels.dtype == np.int64
    assert resident.order.dtype == resident.position.dtype == np.int32
    np.testing.assert_array_equal(backend.asnumpy(resident.images), images[::-1])
    assert resident.label_range == (0, 2)
    assert backend.asnumpy(resident.order).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_factors_are_those_of_pixels(backend: Backend, dtype: str) -> None:
    resident = made(pixels=COLOURS, dtype=dtype)
    scale, shift = backend.asnumpy(resident.factors)
    assert resident.record.dtype == scale.dtype == ("float64" if dtype == "float64" else "float32")
    rows = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    want = backend.asnumpy(COLOURS(backend.asarray(rows), dtype))
    product = (rows.astype(scale.dtype) * scale).astype(dtype).astype(scale.dtype)
    np.testing.assert_array_equal((product + shift).astype(dtype), want)


def test_floating_images_get_the_dtype(backend: Backend) -> None:
    images = np.linspace(0, 1, 12).reshape(3, 4)
    assert Resident(images, np.zeros(3, int)).images.dtype == np.float32
    resident = Resident(images, np.zeros(3, int), dtype="float64")
    np.testing.assert_array_equal(backend.asnumpy(resident.images), images)


def test_one_scale_for_all_channels() -> None:
    assert made().scale == 1 / 255
    assert made(channels=1, pixels=Pixels((51.0,), (102.0,))).shift == -0.5
    with pytest.raises(ParameterError, match="channels differ in their shift"):
        _ = made(pixels=COLOURS).shift


def test_an_epoch_keeps_the_arrays(backend: Backend) -> None:
    resident = made(length=9)
    before = resident.order, resident.position
    resident.begin(np.array([6, 1, 1, 0]), start=1)
    assert resident.order is before[0]
    assert resident.position is before[1]
    assert backend.asnumpy(resident.position).tolist() == [1]
    assert (resident.count, resident.left) == (4, 3)
    X, labels = resident.batch(1, 4)
    want = backend.asnumpy(resident.images)[[1, 1, 0]]
    np.testing.assert_array_equal(backend.asnumpy(X), want)
    assert backend.asnumpy(labels)[0] == backend.asnumpy(resident.labels)[1]
    resident.taken(3)
    with pytest.raises(ParameterError, match="1 examples wanted, 0 of the epoch's 4 are left"):
        resident.taken(1)
    resident.begin()
    assert resident.left == 4


def test_what_is_read_was_not_read_before(numpy_backend: Backend) -> None:
    """Across the end of the record; what was overwritten is not passed off as another's."""
    resident = made(n=20, slots=3)

    def steps(count: int) -> list[float]:
        values = []
        for _ in range(count):
            resident.taken(1)
            row = int(resident.done[0])
            resident.record[row % 3] = row + 0.5, row
            resident.done += np.int32(1)
            values.append(row + 0.5)
        return values

    for count in (2, 3, 0, 1):
        wanted = steps(count)
        assert resident.unread == count
        losses, hits = resident.read()
        assert losses.tolist() == wanted
        assert hits.dtype == np.int64
        assert hits.tolist() == [int(value) for value in wanted]
    steps(4)
    with pytest.raises(DataError, match="4 steps were done since the last one, but only 3"):
        resident.read()


def test_bad_input() -> None:
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int64)
    with pytest.raises(DTypeError, match="images must be uint8 or floating, got int32"):
        Resident(images.astype(np.int32), labels)
    with pytest.raises(DTypeError, match="labels must be integers, got float64"):
        Resident(images, labels.astype(float))
    with pytest.raises(ShapeError, match="labels"):
        Resident(images, labels[:2])
    with pytest.raises(DataError, match="got 0"):
        Resident(images[:0], labels[:0])
    with pytest.raises(ShapeError, match="pixels has 3 channels, the images 1"):
        Resident(images, labels, COLOURS)
    with pytest.raises(ParameterError, match="slots"):
        Resident(images, labels, slots=0)
    resident = Resident(images, labels)
    for order in ([0, 3], [-1], [], [0, 1, 2, 0], [[0]], [0.5]):
        with pytest.raises(ParameterError, match=r"Resident\.begin: expected"):
            resident.begin(np.array(order))
    with pytest.raises(ParameterError, match=r"start must be in 0\.\.3, got 4"):
        resident.begin(start=4)
    assert resident.left == 3


@pytest.mark.parametrize("floating", [False, True])
def test_a_batch_is_gathered_as_pixels_has_it(emulated: Backend, floating: bool) -> None:
    """One launch, to the bits; from the position on, across the table."""
    from gpulayers.cuda import feed

    resident = made(pixels=COLOURS)
    if floating:
        images = COLOURS(resident.images, "float32")
        resident = Resident(images, resident.labels)
    resident.begin(np.array([5, 0, 2, 2, 6]), start=2)
    X = emulated.xp.empty((3, 4, 4, 3), "float32")
    labels = emulated.xp.empty(3, "int64")
    feed.gather(resident, X, labels)  # compiles the kernel
    X.fill(0)
    labels.fill(0)
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h", "alloc"):
        feed.gather(resident, X, labels)
    assert events["launch"] == 1
    pixels, want = resident.batch(2, 5)
    pixels = pixels if floating else COLOURS(pixels, "float32")
    np.testing.assert_array_equal(emulated.asnumpy(X), emulated.asnumpy(pixels))
    np.testing.assert_array_equal(emulated.asnumpy(labels), emulated.asnumpy(want))
