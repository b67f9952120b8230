"""Batches for the training loop, gathered and varied where the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.models import Pixels
from gpulayers.models.resident import Resident
from gpulayers.random import Generator
from gpulayers.training.data import LazyImages, Split
from gpulayers.training.prefetch import ahead
from gpulayers.training.samplers import Sampler
from gpulayers.training.transforms import Compose, make_transform

__all__ = ["SHARE", "Feed", "batch_generator", "order_generator"]

SHARE = 0.5  # of the device's free memory that a dataset may take
_SHUFFLE_STREAM = 2**63  # far from the default generator's stream 0 and those it spawns
_VARY_STREAM = 2**62
_BLOCK = 64 << 20  # bytes that go to the device at a time
_THREADS = 2  # that read batches ahead


def order_generator(seed: int, epoch: int) -> Generator:
    """Return the generator of an epoch's order: a function of seed and epoch alone."""
    return Generator(seed, _SHUFFLE_STREAM + epoch)


def batch_generator(seed: int, epoch: int, batch: int) -> Generator:
    """Return the generator of a batch's variations: a function of seed, epoch and batch alone.

    Each batch has 2**64 blocks of the stream for itself.
    """
    generator = Generator(seed, _VARY_STREAM + epoch)
    generator.counter = batch << 64
    return generator


class Feed:
    """One split of a dataset, ready to give batches on a backend.

    On a GPU the images go there once, as they are (a byte a pixel), if they fit into a share of
    the free memory; batches are then gathered and varied on the device, and no step copies
    anything from the host. A larger set stays on the host: threads gather batches ahead, which are
    then copied. On the CPU threads gather and vary them ahead.

        feed = Feed(data.train, "numpy", transform="crop(4), flip")
        for X, labels in feed.batches(64, ShuffledSampler(feed.count), seed=0, epoch=3):
            ...

    Parameters
    ----------
    split : Split
    name : "numpy" or "cupy"
    transform : what `make_transform` takes
        Done to the batches of `batches`.
    normalize : function of the images, optional
        Done to bytes before the first transform that wants floats, see `Compose`.
    threads : int, optional
        That prepare batches; 0 prepares each when it is asked for. None is 2 for images that are
        not in memory, or have to go to a GPU; 1 for those that only a transform waits for; else 0.
    share : float in [0, 1]
        Of the device's free memory (asked when the feed is made) that the split may take.

    Attributes
    ----------
    count : int
        Examples.
    resident : bool
        Whether the images are where the batches are made.
    image_shape : (rows, cols, channels)
        Of the images in `batches`.

    Raises
    ------
    ParameterError
        If an argument is out of range or the transform cannot be read.
    """

    def __init__(
        self,
        split: Split,
        name: str,
        transform: Any = None,
        normalize: Callable[[Array], Array] | None = None,
        threads: int | None = None,
        share: float = SHARE,
    ) -> None:
        self.xp = backend.module(name)
        self.count = len(split)
        self.transform = make_transform(transform)
        if self.transform is not None and normalize is not None:
            self.transform = Compose(self.transform.transforms, normalize)
        self.image_shape: tuple[int, ...] = split.images.shape[1:]
        if self.transform is not None:
            self.image_shape = self.transform.output_shape(self.image_shape)
        share = _spec.real("Feed", "share", share, 0.0, 1.0)
        self._images: Array = split.images
        self._labels: Array = split.labels
        self._order: Array = None
        self.resident = name == "numpy"
        if not self.resident and _fits(self.xp, split, share):
            try:
                self._images = _moved(self.xp, split.images)
                self.resident = True
            except MemoryError:  # CuPy's out-of-memory error is one
                self._images = split.images
        if self.resident:
            self._labels = self.xp.asarray(split.labels)
        if threads is not None:
            threads = _spec.integer("Feed", "threads", threads, 0)
        self._threads = threads

    # -------------------------------------------------------------------------- batches as they are

    def set_order(self, order: np.ndarray | None) -> None:
        """Have `batch` give the examples in this order (host indices); None: as they lie."""
        self._order = self._placed(order)

    def batch(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return (images, labels) of the places start..stop-1 of the order, as they are."""
        return self._arrived(*self._gathered(self._order, start, stop))

    # ----------------------------------------------------------------------------- training batches

    def batches(
        self,
        size: int,
        sampler: Sampler | None = None,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Array, Any]]:
        """Yield the batches of an epoch, from number `start` on: (images, labels), varied.

        A batch is a function of the split, the sampler, the transform, `size`, `seed`, `epoch` and
        its number: an epoch can be taken up again anywhere, and neither the number of threads nor
        the backend plays a part.

        Parameters
        ----------
        size : int >= 1
            Examples in a batch; the last one may be smaller.
        sampler : Sampler, optional
            None takes the examples as they lie.
        seed, epoch, start : int >= 0

        Raises
        ------
        ParameterError
            If an argument is out of range, or the sampler gives indices that are not in the split.
        DataError
            From the iterator, where an image cannot be read.
        """
        size = _spec.integer("Feed.batches", "size", size, 1)
        epoch = _spec.integer("Feed.batches", "epoch", epoch, 0)
        start = _spec.integer("Feed.batches", "start", start, 0)
        count = self.count
        order = None
        if sampler is not None:
            chosen = self.order_of(sampler, seed, epoch)
            count = len(chosen)
            order = self._placed(chosen)
        stop = -(-count // size)
        on_host = self.xp is np

        def gather(i: int) -> tuple[Array, Array]:
            return self._gathered(order, i * size, min((i + 1) * size, count))

        def finish(i: int, X: Array, labels: Array) -> tuple[Array, Any]:
            X, labels = self._arrived(X, labels)
            if self.transform is None:
                return X, labels
            return self.transform(X, labels, batch_generator(seed, epoch, i))

        if on_host:
            return ahead(lambda i: finish(i, *gather(i)), start, stop, self.threads)
        gathered = ahead(gather, start, stop, 0 if self.resident else self.threads)
        return _finished(gathered, finish, start)

    def order_of(self, sampler: Sampler, seed: int, epoch: int) -> np.ndarray:
        """Return the indices that a sampler chooses for an epoch.

        Raises
        ------
        ParameterError
            If one is not in the split.
        """
        chosen = sampler.order(order_generator(seed, epoch))
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.count:
            raise ParameterError(
                f"Feed.batches: {sampler!r} gives indices {chosen.min()}..{chosen.max()}, the "
                f"split has {self.count} examples"
            )
        return chosen

    def on_device(self, pixels: Pixels, dtype: Any, length: int, slots: int) -> Resident | None:
        """Return the split as a `Resident`, for a network that takes its batches by itself.

        None if the images are not on a GPU as they are wanted: they did not fit, or have a
        transform, or are floats of another dtype for whose conversion there is no memory.
        """
        if self.xp is np or not self.resident or self.transform is not None:
            return None
        try:
            return Resident(self._images, self._labels, pixels, dtype, length, slots)
        except MemoryError:
            return None

    @property
    def threads(self) -> int:
        """Threads that prepare batches, where they do."""
        if self._threads is not None:
            return self._threads
        if self.xp is not np or isinstance(self._images, LazyImages):
            return _THREADS
        return 0 if self.transform is None else 1

    # -------------------------------------------------------------------------------------- details

    def _placed(self, order: np.ndarray | None) -> Array:
        return self.xp.asarray(order) if order is not None and self.resident else order

    def _gathered(self, order: Array, start: int, stop: int) -> tuple[Array, Array]:
        """Images and labels of an order's places, where the split is."""
        if order is None:
            return self._images[start:stop], self._labels[start:stop]
        chosen = order[start:stop]
        return self._images.take(chosen, axis=0), self._labels.take(chosen)

    def _arrived(self, X: Array, labels: Array) -> tuple[Array, Array]:
        """The same where the batches are wanted."""
        if self.resident:
            return X, labels
        return self.xp.asarray(X), self.xp.asarray(labels)


def _finished(
    gathered: Iterator[tuple[Array, Array]],
    finish: Callable[[int, Array, Array], tuple[Array, Any]],
    start: int,
) -> Iterator[tuple[Array, Any]]:
    try:
        for i, (X, labels) in enumerate(gathered, start):
            yield finish(i, X, labels)
    finally:
        gathered.close()  # type: ignore[attr-defined] # a generator, whose threads end with it


def _fits(xp: Any, split: Split, share: float = SHARE) -> bool:
    """Whether a split takes at most a share of the memory the device can give."""
    free, _ = xp.cuda.runtime.memGetInfo()
    free += xp.get_default_memory_pool().free_bytes()  # kept for reuse, so not free to the driver
    return split.images.nbytes + split.labels.nbytes <= share * free


def _moved(xp: Any, images: Any) -> Array:
    """The images on the device, moved in parts: those in files never stand in memory whole."""
    target = xp.empty(images.shape, images.dtype)
    step = max(1, _BLOCK // max(1, images.nbytes // len(images)))
    for start in range(0, len(images), step):
        target[start : start + step] = xp.asarray(images[start : start + step])
    return target
