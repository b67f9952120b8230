"""Labels of blended examples, and the loss that takes them."""

from __future__ import annotations

from typing import Any

from gpulayers import _spec
from gpulayers.backend import Array, xp_of
from gpulayers.errors import NotInitializedError, ShapeError

__all__ = ["MixedLabels", "MixedLoss"]


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
