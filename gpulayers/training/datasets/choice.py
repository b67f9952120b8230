"""Choosing by labels: which examples are held out for validation, how much a class counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import _spec
from gpulayers.errors import DataError, ParameterError, suggest
from gpulayers.random import Generator

__all__ = ["class_weights", "divide"]

_SPLIT_STREAM = 2**61  # apart from those of training
_SCHEMES = ("balanced", "sqrt", "effective")


def divide(
    labels: np.ndarray,
    validation: float,
    seed: int,
    stratified: bool,
    owner: str = "train_validation_split",
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the examples: return the indices kept and those held out, each ascending.

    Parameters
    ----------
    labels : (n,) integers
    validation : float in (0, 1), or int
        The share to hold out, or how many.
    seed : int
        The choice is a function of labels, seed and the other arguments alone.
    stratified : bool
        Hold out of each class the same share, rounded so that the sum is right (largest remainders
        first), and never the last example of a class.
    owner : str
        Whom errors name.

    Raises
    ------
    ParameterError
        If `validation` is out of range.
    DataError
        If there are too few examples to hold out as many.
    """
    name, n = owner, len(labels)
    number = _spec.plain(validation)
    if isinstance(number, int) and not isinstance(number, bool):
        count = _spec.integer(name, "validation", number, 1)
    else:
        share = _spec.real(name, "validation", number, 0.0, 1.0, open_low=True, open_high=True)
        count = max(1, round(share * n))
    _spec.flag(name, "stratified", stratified)
    generator = Generator(seed, _SPLIT_STREAM)
    if not stratified:
        if count >= n:
            raise DataError(f"{name}: cannot hold out {count} of {n} examples and keep one")
        chosen = generator.permutation(n)[:count]
    else:
        chosen = _stratified(name, labels, count, generator)
    mask = np.zeros(n, dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _stratified(name: str, labels: np.ndarray, count: int, generator: Generator) -> np.ndarray:
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    sizes = np.array([len(m) for m in members])
    if count > int((sizes - 1).sum()):
        raise DataError(
            f"{name}: cannot hold out {count} of {len(labels)} examples and keep one of each of "
            f"the {len(members)} classes"
        )
    quota = count * sizes / len(labels)
    taken = np.floor(quota).astype(np.int64)  # below the sizes, as one of each class stays
    while taken.sum() < count:
        # the class that lacks most of its quota gets the next one, the first of equals
        lack = np.where(taken < sizes - 1, quota - taken, -np.inf)
        taken[int(np.argmax(lack))] += 1
    parts = [
        m[generator.permutation(len(m))[:k]] for m, k in zip(members, taken.tolist(), strict=True)
    ]
    return np.concatenate(parts)


def class_weights(
    labels: Any, classes: int | None = None, scheme: str = "balanced", beta: float = 0.999
) -> list[float]:
    """Return how much an example of each class should count, so that rare classes count more.

    For `losses.SoftmaxCrossEntropy(class_weights=...)`. With n_c examples of class c, of which k
    classes have any:

    - "balanced": n / (k n_c), each class counts the same in the sum (King & Zeng, "Logistic
      regression in rare events data", 2001, section 4.2);
    - "sqrt": the square root of that, a compromise;
    - "effective": (1 - beta) / (1 - beta^n_c), scaled to a mean of 1 over the classes that have
      examples (Cui et al., "Class-balanced loss based on effective number of samples", 2019).

    Parameters
    ----------
    labels : (n,) integers >= 0, or a `Split`
    classes : int, optional
        Length of the result; None is the highest label + 1.
    scheme : {"balanced", "sqrt", "effective"}
    beta : float in [0, 1)
        For "effective".

    Returns
    -------
    list of float
        0 for a class without examples: no loss depends on it.

    Raises
    ------
    ParameterError
        If an argument is out of range.
    DataError
        If there are no labels, or they are no integers in 0..classes - 1.
    """
    name = "class_weights"
    values = np.asarray(getattr(labels, "labels", labels))
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels must be a sequence of at least one integer, got {values.dtype} "
            f"{values.shape}"
        )
    highest = int(values.max())
    length = highest + 1 if classes is None else _spec.integer(name, "classes", classes, 1)
    if int(values.min()) < 0 or highest >= length:
        raise DataError(f"{name}: labels must be in 0..{length - 1}, got {values.min()}..{highest}")
    if scheme not in _SCHEMES:
        raise ParameterError(
            f"{name}: scheme must be one of {', '.join(_SCHEMES)}, got {scheme!r}"
            + suggest(str(scheme), _SCHEMES)
        )
    beta = float(_spec.real(name, "beta", beta, 0.0, 1.0, open_high=True))
    counts = np.bincount(values, minlength=length).astype(np.float64)
    seen = counts > 0
    weights = np.zeros(length)
    if scheme == "effective":
        # 1 - beta^n without cancellation for beta near 1
        weights[seen] = (1.0 - beta) / -np.expm1(counts[seen] * _log(beta))
        weights[seen] /= weights[seen].mean()
    else:
        weights[seen] = values.size / (int(seen.sum()) * counts[seen])
        if scheme == "sqrt":
            weights = np.sqrt(weights)
    return weights.tolist()


def _log(x: float) -> float:
    return float(np.log(x)) if x else -np.inf
