"""Loss functions and their gradients.

SquaredError and CrossEntropy are numpy-ml's: static, targets first, summed over the batch.
SoftmaxCrossEntropy is ours: integer labels and logits, softmax and loss in one stable operation.
Losses are 0-d arrays on the arrays' backend, so a GPU is not waited for; ``float(loss)`` waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gpulayers.activations import ActivationBase
from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError, NotInitializedError, ParameterError, ShapeError, suggest
from gpulayers.ops.softmax import softmax_cross_entropy_backward, softmax_cross_entropy_forward

__all__ = ["CrossEntropy", "ObjectiveBase", "SoftmaxCrossEntropy", "SquaredError"]


class ObjectiveBase(ABC):
    """Base class of losses: ``loss`` and ``grad``, and calling the object is ``loss``."""

    def __call__(self, y: Array, y_pred: Array) -> Array:
        """Return ``loss(y, y_pred)``."""
        return self.loss(y, y_pred)

    @staticmethod
    @abstractmethod
    def loss(y: Array, y_pred: Array) -> Array:
        """Return the loss of predictions `y_pred` for targets `y`, a 0-d array."""

    @staticmethod
    @abstractmethod
    def grad(*args: Any, **kwargs: Any) -> Array:
        """Return the gradient of the loss: ``grad(y, y_pred, ...)``."""

    def __str__(self) -> str:
        return type(self).__name__


def _pair(name: str, y: Array, y_pred: Array) -> Array:
    """Check targets and predictions; return the targets in the predictions' dtype."""
    xp_of(y, y_pred)
    if not is_floating(y_pred.dtype):
        raise DTypeError(f"{name}: y_pred must be a floating array, got {y_pred.dtype}")
    if not (is_floating(y.dtype) or y.dtype.kind in "iub"):
        raise DTypeError(f"{name}: y must be an array of numbers, got {y.dtype}")
    if y.shape != y_pred.shape:
        raise ShapeError(f"{name}: y_pred must have y's shape {y.shape}, got {y_pred.shape}")
    return y.astype(y_pred.dtype, copy=False)


def _wide(a: Array) -> Array:
    """Half types are added up in float32."""
    return a.astype(np.float32) if a.dtype.itemsize < 4 else a


class SquaredError(ObjectiveBase):
    """Half the sum of squares, 0.5 * ||y_pred - y||^2, over all elements."""

    @staticmethod
    def loss(y: Array, y_pred: Array) -> Array:
        """Return the loss.

        Parameters
        ----------
        y : numbers
            Targets; another dtype than y_pred's is converted.
        y_pred : floating, of y's shape

        Returns
        -------
        0-d array of y_pred's dtype (float32 for half types)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        difference = _wide(y_pred) - _wide(_pair("SquaredError.loss", y, y_pred))
        return xp_of(y_pred).asarray(0.5 * (difference * difference).sum())

    @staticmethod
    def grad(y: Array, y_pred: Array, z: Array, act_fn: ActivationBase) -> Array:
        """Return the gradient with respect to the pre-activation: (y_pred - y) * act_fn.grad(z).

        Parameters
        ----------
        y, y_pred : as for `loss`
        z : floating, of y's shape
            The last layer's pre-activation, with y_pred = act_fn(z).
        act_fn : ActivationBase

        Returns
        -------
        array of y_pred's shape and dtype

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        name = "SquaredError.grad"
        targets = _pair(name, y, y_pred)
        xp = xp_of(y_pred, z)
        if z.shape != y_pred.shape:
            raise ShapeError(f"{name}: z must have y_pred's shape {y_pred.shape}, got {z.shape}")
        slope = act_fn.grad(z).astype(y_pred.dtype, copy=False)
        return xp.asarray((y_pred - targets) * slope)


class CrossEntropy(ObjectiveBase):
    """-sum(y * log(y_pred)) over examples and classes, of probabilities as a softmax gives them.

    Unlike numpy-ml's, targets need not be 0 or 1: smoothed labels work. For training
    `SoftmaxCrossEntropy` is the stabler and faster choice.
    """

    @staticmethod
    def loss(y: Array, y_pred: Array) -> Array:
        """Return the loss; a probability p counts as p + 2.2e-16, so that 0 stays finite.

        Parameters
        ----------
        y : (n_ex, n_classes), numbers in [0, 1]
            Targets, usually one-hot rows.
        y_pred : (n_ex, n_classes), floating
            Probabilities; each row sums to one.

        Returns
        -------
        0-d array of y_pred's dtype (float32 for half types)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            On NumPy, for targets outside [0, 1] or rows that are no probabilities. On a GPU
            looking would stall the device: there the loss is NaN.
        """
        targets, probs, targets_fit, rows_fit = CrossEntropy._checked("loss", y, y_pred)
        xp = xp_of(y_pred)
        total = -(targets * xp.log(xp.maximum(probs, 0.0) + float(np.finfo(np.float64).eps))).sum()
        return xp.asarray(xp.where(targets_fit & rows_fit, total, probs.dtype.type("nan")))

    @staticmethod
    def grad(y: Array, y_pred: Array) -> Array:
        """Return the gradient with respect to the INPUT of the softmax that gave `y_pred`.

        It is y_pred - y for targets whose rows sum to one, y_pred * sum(y) - y in general.
        Arguments and errors as `loss`, but on a GPU bad values go unnoticed.
        """
        targets, probs, _, _ = CrossEntropy._checked("grad", y, y_pred)
        gradient = probs * targets.sum(axis=1, keepdims=True) - targets
        return gradient.astype(y_pred.dtype, copy=False)

    @staticmethod
    def _checked(method: str, y: Array, y_pred: Array) -> tuple[Array, Array, Any, Any]:
        """Targets, probabilities, and two 0-d booleans: whether each holds what it should."""
        name = f"CrossEntropy.{method}"
        xp = xp_of(y, y_pred)
        if y_pred.ndim != 2:
            raise ShapeError(f"{name}: y_pred must be (n_ex, n_classes), got {y_pred.shape}")
        if y.ndim == 1:
            raise ShapeError(
                f"{name}: y must be (n_ex, n_classes) like y_pred, got {y.shape}; for integer "
                "labels and logits there is SoftmaxCrossEntropy"
            )
        targets, probs = _wide(_pair(name, y, y_pred)), _wide(y_pred)
        # the sum of n rounded probabilities is off by a few roundings
        room = 1e-5 if y_pred.dtype == np.float64 else 1e-3 if y_pred.dtype == np.float32 else 3e-2
        # NaN passes: a loss that is NaN says more than a complaint about its rows
        targets_fit = ~((targets < 0) | (targets > 1)).any()
        off = xp.abs(probs.sum(axis=1) - 1.0)
        rows_fit = ~((probs < 0) | (probs > 1.0 + room)).any() & ~(off > room).any()
        if xp is np:
            if not targets_fit:
                raise ParameterError(f"{name}: targets y must be in [0, 1], got others")
            if not rows_fit:
                worst = float(off.max()) if off.size else 0.0
                raise ParameterError(
                    f"{name}: each row of y_pred must be probabilities that sum to one (the output "
                    f"of a softmax); a sum is off by {worst:.3g}, or an entry is outside [0, 1]"
                )
        return targets, probs, targets_fit, rows_fit


class SoftmaxCrossEntropy:
    """Cross-entropy of integer labels and logits: log(sum_j exp z_j) - z_label for each example.

    Stable for logits of any size, and the gradient with respect to the logits is
    (softmax(z) - onehot(label)), divided by the batch size for the mean.
    (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 6.2.2.3)

        objective = SoftmaxCrossEntropy()
        loss = objective(labels, logits)        # 0-d array, nothing waits for a GPU
        net.backward(objective.backward())

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Over the examples. numpy-ml's losses sum; the mean keeps learning rates independent of the
        batch size.

    Raises
    ------
    ParameterError
        If the reduction is unknown.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum"):
            raise ParameterError(
                f"SoftmaxCrossEntropy: reduction must be 'mean' or 'sum', got {reduction!r}"
                + suggest(str(reduction), ("mean", "sum"))
            )
        self.reduction = reduction
        self._retained: tuple[Array, Array] | None = None

    def __str__(self) -> str:
        return f"SoftmaxCrossEntropy(reduction={self.reduction})"

    def __call__(self, labels: Array, logits: Array) -> Array:
        """Return ``forward(labels, logits)``."""
        return self.forward(labels, logits)

    def forward(self, labels: Array, logits: Array) -> Array:
        """Return the loss, and keep what `backward` needs.

        Parameters
        ----------
        labels : (n_ex,), integer, 0 <= label < n_classes
        logits : (n_ex, n_classes), floating

        Returns
        -------
        0-d array of the logits' dtype (float32 for half types); 0 for an empty batch

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            On NumPy, for a label out of range; on a GPU the loss is NaN instead.
        """
        loss, probs = self._forward(labels, logits)
        self._retained = (probs, labels)
        return loss

    def backward(self) -> Array:
        """Return the gradient of the last `forward`'s loss: (n_ex, n_classes), the logits' dtype.

        Raises
        ------
        NotInitializedError
            Before the first `forward`.
        """
        if self._retained is None:
            raise NotInitializedError("SoftmaxCrossEntropy: backward needs a forward pass first")
        return self._backward(*self._retained)

    def loss(self, labels: Array, logits: Array) -> Array:
        """Return the loss and keep nothing (for validation); arguments and errors as `forward`."""
        return self._forward(labels, logits)[0]

    def grad(self, labels: Array, logits: Array) -> Array:
        """Return the gradient with respect to the logits and keep nothing; as `forward` else."""
        return self._backward(self._forward(labels, logits)[1], labels)

    def _forward(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        losses, probs = softmax_cross_entropy_forward(logits, labels)
        total = _wide(losses).sum()
        if self.reduction == "mean":
            total = total / max(labels.shape[0], 1)
        return xp_of(logits).asarray(total), probs

    def _backward(self, probs: Array, labels: Array) -> Array:
        scale = 1.0 / max(labels.shape[0], 1) if self.reduction == "mean" else 1.0
        return softmax_cross_entropy_backward(probs, labels, scale)
