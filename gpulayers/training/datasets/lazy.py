"""Images that are not in memory: mapped from a file, decoded when they are asked for, a choice of
others. They are read like an array, in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gpulayers._types import is_array, is_tuple
from gpulayers.errors import DataError

__all__ = ["ChosenImages", "LazyImages", "MappedImages"]


class LazyImages(ABC):
    """Base class: images (n, rows, cols, channels) of which some are read at a time.

    ``images[7]``, ``images[10:20]``, ``images[[3, 1]]``, ``images[mask]`` and ``images.take(ids)``
    give new NumPy arrays, ``np.asarray(images)`` gives all. Several threads may read at once.

    Attributes
    ----------
    shape : (n, rows, cols, channels)
    dtype : numpy.dtype
        uint8 or floating, in the machine's byte order.
    finite : bool
        Whether all values are known to be finite; a `Split` looks through floats once.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    ndim = 4
    finite = False

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices` (int64, each in 0..n-1): a new C-contiguous array.

        Raises
        ------
        DataError
            If an image cannot be read.
        """

    @property
    def size(self) -> int:
        """Number of values."""
        n, rows, cols, channels = self.shape
        return n * rows * cols * channels

    @property
    def nbytes(self) -> int:
        """Size of all images in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        parts: tuple[Any, ...] = key if is_tuple(key) and key else (key,)
        first, rest = parts[0], parts[1:]
        chosen = np.arange(len(self))[first]  # with NumPy's own rules and errors
        if chosen.ndim == 0:
            return self.read(chosen.reshape(1))[0][rest]
        if chosen.ndim > 1:
            raise IndexError(f"images are chosen by one axis of indices, got {chosen.ndim}")
        return self.read(chosen)[(slice(None), *rest)]

    def take(self, indices: Any, axis: int = 0) -> np.ndarray:
        """Return the images at `indices`: ``images[indices]``; negative ones count from the end."""
        if axis != 0:
            raise IndexError(f"images are taken along axis 0, got {axis}")
        return self[np.asarray(indices, dtype=np.int64)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{type(self).__name__} are not in memory; an array is a copy of them")
        images = self.read(np.arange(len(self)))
        return images if dtype is None else images.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class MappedImages(LazyImages):
    """Images in a memory-mapped file: the system reads what is asked for, and may forget it again.

    Parameters
    ----------
    images : array (n, rows, cols, channels)
        Of `numpy.memmap`, or a view of one; any byte order, any layout, read-only or not.
    """

    def __init__(self, images: np.ndarray) -> None:
        self._mapped: np.ndarray = images.view(np.ndarray)
        n, rows, cols, channels = images.shape
        self.shape = (n, rows, cols, channels)
        self.dtype = images.dtype.newbyteorder("=")

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self._mapped[indices], dtype=self.dtype)


class ChosenImages(LazyImages):
    """Some of other lazy images, in another order perhaps.

    Parameters
    ----------
    images : LazyImages
    indices : (n,) int64, each an index into `images`
    """

    def __init__(self, images: LazyImages, indices: np.ndarray) -> None:
        self._images: LazyImages = images
        self._indices: np.ndarray = indices
        if isinstance(images, ChosenImages):  # those that it was chosen from
            self._images, self._indices = images._images, images._indices[indices]
        _, rows, cols, channels = images.shape
        self.shape = (len(indices), rows, cols, channels)
        self.dtype, self.finite = images.dtype, images.finite

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._images.read(self._indices[indices])


def first_not_finite(images: Any, block: int = 16 << 20) -> int | None:
    """Return the index of the first image with a NaN or an infinity, read `block` bytes at a time.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    step = max(1, block // max(1, images.nbytes // max(1, len(images))))
    for start in range(0, len(images), step):
        bad = ~np.isfinite(images[start : start + step]).all(axis=(1, 2, 3))
        if bad.any():
            return start + int(np.argmax(bad))
    return None


def as_images(images: Any, source: str) -> Any:
    """Return `images` as an array or LazyImages; DataError for anything else."""
    if is_array(images) and isinstance(images, np.memmap) and images.ndim == 4:
        return MappedImages(images)
    if is_array(images) or isinstance(images, LazyImages):
        return images
    raise DataError(f"{source}: images must be a NumPy array, got {type(images).__name__}")
