"""Loss and hits of each batch of an epoch, on the device until somebody looks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend

__all__ = ["Tally"]


class Tally:
    """What the batches of one epoch gave.

    Parameters
    ----------
    steps : int
        Batches in an epoch.
    size : int
        Examples in a batch; the last one may have fewer.
    count : int
        Examples in an epoch.
    dtype : dtype
        Of the parameters.
    summed : bool
        Whether a batch's loss is the sum over its examples, not the mean.
    """

    def __init__(self, steps: int, size: int, count: int, dtype: np.dtype, summed: bool) -> None:
        self.steps, self.size, self.count, self.summed = steps, size, count, summed
        self._dtype = np.float64 if dtype == np.float64 else np.float32
        self._losses: Any = None
        self._hits: Any = None

    def place(self, xp: Any) -> None:
        """Have the arrays where the network computes; empty ones if an epoch begins."""
        if self._losses is None:
            self._losses = xp.zeros(self.steps, self._dtype)
            self._hits = xp.zeros(self.steps, np.int64)
        elif backend.xp_of(self._losses) is not xp:
            place = "numpy" if xp is np else "cupy"
            self._losses = backend.to_backend(self._losses, place)
            self._hits = backend.to_backend(self._hits, place)

    def record(self, step: int, loss: Any, hits: Any) -> None:
        """Keep what batch number `step` gave; a GPU is not waited for."""
        self._losses[step] = loss
        self._hits[step] = hits

    def store(self, start: int, losses: np.ndarray, hits: np.ndarray) -> None:
        """Keep what the batches from number `start` on gave, where the arrays are on the host."""
        self._losses[start : start + len(losses)] = losses
        self._hits[start : start + len(hits)] = hits

    def first_bad(self, start: int, stop: int) -> tuple[int, float] | None:
        """The first of these batches whose loss is not finite, and the loss; waits for a GPU."""
        values = backend.to_cpu(self._losses[start:stop])
        bad = np.flatnonzero(~np.isfinite(values))
        return (start + int(bad[0]), float(values[bad[0]])) if bad.size else None

    def means(self, done: int) -> tuple[float, float]:
        """Mean loss and accuracy of the first `done` batches."""
        losses = backend.to_cpu(self._losses[:done]).astype(np.float64)
        hits = int(backend.to_cpu(self._hits[:done]).sum())
        sizes = np.full(done, float(self.size))
        count = min(done * self.size, self.count)
        sizes[-1] = count - (done - 1) * self.size
        total = losses.sum() if self.summed else float(losses @ sizes)
        return float(total) / count, hits / count

    def take(self) -> list[float]:
        """The epoch's losses; the next epoch begins."""
        losses = backend.to_cpu(self._losses).tolist()
        self._losses = self._hits = None
        return losses

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        if self._losses is None:
            return {"losses": None, "hits": None}
        return {"losses": backend.to_cpu(self._losses), "hits": backend.to_cpu(self._hits)}

    def load(self, losses: Any, hits: Any) -> None:
        """The inverse of `state`."""
        self._losses, self._hits = losses, hits
