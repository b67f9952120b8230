"""The checked arrays of a dataset: `Split` and `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.errors import DataError, ParameterError
from gpulayers.training.datasets.choice import divide
from gpulayers.training.datasets.lazy import (
    ChosenImages,
    LazyImages,
    as_images,
    first_not_finite,
)

MAX_CLASSES = 65_536  # a label above this is taken for a broken file, not for a class


def _as_integers(labels: np.ndarray) -> str:
    """How to make class numbers of labels that are none."""
    if labels.ndim == 2:
        return f" {labels.shape}; one-hot rows become integers with .argmax(axis=1)"
    if labels.dtype.kind in "US":
        return "; np.unique(labels, return_inverse=True) gives the names and the integers"
    return "; convert them with .astype('int64')"


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a dataset, on the host.

    Parameters
    ----------
    images : array of shape (n, rows, cols, channels)
        uint8, or a floating dtype (kept as given); copied only if not C-contiguous. A
        `numpy.memmap` stays in its file, as a `LazyImages`, which may be given too.
    labels : array of shape (n,)
        Any integer dtype; kept as int64.
    source : str
        Where the arrays come from; errors name it.

    Raises
    ------
    DataError
        If there is no example, a rank or a dtype is wrong, the counts differ, a label is negative
        or a pixel is not finite.
    """

    images: Any  # an array, or a LazyImages, which is indexed like one
    labels: np.ndarray
    source: InitVar[str] = "split"

    def __post_init__(self, source: str) -> None:
        images, labels = as_images(self.images, source), self.labels
        if not isinstance(labels, np.ndarray):
            raise DataError(f"{source}: labels must be a NumPy array, got {type(labels).__name__}")
        if not (images.dtype == np.uint8 or backend.is_floating(images.dtype)):
            raise DataError(
                f"{source}: images must be uint8 or floating, got dtype {images.dtype}; pixels "
                "from 0 to 255 become uint8 with .astype('uint8')"
            )
        if images.ndim != 4:
            raise DataError(
                f"{source}: images must have shape (n, rows, cols, channels), got {images.shape}; "
                "turn them with .reshape(...)"
            )
        if labels.dtype.kind not in "iu":
            raise DataError(
                f"{source}: labels must be integers, got dtype {labels.dtype}{_as_integers(labels)}"
            )
        if labels.ndim != 1:
            raise DataError(
                f"{source}: labels must have shape (n,), got {labels.shape}; one-hot rows become "
                "integers with .argmax(axis=1)"
            )
        if images.shape[0] != labels.shape[0]:
            raise DataError(
                f"{source}: {images.shape[0]} images but {labels.shape[0]} labels; "
                "the counts must be equal"
            )
        if images.shape[0] == 0:
            raise DataError(f"{source}: expected at least one example, got none")
        if images.size == 0:
            raise DataError(f"{source}: images have no pixels, their shape is {images.shape}")
        if int(labels.min()) < 0:
            at = int(np.argmin(labels))
            raise DataError(f"{source}: labels must count from 0, got {labels[at]} at example {at}")
        if int(labels.max()) >= MAX_CLASSES:
            at = int(np.argmax(labels))
            raise DataError(
                f"{source}: labels must be below {MAX_CLASSES}, got {labels[at]} at example {at}"
            )
        if not (images.dtype == np.uint8 or getattr(images, "finite", False)):
            at = first_not_finite(images)
            if at is not None:
                raise DataError(f"{source}: image {at} has a pixel that is NaN or infinite")
        if isinstance(images, LazyImages):
            images.finite = True
        else:
            images = np.ascontiguousarray(images)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Any) -> Split:
        """Return the examples at `indices` (a slice, integers or a mask) as a new split.

        Images that are not in memory stay where they are.
        """
        images: Any = self.images
        if isinstance(images, LazyImages):
            chosen = np.arange(len(self))[indices]
            return Split(ChosenImages(images, chosen), self.labels[chosen], "Split.take")
        return Split(images[indices], self.labels[indices], "Split.take")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with the names of their classes.

    Parameters
    ----------
    name : str
        What the dataset is called.
    train, test : Split
        Of one image shape and one dtype.
    classes : sequence of str
        The name of each label, in order.
    validation : Split, optional
        Examples to choose settings by, so that the test split stays unseen; see `hold_out`.

    Raises
    ------
    DataError
        If the splits differ in shape or dtype, or a label has no class.
    ParameterError
        If a split is no `Split`, or the classes no sequence of names.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "test": self.test}
        if self.validation is not None:
            parts["validation"] = self.validation
        for part, split in parts.items():
            check_split(f"Dataset {self.name!r}", part, split)
        given: Any = self.classes
        if not isinstance(given, Iterable):
            raise ParameterError(
                f"Dataset {self.name!r}: classes must be a sequence of names, got {given!r}"
            )
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        train = self.train.images
        for part, split in parts.items():
            other = split.images
            if train.shape[1:] != other.shape[1:] or train.dtype != other.dtype:
                raise DataError(
                    f"{self.name}: train and {part} images must be alike, got "
                    f"{train.shape[1:]} {train.dtype} and {other.shape[1:]} {other.dtype}"
                )
            at = int(np.argmax(split.labels))
            if split.labels[at] >= len(self.classes):
                raise DataError(
                    f"{self.name}: {part} label {split.labels[at]} at example {at} is out of "
                    f"range; the {len(self.classes)} classes have labels "
                    f"0..{len(self.classes) - 1}"
                )

    def hold_out(self, validation: float = 0.1, seed: int = 0, stratified: bool = True) -> Dataset:
        """Return the dataset with part of the training split as its validation split.

        Arguments and errors: `train_validation_split`.
        """
        owner = "Dataset.hold_out"
        kept, held = divide(self.train.labels, validation, seed, stratified, owner)
        train, held_out = self.train.take(kept), self.train.take(held)
        return Dataset(self.name, train, self.test, self.classes, held_out)

    @property
    def held_out(self) -> Split:
        """What a trainer validates on: the validation split, or without one the test split."""
        return self.test if self.validation is None else self.validation

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (rows, cols, channels)."""
        rows, cols, channels = self.train.images.shape[1:]
        return rows, cols, channels

    def describe(self) -> str:
        """Return a few lines: sizes, image shape, classes, examples per class."""
        rows, cols, channels = self.input_shape
        lines = [
            f"{self.name}: {len(self.train)} training and {len(self.test)} test images, "
            f"{rows} x {cols} x {channels} {self.train.images.dtype}",
            f"{len(self.classes)} classes: {_shortened(self.classes)}",
        ]
        if self.validation is not None:
            lines.insert(1, f"{len(self.validation)} validation images")
        for part, split in (("training", self.train), ("test", self.test)):
            counts = np.bincount(split.labels, minlength=len(self.classes))
            lines.append(f"{part} images per class: {counts.min()} to {counts.max()}")
        return "\n".join(lines)


def train_validation_split(
    split: Split, validation: float = 0.1, seed: int = 0, stratified: bool = True
) -> tuple[Split, Split]:
    """Divide a split into two, for training and for validation; each keeps the order.

    Parameters
    ----------
    split : Split
    validation : float in (0, 1), or int
        The share to hold out, or how many.
    seed : int
        The same seed makes the same choice, on every machine.
    stratified : bool
        Hold out of each class the same share, rounded so that the sum is right, and never the last
        example of a class.

    Returns
    -------
    train, validation : Split

    Raises
    ------
    ParameterError
        If `validation` is out of range, or `split` no `Split`.
    DataError
        If there are too few examples to hold out as many.
    """
    check_split("train_validation_split", "split", split)
    kept, held = divide(split.labels, validation, seed, stratified)
    return split.take(kept), split.take(held)


def check_split(owner: str, what: str, split: Any) -> None:
    """Raise ParameterError unless it is a `Split`."""
    if not isinstance(split, Split):
        more = "; dataset.train is one" if isinstance(split, Dataset) else ""
        raise ParameterError(f"{owner}: {what} must be a Split, got {type(split).__name__}{more}")


def numbered_classes(train: Split) -> tuple[str, ...]:
    """Return "0", "1", ... for every label up to the highest one in `train`."""
    return tuple(str(i) for i in range(int(train.labels.max()) + 1))


def _shortened(names: Sequence[str], limit: int = 20) -> str:
    rest = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
