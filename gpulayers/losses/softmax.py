"""Cross-entropy of integer labels and logits, with label smoothing, class weights, ignored rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import _spec
from gpulayers._types import is_sequence
from gpulayers.backend import Array, xp_of
from gpulayers.errors import NotInitializedError, ParameterError, ShapeError, suggest
from gpulayers.losses._base import wide
from gpulayers.ops.softmax import softmax_cross_entropy_backward, softmax_cross_entropy_forward


class SoftmaxCrossEntropy:
    """Cross-entropy of integer labels and logits: log(sum_j exp z_j) - z_label for each example.

    Stable for logits of any size, and the gradient with respect to the logits is
    (softmax(z) - onehot(label)), divided by the batch size for the mean.
    (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 6.2.2.3)

        objective = SoftmaxCrossEntropy()
        loss = objective(labels, logits)        # 0-d array, nothing waits for a GPU
        net.backward(objective.backward())

    With smoothing s and class weights w, an example with label y has the loss

        (1 - s) w_y (-log p_y) + s / n_classes * sum_k w_k (-log p_k)

    and the mean divides by the sum of w_y over the examples that count, as PyTorch's.
    (Smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016, section 7)

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Over the examples. numpy-ml's losses sum; the mean keeps learning rates independent of the
        batch size.
    label_smoothing : float
        In [0, 1]: the share of the target that is spread evenly over the classes.
    class_weights : sequence of n_classes floats >= 0, optional
        How much an example of each class counts.
    ignore_index : int, optional
        Examples with this label count nothing, e.g. -100 for padding; their logits may be anything.
        If all are ignored the loss is 0 (PyTorch's mean is NaN).

    Raises
    ------
    ParameterError
        If the reduction is unknown or another argument out of range.
    """

    def __init__(
        self,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Array | None = None,
        ignore_index: int | None = None,
    ) -> None:
        name = "SoftmaxCrossEntropy"
        if reduction not in ("mean", "sum"):
            raise ParameterError(
                f"{name}: reduction must be 'mean' or 'sum', got {reduction!r}"
                + suggest(str(reduction), ("mean", "sum"))
            )
        self.reduction = reduction
        self.label_smoothing = _spec.real(name, "label_smoothing", label_smoothing, 0.0, 1.0)
        if class_weights is not None:
            given: Any = class_weights
            values = given.tolist() if hasattr(given, "tolist") else given
            if not is_sequence(values) or not values:
                raise ParameterError(
                    f"{name}: class_weights must be one number for each class, got {values!r}"
                )
            class_weights = [float(_spec.real(name, "a class weight", w, 0.0)) for w in values]
        self.class_weights = class_weights
        if ignore_index is not None:
            ignore_index = _spec.integer(name, "ignore_index", ignore_index, -(2**63))
        self.ignore_index = ignore_index
        self._retained: tuple[Array, Array, Array | None] | None = None
        self._on_device: dict[Any, Array] = {}

    @property
    def _plain(self) -> bool:
        """Whether every example counts the same, for its label alone."""
        return not self.label_smoothing and self._counts_all

    @property
    def _counts_all(self) -> bool:
        """Whether every example counts the same."""
        return self.class_weights is None and self.ignore_index is None

    def __str__(self) -> str:
        extra = {
            "label_smoothing": self.label_smoothing or None,
            "class_weights": self.class_weights,
            "ignore_index": self.ignore_index,
        }
        given = "".join(f", {key}={value}" for key, value in extra.items() if value is not None)
        return f"SoftmaxCrossEntropy(reduction={self.reduction}{given})"

    def __call__(self, labels: Array, logits: Array) -> Array:
        """Return ``forward(labels, logits)``."""
        return self.forward(labels, logits)

    def forward(self, labels: Array, logits: Array) -> Array:
        """Return the loss, and keep what `backward` needs.

        Parameters
        ----------
        labels : (n_ex,), integer, 0 <= label < n_classes, or `ignore_index`
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
        loss, probs, counts = self._forward(labels, logits)
        self._retained = (probs, labels, counts)
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
        _, probs, counts = self._forward(labels, logits)
        return self._backward(probs, labels, counts)

    def _forward(self, labels: Array, logits: Array) -> tuple[Array, Array, Array | None]:
        if not self._plain:
            return self._general_forward(labels, logits)
        losses, probs = softmax_cross_entropy_forward(logits, labels)
        total = wide(losses).sum()
        if self.reduction == "mean":
            total = total / max(labels.shape[0], 1)
        return xp_of(logits).asarray(total), probs, None

    def _backward(self, probs: Array, labels: Array, counts: Array | None) -> Array:
        if counts is not None:
            return self._general_backward(probs, labels, counts)
        scale = 1.0 / max(labels.shape[0], 1) if self.reduction == "mean" else 1.0
        return softmax_cross_entropy_backward(probs, labels, scale)

    # ------------------------------------------------- smoothing, class weights, ignored examples

    def _general_forward(self, labels: Array, logits: Array) -> tuple[Array, Array, Array]:
        """Loss, probabilities, and how much each example counts: w_y, or 0 if it is ignored."""
        xp = xp_of(labels, logits)
        counted, safe = self._counted(labels)
        losses, probs = softmax_cross_entropy_forward(logits, safe)
        losses = wide(losses)
        classes = logits.shape[1]
        weights = self._weights(xp, classes, losses.dtype)
        # out of range, which on a GPU is not looked at, the loss is NaN whatever the weight
        counts = xp.take(weights, xp.clip(safe, 0, classes - 1))
        share = self.label_smoothing
        loss = (1.0 - share) * counts * losses
        if share:
            z = wide(logits)
            shifted = z - z.max(axis=1, keepdims=True)
            logs = xp.log(xp.exp(shifted).sum(axis=1, keepdims=True)) - shifted  # -log p
            loss = loss + (share / classes) * (weights * logs).sum(axis=1)
        if counted is not None:
            loss, counts = xp.where(counted, loss, 0.0), xp.where(counted, counts, 0.0)
            counts = counts.astype(losses.dtype, copy=False)
        total = loss.sum()
        if self.reduction == "mean":
            total = total * self._scale(counts)
        return xp.asarray(total.astype(losses.dtype, copy=False)), probs, counts

    def _general_backward(self, probs: Array, labels: Array, counts: Array) -> Array:
        """(1 - s) w_y (p - onehot) + s / n_classes (p sum(w) - w), scaled; 0 where ignored."""
        xp = xp_of(probs)
        counted, safe = self._counted(labels)
        p, classes = wide(probs), probs.shape[1]
        weights = self._weights(xp, classes, p.dtype)
        hit = safe[:, None] == xp.arange(classes)[None, :]
        share = self.label_smoothing
        gradient = (1.0 - share) * counts[:, None] * (p - hit)
        if share:
            gradient = gradient + (share / classes) * (p * weights.sum() - weights)
        if counted is not None:
            gradient = xp.where(counted[:, None], gradient, 0.0)
        if self.reduction == "mean":
            gradient = gradient * self._scale(counts)
        return gradient.astype(probs.dtype, copy=False)

    @staticmethod
    def _scale(counts: Array) -> Array:
        """One over the sum of what the examples count; 0 if that is nothing."""
        xp, total = xp_of(counts), counts.sum()
        return xp.where(total > 0, 1.0 / xp.where(total > 0, total, 1.0), 0.0).astype(counts.dtype)

    def _counted(self, labels: Array) -> tuple[Array | None, Array]:
        """Which examples count (None: all), and labels without the ignored ones."""
        xp = xp_of(labels)
        if self.ignore_index is None or labels.dtype.kind not in "iu":
            return None, labels
        counted = labels != self.ignore_index
        return counted, xp.where(counted, labels, 0).astype(labels.dtype, copy=False)

    def _weights(self, xp: Any, classes: int, dtype: Any) -> Array:
        given = self.class_weights
        if given is not None and len(given) != classes:
            raise ShapeError(
                f"SoftmaxCrossEntropy: logits have {classes} classes, there are {len(given)} "
                "class weights"
            )
        key = (xp, classes, np.dtype(dtype), None if given is None else tuple(given))
        if key not in self._on_device:
            host = np.ones(classes) if given is None else np.asarray(given)
            self._on_device[key] = xp.asarray(host.astype(dtype))
        return self._on_device[key]
