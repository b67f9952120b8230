"""In which order an epoch takes the examples, and which.

A sampler turns a generator of random numbers into indices; a trainer gives it a generator that is
a function of seed and epoch, so an epoch's order can be had again from these two.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gpulayers import _spec
from gpulayers.errors import ParameterError
from gpulayers.random import Generator

__all__ = [
    "BalancedSampler",
    "Sampler",
    "SequentialSampler",
    "ShuffledSampler",
    "SubsetSampler",
    "WeightedSampler",
]


class Sampler(ABC):
    """Base class: ``len(sampler)`` examples an epoch, those at ``sampler.order(generator)``."""

    @abstractmethod
    def __len__(self) -> int:
        """Examples in an epoch, the same in each."""

    @abstractmethod
    def order(self, generator: Generator) -> np.ndarray:
        """Return an epoch's indices: (len(self),) int64 on the host.

        Parameters
        ----------
        generator : Generator
            Its numbers decide; it moves on.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)})"


class SequentialSampler(Sampler):
    """0, 1, ... n - 1.

    Parameters
    ----------
    n : int >= 1
    """

    def __init__(self, n: int) -> None:
        self.n = _spec.integer(type(self).__name__, "n", n, 1)

    def __len__(self) -> int:
        return self.n

    def order(self, generator: Generator) -> np.ndarray:
        return np.arange(self.n, dtype=np.int64)


class ShuffledSampler(SequentialSampler):
    """Every example once, in random order: `Generator.permutation`.

    Parameters
    ----------
    n : int >= 1
    """

    def order(self, generator: Generator) -> np.ndarray:
        return generator.permutation(self.n)


class SubsetSampler(Sampler):
    """Some of the examples.

    Parameters
    ----------
    indices : sequence of int >= 0
        One may stand there several times.
    shuffle : bool
        Whether their order is mixed anew in each epoch.

    Raises
    ------
    ParameterError
        If there is none, or one is no integer >= 0.
    """

    def __init__(self, indices: Any, shuffle: bool = True) -> None:
        values = np.asarray(indices)
        if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
            raise ParameterError(
                "SubsetSampler: indices must be a sequence of at least one integer, got "
                f"{values.dtype} {values.shape}"
            )
        if int(values.min()) < 0:
            raise ParameterError(f"SubsetSampler: indices must be >= 0, got {values.min()}")
        self.indices = values.astype(np.int64)
        self.shuffle = _spec.flag("SubsetSampler", "shuffle", shuffle)

    def __len__(self) -> int:
        return len(self.indices)

    def order(self, generator: Generator) -> np.ndarray:
        if not self.shuffle:
            return self.indices.copy()
        return self.indices[generator.permutation(len(self.indices))]

    def __repr__(self) -> str:
        return f"SubsetSampler({_digest(self.indices)}, shuffle={self.shuffle})"


class WeightedSampler(Sampler):
    """Examples drawn with chances in proportion to their weights.

    With replacement by the inverse of the summed weights; without by Efraimidis & Spirakis,
    "Weighted random sampling with a reservoir" (2006): those with the largest U^(1 / weight).

    Parameters
    ----------
    weights : sequence of float >= 0, one for each example
    count : int, optional
        Draws in an epoch; None is as many as there are examples (or, without replacement, weights
        above 0).
    replacement : bool

    Raises
    ------
    ParameterError
        If a weight is negative or not finite, none is above 0, or without replacement `count`
        exceeds those that are.
    """

    def __init__(self, weights: Any, count: int | None = None, replacement: bool = True) -> None:
        try:
            values = np.array(weights, dtype=np.float64)
        except (TypeError, ValueError):
            raise ParameterError(
                f"WeightedSampler: weights must be a sequence of numbers, got {weights!r}"
            ) from None
        if values.ndim != 1 or not values.size:
            raise ParameterError(
                f"WeightedSampler: weights must be a sequence of numbers, got shape {values.shape}"
            )
        if not np.isfinite(values).all() or values.min() < 0 or not values.max() > 0:
            raise ParameterError(
                "WeightedSampler: weights must be finite and >= 0, and one at least above 0"
            )
        self.weights = values / values.max()  # the sum of large ones does not overflow
        self.replacement = _spec.flag("WeightedSampler", "replacement", replacement)
        possible = int((values > 0).sum())
        default = len(values) if replacement else possible
        self.count = (
            default if count is None else _spec.integer("WeightedSampler", "count", count, 1)
        )
        if not replacement and self.count > possible:
            raise ParameterError(
                f"WeightedSampler: without replacement there are {possible} examples of a weight "
                f"above 0 for count={self.count}"
            )

    def __len__(self) -> int:
        return self.count

    def order(self, generator: Generator) -> np.ndarray:
        if self.replacement:
            limits = np.cumsum(self.weights)
            drawn: np.ndarray = generator.uniform((self.count,), np.float64, np) * limits[-1]
            places: np.ndarray = np.searchsorted(limits, drawn, side="right")
            # rounding must not lead past the last example that can be drawn
            return np.minimum(places, int(np.flatnonzero(self.weights)[-1])).astype(np.int64)
        u = 1.0 - generator.uniform(self.weights.shape, np.float64, np)
        with np.errstate(divide="ignore", invalid="ignore"):
            # in logarithms nothing overflows; a weight of 0 gives infinity and comes last
            keys = np.log(-np.log(u)) - np.log(self.weights)
        return np.argsort(keys, kind="stable")[: self.count].astype(np.int64)

    def __repr__(self) -> str:
        return (
            f"WeightedSampler({_digest(self.weights)}, count={self.count}, "
            f"replacement={self.replacement})"
        )


class BalancedSampler(Sampler):
    """Every class equally often: examples of small classes again and again, some of large ones.

    Each class that has examples gets ``count / classes`` of the epoch (the first ones one more if
    that is no whole number). A class's examples are taken in random order, all of them before one
    comes again, so in an epoch their counts differ by at most one. Classes without examples are
    left out.

    Parameters
    ----------
    labels : (n,) integers
        Or a `Split`, whose labels are taken.
    count : int, optional
        Draws in an epoch; None is as many as there are examples.

    Raises
    ------
    ParameterError
        If there is no label, or they are no integers.
    """

    def __init__(self, labels: Any, count: int | None = None) -> None:
        values = np.asarray(getattr(labels, "labels", labels))
        if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
            raise ParameterError(
                "BalancedSampler: labels must be a sequence of at least one integer, got "
                f"{values.dtype} {values.shape}"
            )
        self.labels = values.astype(np.int64)
        self.members = [np.flatnonzero(values == c) for c in np.unique(values)]
        default = len(values)
        self.count = (
            default if count is None else _spec.integer("BalancedSampler", "count", count, 1)
        )

    def __len__(self) -> int:
        return self.count

    def order(self, generator: Generator) -> np.ndarray:
        share, more = divmod(self.count, len(self.members))
        parts: list[np.ndarray] = []
        for i, members in enumerate(self.members):
            wanted = share + (i < more)
            while wanted > 0:
                part = members[generator.permutation(len(members))[:wanted]]
                parts.append(part)
                wanted -= len(part)
        together = np.concatenate(parts)
        return together[generator.permutation(self.count)].astype(np.int64)

    def __repr__(self) -> str:
        return f"BalancedSampler({_digest(self.labels)}, count={self.count})"


def _digest(values: np.ndarray) -> str:
    """A few characters that tell one array from another, for comparing runs."""
    return f"{len(values)} values, {hashlib.sha256(values.tobytes()).hexdigest()[:12]}"
