"""Batches for the training loop, gathered where the network computes."""

from __future__ import annotations

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.training.data import Split

__all__ = ["Feed"]

_SHARE = 0.5  # of the device's free memory that a dataset may take


class Feed:
    """One split of a dataset, ready to give batches on a backend.

    On a GPU the images go there once, as they are (a byte a pixel), if they fit into half of the
    free memory; batches are then gathered on the device, and no step copies anything from the host.
    A larger set stays on the host and each batch is copied.

    Parameters
    ----------
    split : Split
    name : "numpy" or "cupy"
    """

    def __init__(self, split: Split, name: str) -> None:
        self.xp = backend.module(name)
        self.count = len(split)
        self._images: Array = split.images
        self._labels: Array = split.labels
        self._order: Array = None
        self.resident = name == "numpy"
        if not self.resident and _fits(self.xp, split):
            try:
                self._images = self.xp.asarray(split.images)
                self.resident = True
            except MemoryError:  # CuPy's out-of-memory error is one
                self._images = split.images
        if self.resident:
            self._labels = self.xp.asarray(split.labels)

    def set_order(self, order: np.ndarray | None) -> None:
        """Give out the examples in this order (host indices), from now on; None: as they lie."""
        self._order = self.xp.asarray(order) if order is not None and self.resident else order

    def batch(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return (images, labels) of the places start..stop-1 of the order."""
        if self._order is None:
            X, y = self._images[start:stop], self._labels[start:stop]
        else:
            chosen = self._order[start:stop]
            X, y = self._images.take(chosen, axis=0), self._labels.take(chosen)
        if not self.resident:
            X, y = self.xp.asarray(X), self.xp.asarray(y)
        return X, y


def _fits(xp: object, split: Split) -> bool:
    free, _ = xp.cuda.runtime.memGetInfo()  # pyright: ignore[reportAttributeAccessIssue]
    return split.images.nbytes + split.labels.nbytes <= _SHARE * free
