"""A dataset in the memory of a GPU, whose batches a planned step takes by itself.

The step reads from the device which examples are next, so nothing has to be handed to it: neither
a copy nor an argument. What it finds out, the loss and how many examples were classified right, it
leaves on the device too, where the host reads it every now and then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.errors import DataError, DTypeError, ParameterError, ShapeError
from gpulayers.models.pixels import Pixels

__all__ = ["Resident"]

_MOST = 2**31 - 1  # numbers of examples are 32-bit


class Resident:
    """Images and labels on the device, an index table, and how far a run through it has come.

        resident = Resident(images, labels, network.pixels)
        resident.begin(order)                  # host indices: this epoch's order
        plan.run(resident, steps, batch_size)  # no copy, no wait
        losses, hits = resident.read()         # one copy, one wait

    Kernels are given the arrays, which stay the same objects for good: a captured graph goes on
    with what is written into them.

    Parameters
    ----------
    images : (n, ...) array, uint8 or floating
        Moved to the current backend, if it is not there.
    labels : (n,) array of integers
    pixels : Pixels, optional
        What is done to uint8 images; None maps 0..255 to 0..1.
    dtype : dtype, optional
        Of the network; None is the default dtype. Floating images are converted to it.
    length : int, optional
        Examples in an epoch at most, repetitions counted; None is n.
    slots : int
        Steps whose results are kept until they are read.

    Attributes
    ----------
    images : (n, ...) array
    labels : (n,) int64 array
    order : (length,) int32 array
        Number of each example of an epoch, in their order.
    position : (1,) int32 array
        How many examples of this epoch were used; kernels advance it.
    scale, shift : float
        ``byte * scale + shift`` is what the network gets.
    factors : (2, channels) array
        Scale and shift of each channel, rounded to `dtype`, in the type that kernels compute in: it
        or, for a half type, float32.
    record : (slots, 2) array of the type of `factors`
        Loss and hits of a step in row ``done % slots``.
    done : (1,) int32 array
        How many steps were recorded; kernels advance it.
    count : int
        Examples of this epoch.
    label_range : (int, int)
        The least and the largest label.

    Raises
    ------
    DTypeError, ShapeError
        If images or labels are of another kind, or of different lengths.
    DataError
        If there is no example, or more than 2**31 - 1.
    ParameterError
        If length or slots is out of range.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        pixels: Pixels | None = None,
        dtype: Any = None,
        length: int | None = None,
        slots: int = 1024,
    ) -> None:
        if images.dtype != np.uint8 and not backend.is_floating(images.dtype):
            raise DTypeError(f"Resident: images must be uint8 or floating, got {images.dtype}")
        if labels.dtype.kind not in "iu":
            raise DTypeError(f"Resident: labels must be integers, got {labels.dtype}")
        if images.ndim < 2 or labels.shape != (len(images),):
            raise ShapeError(
                "Resident: expected images (n, ...) and labels (n,), got "
                f"{images.shape} and {labels.shape}"
            )
        length = len(images) if length is None else _spec.integer("Resident", "length", length, 1)
        if not 0 < len(images) <= _MOST or length > _MOST:
            raise DataError(f"Resident: expected 1 to {_MOST} examples, got {len(images)}")
        slots = _spec.integer("Resident", "slots", slots, 1)
        place = backend.current_backend()
        self.xp: Any = backend.module(place)
        self.dtype = backend.default_dtype() if dtype is None else np.dtype(dtype)
        wide = np.dtype(np.float32) if self.dtype.itemsize == 2 else self.dtype
        self.images = self.xp.ascontiguousarray(backend.to_backend(images, place))
        if images.dtype != np.uint8:
            self.images = self.images.astype(self.dtype, copy=False)
        self.labels = self.xp.ascontiguousarray(
            backend.to_backend(labels, place).astype("int64", copy=False)
        )
        self._ranges: dict[int | None, tuple[int, int]] = {}
        self.label_range = self.range_of_labels()
        self.pixels = Pixels() if pixels is None else pixels
        channels = self.images.shape[-1]
        if len(self.pixels.mean) not in (1, channels):
            raise ShapeError(
                f"Resident: pixels has {len(self.pixels.mean)} channels, the images {channels}"
            )
        self.factors = self.xp.asarray(self._numbers().astype(self.dtype).astype(wide))
        self.order = self.xp.arange(length, dtype="int32") % np.int32(len(images))
        self.position = self.xp.zeros(1, dtype="int32")
        self.record = self.xp.zeros((slots, 2), dtype=wide)
        self.done = self.xp.zeros(1, dtype="int32")
        self.count = length
        self._used = self._recorded = self._read = 0  # what the device's counters will have reached

    def __len__(self) -> int:
        return len(self.images)

    def range_of_labels(self, ignored: int | None = None) -> tuple[int, int]:
        """The smallest and the largest label, but for the ignored one; 0 and 0 if there is no
        other. The first call waits for the device."""
        if ignored not in self._ranges:
            counted = self.labels if ignored is None else self.labels[self.labels != ignored]
            both = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
            self._ranges[ignored] = both
        return self._ranges[ignored]

    @property
    def example_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    @property
    def scale(self) -> float:
        """By which a byte is multiplied, where that is the same for all channels.

        Raises
        ------
        ParameterError
            If it is not.
        """
        return self._alike(self._numbers()[0], "scale")

    @property
    def shift(self) -> float:
        """What is added then; see `scale`."""
        return self._alike(self._numbers()[1], "shift")

    def _alike(self, values: np.ndarray, name: str) -> float:
        if not (values == values[0]).all():
            raise ParameterError(
                f"Resident: the channels differ in their {name}, use factors: {values.tolist()}"
            )
        return float(values[0])

    def _numbers(self) -> np.ndarray:
        """(2, channels): scale and shift, as `Pixels` has them."""
        mean, std = np.array(self.pixels.mean), np.array(self.pixels.std)
        pair = np.stack((1.0 / std, -mean / std))
        return np.repeat(pair, self.images.shape[-1], axis=1) if len(mean) == 1 else pair

    # ----------------------------------------------------------------------------------- an epoch

    def begin(self, order: np.ndarray | None = None, start: int = 0) -> None:
        """Begin an epoch, or go on in the midst of one.

        Parameters
        ----------
        order : host array of indices, optional
            The examples of the epoch in their order, at most `length`; None keeps the table.
        start : int
            How many of them were used already.

        Raises
        ------
        ParameterError
            If an index is not that of an example, or there are too many, or start is out of range.
        """
        if order is not None:
            order = np.asarray(order)
            if order.ndim != 1 or not 0 < len(order) <= len(self.order):
                raise ParameterError(
                    f"Resident.begin: expected 1 to {len(self.order)} indices, got {order.shape}"
                )
            if order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < len(self):
                raise ParameterError(
                    f"Resident.begin: expected indices in 0..{len(self) - 1}, got "
                    f"{order.min()}..{order.max()} ({order.dtype})"
                )
            self.order[: len(order)] = self.xp.asarray(order.astype(np.int32))
            self.count = len(order)
        start = _spec.integer("Resident.begin", "start", start, 0)
        if start > self.count:
            raise ParameterError(f"Resident.begin: start must be in 0..{self.count}, got {start}")
        self._used = start
        self.realign()

    def realign(self) -> None:
        """Have the device's counters say what the host's do: a step that failed on its way may have
        advanced them."""
        self.position.fill(self._used)
        self.done.fill(self._recorded)

    @property
    def left(self) -> int:
        """Examples of the epoch that no step has taken."""
        return self.count - self._used

    def taken(self, examples: int) -> None:
        """Note that a step was launched which takes so many examples and records its loss.

        Raises
        ------
        ParameterError
            If so many are not left.
        """
        if examples > self.left:
            raise ParameterError(
                f"Resident: {examples} examples wanted, {self.left} of the epoch's "
                f"{self.count} are left; begin() starts the next"
            )
        self._used += examples
        self._recorded += 1

    @property
    def unread(self) -> int:
        """Steps recorded since the last `read`."""
        return self._recorded - self._read

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses and hits of the steps since the last `read`; waits for the device.

        Returns
        -------
        losses : (steps,) float64 host array
        hits : (steps,) int64 host array
            Examples whose label has the largest output.

        Raises
        ------
        DataError
            If more steps were done than there are slots.
        """
        count, slots = self.unread, len(self.record)
        if count > slots:
            raise DataError(
                f"Resident.read: {count} steps were done since the last one, but only {slots} are "
                "kept; read more often, or give more slots"
            )
        if not count:
            return np.empty(0), np.empty(0, np.int64)
        rows = backend.to_cpu(self.record)
        first, self._read = self._read, self._recorded
        rows = rows[np.arange(first, first + count) % slots]
        return rows[:, 0].astype(np.float64), rows[:, 1].astype(np.int64)

    def batch(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return images and labels of the places start..stop-1 of the order, as they are."""
        chosen = self.order[start:stop]
        return self.images.take(chosen, axis=0), self.labels.take(chosen)
