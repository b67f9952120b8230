"""Mixup: blended examples, their labels, and the loss that takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpulayers import _spec
from gpulayers.backend import Array, xp_of
from gpulayers.errors import DTypeError, NotInitializedError, ShapeError
from gpulayers.ops import augment
from gpulayers.random import Generator
from gpulayers.training.image_transforms import Transform

__all__ = ["MixedLabels", "MixedLoss", "Mixup"]


class MixedLabels:
    """Two labels for each example, and how much the first counts.

    What `Mixup` puts in the place of a batch's labels, and `MixedLoss` takes.
    ``labels[part]`` and ``len(labels)`` are as of an array.

    Parameters
    ----------
    first, second : (n,) arrays of labels
    weight : float in [0, 1]
        Of `first`; `second` has the rest.

    Attributes
    ----------
    main : (n,) array
        The labels that count more, for figures such as accuracy: `first` for a weight of 1/2.

    Raises
    ------
    ShapeError
        If the two have different shapes.
    ParameterError
        If the weight is out of range.
    """

    def __init__(self, first: Array, second: Array, weight: float) -> None:
        xp_of(first, second)
        if first.shape != second.shape:
            raise ShapeError(
                f"MixedLabels: first and second must be alike, got {first.shape}, {second.shape}"
            )
        self.first, self.second = first, second
        self.weight = float(_spec.real("MixedLabels", "weight", weight, 0.0, 1.0))

    @property
    def main(self) -> Array:
        return self.first if self.weight >= 0.5 else self.second

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, part: Any) -> MixedLabels:
        return MixedLabels(self.first[part], self.second[part], self.weight)

    def __repr__(self) -> str:
        return f"MixedLabels({self.first!r}, {self.second!r}, weight={self.weight:g})"


class MixedLoss:
    """The loss of blended examples: L = weight L0(first, Z) + (1 - weight) L0(second, Z).

    (Zhang et al., "mixup: beyond empirical risk minimization", 2018: for cross-entropy the same
    as the loss against blended one-hot labels, section 2.) Plain labels go to `base` as they are,
    so one object serves training and validation.

        objective = MixedLoss(SoftmaxCrossEntropy())
        loss = objective.forward(MixedLabels(labels, labels[order], 0.3), logits)
        net.backward(objective.backward())

    Parameters
    ----------
    base : object with ``forward(labels, outputs)``, ``backward()`` and ``loss(labels, outputs)``
    """

    def __init__(self, base: Any) -> None:
        self.base = base
        self.reduction = getattr(base, "reduction", "mean")
        self._gradient: Array | None = None
        self._plain = False

    def __str__(self) -> str:
        return f"MixedLoss({self.base})"

    def __call__(self, labels: Any, outputs: Array) -> Array:
        """Return ``forward(labels, outputs)``."""
        return self.forward(labels, outputs)

    def forward(self, labels: Any, outputs: Array) -> Array:
        """Return the loss, and keep what `backward` needs.

        Parameters
        ----------
        labels : MixedLabels, or what `base` takes
        outputs : what `base` takes

        Raises
        ------
        As `base`.
        """
        self._plain = not isinstance(labels, MixedLabels)
        if self._plain:
            return self.base.forward(labels, outputs)
        weights = (labels.weight, 1.0 - labels.weight)
        total = gradient = None
        for weight, one in zip(weights, (labels.first, labels.second), strict=True):
            loss = self.base.forward(one, outputs)
            dZ = self.base.backward()
            loss, dZ = loss * loss.dtype.type(weight), dZ * dZ.dtype.type(weight)
            total = loss if total is None else total + loss
            gradient = dZ if gradient is None else gradient + dZ
        self._gradient = gradient
        return xp_of(outputs).asarray(total)

    def backward(self) -> Array:
        """Return the gradient of the last `forward`'s loss with respect to the outputs.

        Raises
        ------
        NotInitializedError
            Before the first `forward`.
        """
        if self._plain:
            return self.base.backward()
        if self._gradient is None:
            raise NotInitializedError("MixedLoss: backward needs a forward pass first")
        return self._gradient

    def loss(self, labels: Any, outputs: Array) -> Array:
        """Return the loss and keep nothing (for validation)."""
        if not isinstance(labels, MixedLabels):
            return self.base.loss(labels, outputs)
        first = self.base.loss(labels.first, outputs)
        second = self.base.loss(labels.second, outputs)
        weight = first.dtype.type(labels.weight)
        return xp_of(outputs).asarray(first * weight + second * first.dtype.type(1 - labels.weight))


class Mixup(Transform):
    """Each image is blended with another of the batch, and so are their labels.

    X' = w X + (1 - w) X[order] with a random order and one weight w ~ Beta(alpha, alpha) for the
    batch; the labels become ``MixedLabels(labels, labels[order], w)``, which `MixedLoss` takes.
    (Zhang et al., "mixup: beyond empirical risk minimization", 2018, section 2 and figure 1)

    Parameters
    ----------
    alpha : float > 0
        The paper has 0.1 to 0.4 for ImageNet and 1 for CIFAR-10.

    Raises
    ------
    ParameterError
        If alpha is no finite number above 0.
    DTypeError
        When called with bytes: put `Normalize` before it, or leave that to `Compose`.
    """

    floating = True
    mixes = True
    _settings = ("alpha",)

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = float(_spec.real("Mixup", "alpha", alpha, 0.0, open_low=True))

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        if X.dtype == np.uint8:
            raise DTypeError("Mixup: expected floating images, got uint8; normalise them first")
        xp = xp_of(X, labels)
        if labels.shape != X.shape[:1]:
            raise ShapeError(f"Mixup: {len(X)} images need as many labels, got {labels.shape}")
        weight = _symmetric_beta(generator, self.alpha)
        order = generator.uniform((len(X),), np.float64, xp).argsort()
        mixed = MixedLabels(labels, labels.take(order), weight)
        return augment.mix(X, order, weight), mixed


def _symmetric_beta(generator: Generator, alpha: float) -> float:
    """Draw from Beta(alpha, alpha) as the share of one of two gamma variables.

    (Devroye, "Non-uniform random variate generation", 1986, section IX.4.1.) In logarithms,
    because a gamma variable of small alpha is often below the smallest float.
    """
    numbers = _uniform_numbers(generator)
    a, b = _log_gamma_variate(numbers, alpha), _log_gamma_variate(numbers, alpha)
    if a < b:
        ratio = math.exp(a - b)
        return ratio / (1.0 + ratio)
    return 1.0 / (1.0 + math.exp(b - a))


def _log_gamma_variate(numbers: Iterator[float], alpha: float) -> float:
    """The logarithm of a Gamma(alpha, 1) variable.

    (Marsaglia & Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000; for
    alpha below 1 by their section 6: Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).)
    """
    boosted = alpha + 1.0 if alpha < 1.0 else alpha
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        radius = math.sqrt(-2.0 * math.log(next(numbers)))  # a normal variable by Box and Muller
        x = radius * math.cos(2.0 * math.pi * next(numbers))
        u = next(numbers)
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
    value = math.log(d * v)
    if alpha < 1.0:
        value += math.log(next(numbers)) / alpha
    return value


def _uniform_numbers(generator: Generator) -> Iterator[float]:
    """Endless numbers in (0, 1], drawn on the host 16 at a time."""
    while True:
        yield from (1.0 - generator.uniform((16,), np.float64, np)).tolist()
