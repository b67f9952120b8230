"""Held-out examples, class weights, images that are not in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers.errors import DataError, ParameterError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.training import (
    Dataset,
    Feed,
    LazyImages,
    Normalizer,
    ShuffledSampler,
    Split,
    class_weights,
    train_validation_split,
)
from tests.training.networks import assert_same_run, dense, run


def numbered(labels: Any) -> Split:
    """A split whose images say which example they are."""
    n = len(labels)
    images = np.broadcast_to(np.arange(n)[:, None, None, None], (n, 2, 3, 1)).astype(np.float32)
    return Split(images, np.array(labels))


def ids(split: Split) -> list[int]:
    return np.asarray(split.images)[:, 0, 0, 0].astype(int).tolist()


# ------------------------------------------------------------------------------- held-out examples


def test_stratified() -> None:
    labels = np.repeat([0, 3, 7], [60, 30, 10])  # gaps between the labels
    rng = np.random.default_rng(0)
    labels = rng.permutation(labels)
    train, held = train_validation_split(numbered(labels), 0.2, seed=4)
    assert [(held.labels == c).sum() for c in (0, 3, 7)] == [12, 6, 2]
    assert sorted(ids(train) + ids(held)) == list(range(100))
    assert ids(train) == sorted(ids(train)) and ids(held) == sorted(ids(held))
    np.testing.assert_array_equal(labels[ids(held)], held.labels)
    again = train_validation_split(numbered(labels), 0.2, seed=4)[1]
    other = train_validation_split(numbered(labels), 0.2, seed=5)[1]
    assert ids(again) == ids(held) != ids(other)


def test_largest_remainders() -> None:
    """Of 10 + 10 + 15: for 7 the quotas are 2, 2, 3; for 8 2.29, 2.29, 3.43."""
    labels = np.repeat([0, 1, 2], [10, 10, 15])
    for count, want in ((7, [2, 2, 3]), (8, [2, 2, 4]), (9, [3, 2, 4]), (32, [9, 9, 14])):
        held = train_validation_split(numbered(labels), count)[1]
        assert np.bincount(held.labels).tolist() == want


def test_the_last_example_of_a_class_stays() -> None:
    train, held = train_validation_split(numbered([0] * 8 + [1]), 0.5)
    assert np.bincount(train.labels).tolist()[1] == 1 and len(held) == 4
    with pytest.raises(DataError, match="hold out 8 of 9 examples and keep one of each of the 2"):
        train_validation_split(numbered([0] * 8 + [1]), 8)
    with pytest.raises(DataError, match="hold out 1 of 2 examples and keep one of each"):
        train_validation_split(numbered([0, 1]), 0.5)
    with pytest.raises(DataError, match="hold out 1 of 1"):
        train_validation_split(numbered([0]), 0.5, stratified=False)


def test_not_stratified() -> None:
    labels = np.repeat([0, 1], [90, 10])
    counts = {
        int((train_validation_split(numbered(labels), 30, s, False)[1].labels == 1).sum())
        for s in range(12)
    }
    assert len(counts) > 2  # by chance, not three each time


@pytest.mark.parametrize("validation", [0, 0.0, 1.0, -0.5, -3, True, "0.1", float("nan")])
def test_bad_shares(validation: Any) -> None:
    with pytest.raises(ParameterError, match="validation must be"):
        train_validation_split(numbered([0, 0, 1, 1]), validation)


def test_a_dataset_with_a_validation_split(digits: Dataset) -> None:
    held = digits.hold_out(0.1, seed=1)
    assert len(held.train) == 270 and len(held.test) == 100
    assert held.validation is not None and len(held.validation) == 30
    assert held.held_out is held.validation and digits.held_out is digits.test
    assert "270 training and 100 test images" in held.describe()
    assert "30 validation images" in held.describe()
    strange = Split(np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, int))
    with pytest.raises(DataError, match="train and validation images must be alike"):
        Dataset("d", digits.train, digits.test, digits.classes, strange)
    high = Split(digits.test.images, digits.test.labels + 5)
    with pytest.raises(DataError, match=r"validation label .* is out of range"):
        Dataset("d", digits.train, digits.test, digits.classes, high)


# ----------------------------------------------------------------------------------- class weights


def test_balanced_weights() -> None:
    labels = [0] * 6 + [2] * 3 + [3]
    assert class_weights(labels) == pytest.approx([10 / 18, 0, 10 / 9, 10 / 3])
    assert class_weights(labels, 6)[4:] == [0, 0]
    assert class_weights(numbered(labels), scheme="sqrt") == pytest.approx(
        [(10 / 18) ** 0.5, 0, (10 / 9) ** 0.5, (10 / 3) ** 0.5]
    )


def test_effective_numbers() -> None:
    """By the formula's words: the number of examples, as a sum of beta's powers, inverted."""
    labels = np.repeat([0, 1, 2], [500, 20, 1])
    beta = 0.99
    numbers = [sum(beta**i for i in range(n)) for n in (500, 20, 1)]
    want = np.array([1 / number for number in numbers])
    want /= want.mean()
    np.testing.assert_allclose(class_weights(labels, scheme="effective", beta=beta), want)
    np.testing.assert_allclose(class_weights(labels, scheme="effective", beta=0), 1)  # all alike


def test_weights_make_the_classes_count_alike() -> None:
    labels = np.repeat([0, 1], [30, 3])
    loss = SoftmaxCrossEntropy("sum", class_weights=class_weights(labels))
    gradient = loss.grad(labels, np.zeros((33, 2)))
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: class_weights([]), DataError, "at least one integer"),
        (lambda: class_weights([0.5]), DataError, "got float64"),
        (lambda: class_weights([0, -1]), DataError, r"0\.\.0, got -1\.\.0"),
        (lambda: class_weights([0, 3], 3), DataError, r"0\.\.2, got 0\.\.3"),
        (lambda: class_weights([0], scheme="balance"), ParameterError, "mean 'balanced'"),
        (lambda: class_weights([0], beta=1.0), ParameterError, r"beta must be in \[0.0, 1.0\)"),
        (lambda: class_weights([0], 0), ParameterError, "classes must be an integer >= 1"),
    ],
)
def test_bad_weights(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ------------------------------------------------------------------------------ mapped images


def mapped(folder: Path, array: np.ndarray, order: Any = "C") -> np.ndarray:
    path = folder / "images.npy"
    np.save(path, np.asarray(array, order=order))
    return np.load(path, mmap_mode="r")


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (23, 5, 4, 3), np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "f4", ">f4", ">f8"])
def test_a_mapped_split(tmp_path: Path, array: np.ndarray, dtype: str, order: str) -> None:
    images = mapped(tmp_path, array.astype(dtype), order)
    split = Split(images, np.arange(23) % 4)
    lazy = split.images
    assert isinstance(lazy, LazyImages)
    assert (lazy.shape, lazy.ndim, len(lazy), lazy.size) == (array.shape, 4, 23, array.size)
    assert lazy.dtype.isnative and lazy.nbytes == array.size * np.dtype(dtype).itemsize
    for key in (3, -1, slice(2, 9), slice(None, None, -3), [4, 4, -2], array[:, 0, 0, 0] > 99):
        got = lazy[key]
        np.testing.assert_array_equal(got, array[key])
        assert got.dtype == lazy.dtype
        got[...] = 0  # a copy, whatever the file
    np.testing.assert_array_equal(lazy[2:5, 1:3, ::2], array[2:5, 1:3, ::2])
    np.testing.assert_array_equal(lazy.take(np.array([5, 0])), array[[5, 0]])
    np.testing.assert_array_equal(np.asarray(lazy), array)
    np.testing.assert_array_equal(np.asarray(images), array)


def test_lazy_indexing_errors(tmp_path: Path, array: np.ndarray) -> None:
    lazy = Split(mapped(tmp_path, array), np.arange(23)).images
    for bad in (23, -24, [0, 23], np.zeros(22, bool)):
        with pytest.raises(IndexError):
            lazy[bad]
    with pytest.raises(IndexError, match="one axis of indices, got 2"):
        lazy[np.zeros((2, 2), int)]
    with pytest.raises(IndexError, match="axis 0, got 1"):
        lazy.take([0], axis=1)
    with pytest.raises(ValueError, match="not in memory"):
        np.array(lazy, copy=False)


def test_parts_of_a_mapped_split_stay_in_the_file(tmp_path: Path, array: np.ndarray) -> None:
    split = Split(mapped(tmp_path, array), np.arange(23))
    part = split.take(np.arange(20, 2, -1)).take(slice(3, 9))
    assert isinstance(part.images, LazyImages)
    np.testing.assert_array_equal(np.asarray(part.images), array[20:2:-1][3:9])
    assert part.labels.tolist() == list(range(17, 11, -1))
    train, held = train_validation_split(split.take(split.labels < 12), 4, stratified=False)
    assert isinstance(held.images, LazyImages)
    np.testing.assert_array_equal(np.asarray(train.images), array[train.labels])


def test_mapped_floats_are_looked_through(tmp_path: Path, array: np.ndarray) -> None:
    floats = array.astype("f4")
    floats[17, 2, 1, 0] = np.nan
    with pytest.raises(DataError, match="here: image 17 has a pixel that is NaN"):
        Split(mapped(tmp_path, floats), np.zeros(23, int), "here")


def test_normalizing_a_mapped_split(tmp_path: Path, array: np.ndarray) -> None:
    for dtype in ("u1", "f8"):
        labels = np.zeros(23, int)
        got = Normalizer.fit(Split(mapped(tmp_path, array.astype(dtype)), labels))
        want = Normalizer.fit(Split(array.astype(dtype), labels))
        np.testing.assert_array_equal(got.mean, want.mean)
        np.testing.assert_array_equal(got.std, want.std)


def test_batches_of_a_mapped_split(tmp_path: Path, array: np.ndarray, backend: Any) -> None:
    labels = np.arange(23)
    whole = Feed(Split(array, labels), backend.library, "flip", threads=0)
    for share in (0.5, 0.0):
        split = Split(mapped(tmp_path, array), labels)
        feed = Feed(split, backend.library, "flip", share=share)
        assert feed.threads == 2
        pairs = zip(
            feed.batches(6, ShuffledSampler(23)), whole.batches(6, ShuffledSampler(23)), strict=True
        )
        for (X, y), (X_want, y_want) in pairs:
            assert isinstance(X, backend.xp.ndarray) and X.dtype == np.uint8
            np.testing.assert_array_equal(backend.asnumpy(X), backend.asnumpy(X_want))
            np.testing.assert_array_equal(backend.asnumpy(y), backend.asnumpy(y_want))


def test_training_from_a_file(tmp_path: Path, digits: Dataset) -> None:
    train = Split(mapped(tmp_path, digits.train.images), digits.train.labels)
    data = Dataset("digits", train, digits.test, digits.classes)
    assert_same_run(run(dense(), data, epochs=1), run(dense(), digits, epochs=1))
