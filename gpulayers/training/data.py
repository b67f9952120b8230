"""Datasets for training: `load_data`, normalisation and mini-batches, all on the host.

data = load_data("mnist-10k")
normalise = Normalizer.fit(data.train)
for X, y in batches(data.train, 64, generator, normalizer=normalise):
    ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers._types import is_sequence
from gpulayers.errors import ParameterError, suggest
from gpulayers.training.datasets.arrays import (
    Dataset,
    Split,
    check_split,
    numbered_classes,
    train_validation_split,
)
from gpulayers.training.datasets.bundled import read_bundled
from gpulayers.training.datasets.choice import class_weights
from gpulayers.training.datasets.lazy import LazyImages
from gpulayers.training.datasets.locate import load_published
from gpulayers.training.datasets.mapped import save_data
from gpulayers.training.datasets.paths import load_path
from gpulayers.training.datasets.registry import DIGITS, PUBLISHED

__all__ = [
    "DATASETS",
    "Dataset",
    "LazyImages",
    "Normalizer",
    "Split",
    "batches",
    "class_weights",
    "index_batches",
    "load_data",
    "save_data",
    "train_validation_split",
]

BUNDLED = "mnist-10k"
DATASETS = (BUNDLED, *PUBLISHED)
"""The names that `load_data` knows."""


def load_data(
    name_or_path: str | os.PathLike[str] = BUNDLED,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    image_size: int | Sequence[int] | None = None,
    grayscale: bool = False,
    in_memory: bool | None = None,
) -> Dataset:
    """Load an image-classification dataset.

    Parameters
    ----------
    name_or_path : str or path
        ``mnist-10k`` (10,000 + 2,000 MNIST digits, in the package); ``mnist``, ``fashion-mnist``,
        ``cifar10``, ``cifar100`` (the full sets); or the path of a folder with idx files under
        MNIST's names, of a folder or ``.tar.gz`` of the binary version of CIFAR-10 or CIFAR-100,
        of an ``.npz`` with x_train, y_train, x_test, y_test and optionally classes, of a folder
        with these as ``.npy`` (see `save_data`), or of a folder of pictures with a subfolder for
        each class: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*`` (needs Pillow). A
        name goes before a path: write ``./mnist`` for a folder called mnist.
    data_dir : str or path, optional
        Where to look for the full sets, directly or in a subfolder of the set's name, and where
        to download them to. Then the environment variable ``GPULAYERS_DATA`` and the user's
        cache folder are tried.
    download : bool
        Whether a full set that is nowhere on this machine may be downloaded (needs pooch).
    image_size : int or (rows, cols), optional
        Of pictures in folders: each is scaled to cover it and cut around the centre. None needs
        pictures of one size.
    grayscale : bool
        Whether pictures in folders become grey, with one channel.
    in_memory : bool, optional
        Whether ``.npy`` files and pictures are read whole. By default the former stay in their
        files, mapped, and pictures beyond 1 GiB are decoded when a batch needs them.

    Returns
    -------
    Dataset
        Images (n, rows, cols, channels), uint8 (an npz may hold floats, kept as they are); labels
        (n,), int64. Without names the classes are "0", "1", ... up to the highest training label.

    Raises
    ------
    ParameterError
        If the name is unknown (the nearest known one is suggested), or an image size no positive
        integer.
    DataError
        If files are missing, unreadable, truncated, corrupted or inconsistent.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise ParameterError(f"load_data: expected a name or a path, got {name_or_path!r}")
    name = str(name_or_path)
    if isinstance(name_or_path, str):
        known = name.lower().replace("_", "-")
        if known == BUNDLED:
            return Dataset(BUNDLED, *read_bundled(), DIGITS)
        if known in PUBLISHED:
            spec = PUBLISHED[known]
            return Dataset(known, *load_published(spec, data_dir, download), spec.classes)
        if not _looks_like_path(name):
            raise ParameterError(
                f"load_data: unknown dataset {name!r}{suggest(name, DATASETS)}; known are "
                f"{', '.join(DATASETS)}, or give the path of a folder or an .npz file"
            )
    path = Path(name_or_path).expanduser()
    size = None if image_size is None else _size(image_size)
    train, test, classes, validation = load_path(path, size, bool(grayscale), in_memory)
    names = classes or numbered_classes(train)
    return Dataset(path.resolve().name, train, test, names, validation)


def _size(size: Any) -> tuple[int, int]:
    pair: Sequence[Any] = size if is_sequence(size) else (size, size)
    if len(pair) != 2:
        raise ParameterError(f"load_data: image_size must be n or (rows, cols), got {size!r}")
    rows, cols = (_spec.integer("load_data", "image_size", value, 1) for value in pair)
    return rows, cols


def _looks_like_path(text: str) -> bool:
    if any(mark in text for mark in (os.sep, os.altsep or os.sep, "~")):
        return True
    return text in (".", "..") or text.endswith((".npz", ".gz", ".tgz")) or os.path.exists(text)


def _pixels(images: Any) -> Iterator[np.ndarray]:
    """All pixels (n, channels), some images at a time: they may not be in memory."""
    step = min(4096, max(1, (16 << 20) // max(1, images.nbytes // len(images))))
    for start in range(0, len(images), step):
        yield images[start : start + step].reshape(-1, images.shape[-1])


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Map pixels to ``(pixel - mean) / std``, channel by channel.

    uint8 images go through a table of 256 entries for each channel, worked out in float64.

    Parameters
    ----------
    mean, std : arrays of shape (channels,)
        In units of a pixel. A std of zero (a constant channel) counts as one.
    """

    mean: np.ndarray
    std: np.ndarray
    _tables: dict[np.dtype[Any], np.ndarray] = field(
        default_factory=dict[np.dtype[Any], np.ndarray], init=False, repr=False
    )

    def __post_init__(self) -> None:
        mean = np.atleast_1d(np.asarray(self.mean, np.float64))
        std = np.atleast_1d(np.asarray(self.std, np.float64))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ParameterError(
                "Normalizer: mean and std must have one value for each channel, got shapes "
                f"{mean.shape} and {std.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
            raise ParameterError(
                f"Normalizer: expected finite means and stds >= 0, got {mean} and {std}"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", np.where(std == 0, 1.0, std))

    @classmethod
    def fit(cls, split: Split) -> Normalizer:
        """Return the normalizer with the mean and (biased) std of each channel of `split`."""
        check_split("Normalizer.fit", "split", split)
        images: Any = split.images
        channels = images.shape[-1]
        if images.dtype == np.uint8:
            # Counting pixel values is exact and needs no float copy of the images.
            counts = np.zeros((channels, 256), np.int64)
            for part in _pixels(images):
                for c in range(channels):
                    counts[c] += np.bincount(part[:, c], minlength=256)
            values = np.arange(256, dtype=np.float64)
            total = images.size // channels
            mean = counts @ values / total
            var = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
            return cls(mean, np.sqrt(var))
        total = images.size // channels
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in _pixels(images)) / total
        var = sum(((part - mean) ** 2).sum(axis=0) for part in _pixels(images)) / total
        return cls(mean, np.sqrt(var))

    @classmethod
    def scale(cls, split: Split) -> Normalizer:
        """Return the normalizer that divides uint8 by 255 and leaves floats as they are."""
        check_split("Normalizer.scale", "split", split)
        channels: int = split.images.shape[-1]
        top = 255.0 if split.images.dtype == np.uint8 else 1.0
        return cls(np.zeros(channels), np.full(channels, top))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return `images` (..., channels) normalised: a new array of the default dtype.

        Raises
        ------
        ParameterError
            If the number of channels is not this normalizer's.
        DTypeError
            If `images` is no array.
        """
        backend.home_of("Normalizer", "images", images)
        dtype = backend.default_dtype()
        channels = len(self.mean)
        if images.shape[-1] != channels:
            raise ParameterError(
                f"Normalizer: expected images of {channels} channels, got shape {images.shape}"
            )
        if images.dtype != np.uint8:
            wide = images.astype(np.float64)
            return ((wide - self.mean) / self.std).astype(dtype)
        table = self._tables.get(dtype)
        if table is None:
            wide = (np.arange(256) - self.mean[:, None]) / self.std[:, None]
            table = self._tables[dtype] = wide.astype(dtype)
        # No byte is outside a table of 256; "clip" only spares the check.
        if channels == 1:
            return np.take(table[0], images, mode="clip")
        out = np.empty(images.shape, dtype)
        for c in range(channels):
            out[..., c] = np.take(table[c], images[..., c], mode="clip")
        return out


def index_batches(
    n: int,
    batch_size: int,
    generator: random.Generator | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the indices 0..n-1 in batches: int64 arrays on the host.

    Parameters
    ----------
    n : int
        Number of examples.
    batch_size : int
        Examples in a batch; the last one may be smaller.
    generator : gpulayers.random.Generator, optional
        Draws the order; by default gpulayers' default generator.
    shuffle : bool
        Whether to mix the order; without, the indices ascend and the generator is not used.
    drop_last : bool
        Whether to leave out a smaller last batch.

    Raises
    ------
    ParameterError
        If batch_size is no positive integer, another argument none of those, or drop_last would
        leave no batch.
    """
    return _index_batches("index_batches", n, batch_size, generator, shuffle, drop_last)


def _index_batches(
    name: str,
    n: int,
    batch_size: int,
    generator: random.Generator | None,
    shuffle: bool,
    drop_last: bool,
) -> Iterator[np.ndarray]:
    """`index_batches`, checked in the name of the function that was called."""
    n = _spec.integer(name, "n", n, 0)
    shuffle = _spec.flag(name, "shuffle", shuffle)
    drop_last = _spec.flag(name, "drop_last", drop_last)
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise ParameterError(f"{name}: batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ParameterError(f"{name}: batch_size must be at least 1, got {batch_size}")
    if drop_last and n < batch_size:
        raise ParameterError(
            f"{name}: drop_last leaves no batch, as batch_size={batch_size} exceeds the "
            f"{n} examples"
        )
    return _cut(n, int(batch_size), generator, shuffle, drop_last)


def _cut(
    n: int, batch_size: int, generator: random.Generator | None, shuffle: bool, drop_last: bool
) -> Iterator[np.ndarray]:
    if shuffle:
        order = (generator or random.default_generator()).permutation(n)
    else:
        order = np.arange(n, dtype=np.int64)
    stop = n - n % batch_size if drop_last else n
    for start in range(0, stop, batch_size):
        yield order[start : start + batch_size]


def batches(
    split: Split,
    batch_size: int,
    generator: random.Generator | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    normalizer: Normalizer | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (X, y) mini-batches of `split` on the host.

    X is (batch, rows, cols, channels) in the default dtype, y is (batch,) int64. Other parameters
    and errors: `index_batches`.

    Parameters
    ----------
    normalizer : Normalizer, optional
        What is done to the pixels; by default uint8 is divided by 255 and floats are kept.
    """
    check_split("batches", "split", split)
    indices = _index_batches("batches", len(split), batch_size, generator, shuffle, drop_last)
    normalise = normalizer or Normalizer.scale(split)
    return ((normalise(split.images[i]), split.labels[i]) for i in indices)
