"""Normalisation and mini-batches."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import backend, random
from gpulayers.errors import DataError, ParameterError
from gpulayers.training.data import (
    Dataset,
    Normalizer,
    Split,
    batches,
    index_batches,
    load_data,
)


@pytest.fixture
def float64():
    before = backend.default_dtype()
    backend.set_default_dtype("float64")
    yield
    backend.set_default_dtype(before)


def make_split(n: int = 23, channels: int = 3, dtype: type = np.uint8) -> Split:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (n, 5, 4, channels)).astype(dtype)
    return Split(images, np.arange(n) % 7)


def loop_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and biased std of each channel, by loops over Python floats."""
    means, stds = [], []
    for c in range(images.shape[-1]):
        values = [float(v) for v in images[..., c].ravel().tolist()]
        mean = sum(values) / len(values)
        means.append(mean)
        stds.append((sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5)
    return means, stds


# ------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_statistics(channels: int, dtype: type) -> None:
    split = make_split(channels=channels, dtype=dtype)
    normalise = Normalizer.fit(split)
    means, stds = loop_statistics(split.images)
    np.testing.assert_allclose(normalise.mean, means, rtol=1e-13)
    np.testing.assert_allclose(normalise.std, stds, rtol=1e-13)


def test_statistics_over_several_parts() -> None:
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (9000, 2, 2, 1), np.uint8)  # counted 4096 images at a time
    normalise = Normalizer.fit(Split(images, np.zeros(9000, int)))
    np.testing.assert_allclose(normalise.mean, images.mean(dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(normalise.std, images.std(dtype=np.float64), rtol=1e-13)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_values(channels: int, dtype: type) -> None:
    split = make_split(channels=channels, dtype=dtype)
    before = split.images.copy()
    normalise = Normalizer.fit(split)
    got = normalise(split.images)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    for at in [(0, 0, 0, 0), (22, 4, 3, channels - 1), (7, 2, 1, channels // 2)]:
        c = at[-1]
        pixel = float(split.images[at])
        want = (pixel - float(normalise.mean[c])) / float(normalise.std[c])
        assert got[at] == np.float32(want)
    assert abs(got.mean()) < 1e-5 and got.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(split.images, before)


def test_every_pixel_value() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got = Normalizer(np.array([100.0]), np.array([3.0]))(images)
    want = [np.float32((v - 100.0) / 3.0) for v in range(256)]
    np.testing.assert_array_equal(got.ravel(), want)


@pytest.mark.usefixtures("float64")
def test_default_dtype_float64() -> None:
    split = make_split()
    X, _ = next(batches(split, 4, shuffle=False, normalizer=Normalizer.fit(split)))
    assert X.dtype == np.float64
    X, _ = next(batches(make_split(dtype=np.float32), 4, shuffle=False))
    assert X.dtype == np.float64


def test_dtype_is_that_of_the_call_not_of_the_first_call() -> None:
    split = make_split(channels=1)
    normalise = Normalizer.fit(split)
    before = backend.default_dtype()
    try:
        for name in ("float32", "float16", "float64", "float32"):
            backend.set_default_dtype(name)
            got = normalise(split.images)
            assert got.dtype == name
            wide = (split.images - normalise.mean) / normalise.std
            np.testing.assert_array_equal(got, wide.astype(name))
    finally:
        backend.set_default_dtype(before)


def test_hostile_layouts() -> None:
    split = make_split()
    normalise = Normalizer.fit(split)
    want = normalise(split.images)
    np.testing.assert_array_equal(normalise(np.asfortranarray(split.images)), want)
    np.testing.assert_array_equal(normalise(split.images[::-2]), want[::-2])
    assert normalise(split.images[:0]).shape == (0, 5, 4, 3)
    np.testing.assert_array_equal(normalise(split.images[3]), want[3])


def test_constant_channel_is_centred_only() -> None:
    images = np.full((4, 2, 2, 1), 7, np.uint8)
    normalise = Normalizer.fit(Split(images, np.zeros(4, int)))
    assert normalise.std.tolist() == [1.0]
    assert (normalise(images) == 0).all()


@pytest.mark.parametrize(
    "mean, std, message",
    [
        ([1.0, 2.0], [1.0], "one value for each channel"),
        ([[1.0]], [[1.0]], "one value for each channel"),
        ([np.nan], [1.0], "finite means"),
        ([0.0], [-1.0], "stds >= 0"),
        ([0.0], [np.inf], "finite means and stds"),
    ],
)
def test_bad_normalizer(mean: list, std: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Normalizer(np.array(mean), np.array(std))


def test_channels_must_match() -> None:
    with pytest.raises(ParameterError, match=r"images of 3 channels, got shape \(2, 5, 4, 1\)"):
        Normalizer.fit(make_split())(np.zeros((2, 5, 4, 1), np.uint8))


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("n, size", [(23, 5), (20, 5), (1, 5), (5, 1), (5, 5), (4, 100)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_example_once(n: int, size: int, shuffle: bool, drop_last: bool) -> None:
    if drop_last and n < size:
        with pytest.raises(ParameterError, match="drop_last leaves no batch"):
            index_batches(n, size, random.Generator(1), shuffle, drop_last)
        return
    parts = list(index_batches(n, size, random.Generator(1), shuffle, drop_last))
    sizes = [size] * (n // size) + ([n % size] if n % size and not drop_last else [])
    assert [len(part) for part in parts] == sizes
    assert all(part.dtype == np.int64 for part in parts)
    order = np.concatenate(parts).tolist()
    assert len(set(order)) == len(order) and set(order) <= set(range(n))
    if not shuffle:
        assert order == list(range(len(order)))
    if not drop_last:
        assert sorted(order) == list(range(n))


def test_images_and_labels_stay_together() -> None:
    n = 50
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 3, 1))
    split = Split(images, np.arange(n))
    seen = []
    for X, y in batches(split, 8, random.Generator(2)):
        np.testing.assert_array_equal(X, (y / 255).astype(np.float32)[:, None, None, None] + 0 * X)
        assert X.dtype == np.float32 and y.dtype == np.int64 and X.shape[1:] == (2, 3, 1)
        seen += y.tolist()
    assert sorted(seen) == list(range(n)) and seen != list(range(n))


def test_order_is_the_generators() -> None:
    def order(seed: int, epochs: int) -> list[list[int]]:
        generator = random.Generator(seed)
        return [
            np.concatenate(list(index_batches(30, 7, generator))).tolist() for _ in range(epochs)
        ]

    assert order(1, 2) == order(1, 2)
    assert order(1, 1) != order(2, 1)
    first, second = order(1, 2)
    assert first != second, "epochs must differ"
    assert first == random.Generator(1).permutation(30).tolist()


def test_default_generator() -> None:
    state = random.get_state()
    try:
        random.seed(11)
        first = np.concatenate(list(index_batches(30, 7)))
        random.seed(11)
        second = np.concatenate(list(index_batches(30, 7)))
        third = np.concatenate(list(index_batches(30, 7)))
    finally:
        random.set_state(state)
    np.testing.assert_array_equal(first, second)
    assert (second != third).any()


def test_generator_rests_without_shuffling() -> None:
    generator = random.Generator(5)
    before = generator.state
    list(batches(make_split(), 4, generator, shuffle=False))
    assert generator.state == before


def test_floats_are_kept_without_a_normalizer() -> None:
    split = make_split(dtype=np.float32)
    X, _ = next(batches(split, 23, shuffle=False))
    np.testing.assert_array_equal(X, split.images)
    X[:] = 0
    assert split.images.any(), "a batch must be a copy"


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size_below_one(size: int) -> None:
    with pytest.raises(ParameterError, match=f"batch_size must be at least 1, got {size}"):
        batches(make_split(), size)


@pytest.mark.parametrize("size", [2.0, "8", None, True])
def test_batch_size_no_integer(size: object) -> None:
    with pytest.raises(ParameterError, match="batch_size must be an integer, got"):
        batches(make_split(), size)  # type: ignore[arg-type]


def test_numpy_batch_size() -> None:
    assert len(list(batches(make_split(), np.int32(8)))) == 3


# ------------------------------------------------------------------------------ splits and datasets


def test_take_and_len() -> None:
    split = make_split()
    assert len(split) == 23
    part = split.take(np.array([3, 1]))
    np.testing.assert_array_equal(part.images, split.images[[3, 1]])
    assert part.labels.tolist() == [3, 1]
    assert len(split.take(slice(0, 5))) == 5
    assert split.take(split.labels == 2).labels.tolist() == [2, 2, 2]
    with pytest.raises(DataError, match="at least one example"):
        split.take(slice(0, 0))


def test_split_of_lists() -> None:
    with pytest.raises(DataError, match="images must be a NumPy array, got list"):
        Split([[1]], np.zeros(1, int))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="mine: labels must be a NumPy array, got list"):
        Split(np.zeros((1, 2, 2, 1), np.uint8), [0], "mine")  # type: ignore[arg-type]


def test_records_cannot_be_changed() -> None:
    data = load_data()
    for target, name in ((data, "train"), (data.train, "images"), (data.test, "labels")):
        with pytest.raises(AttributeError):
            setattr(target, name, None)


def test_describe_many_classes() -> None:
    split = make_split(n=30, channels=1)
    text = Dataset("mine", split, split, tuple(f"c{i}" for i in range(25))).describe()
    assert "mine: 30 training and 30 test images, 5 x 4 x 1 uint8" in text
    assert "25 classes: c0, c1" in text and "c19, ... (5 more)" in text and "c20" not in text
    assert "training images per class: 0 to 5" in text
