"""The loss of a captured step."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models.plan_loss import SquaredErrorOfOutputs
from gpulayers.models.plan_node import contiguous
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._sums import sum_dtype
from gpulayers.optimizers._master import is_half

__all__ = ["StepLoss"]


class StepLoss:
    """A `SoftmaxCrossEntropy` or squared error whose value and gradient are one launch.

    Parameters
    ----------
    loss : one of these, or a trainer's in half types, which computes in float32, scaled; the graph
        does so by itself

    Attributes
    ----------
    serves : bool
        Whether it is such a loss.
    takes_labels : bool
        Whether it takes an integer of each example, not targets of the outputs' shape.
    """

    def __init__(self, loss: Any) -> None:
        self._base = loss.base if hasattr(loss, "scaler") else loss
        self._weights: Any = None
        self.takes_labels = type(self._base) is SoftmaxCrossEntropy
        self.serves = self.takes_labels or type(self._base) is SquaredErrorOfOutputs

    def room(self, n: int, output_shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory for what it takes of `n` examples."""
        xp = backend.module("cupy")
        if self.takes_labels:
            return xp.empty(n, dtype="int64")
        return xp.empty((n, *output_shape), dtype=dtype)

    def scale(self, n: int) -> float:
        """By what the losses of `n` examples are multiplied to be the batch's."""
        base = self._base
        if not self.takes_labels:
            return 1.0
        return 1.0 / n if base.reduction == "mean" and base._counts_all else 1.0

    def prepare(self, dtype: Any) -> None:
        """Have the class weights on the device, for logits of this dtype; outside a capture."""
        if not self.takes_labels:
            return
        xp, weights = backend.module("cupy"), self._base.class_weights
        wide = sum_dtype(np.empty(0, dtype))
        self._weights = None if weights is None else xp.asarray(np.array(weights, dtype=wide))

    def launch(self, Y: Array, labels: Array, loss_scale: Array | None) -> tuple[Array, Array]:
        """The loss of each example, and the gradient of the batch's with respect to Y.

        Raises
        ------
        ShapeError
            If the class weights are of another number of classes.
        """
        from gpulayers.cuda import loss_step  # needs CuPy

        base, scale = self._base, self.scale(len(Y))
        if not self.takes_labels:
            return loss_step.squared_error(contiguous(Y), labels, loss_scale)
        if base._counts_all:
            if not is_half(Y.dtype) and not base.label_smoothing:
                return kernels_for(Y).softmax_cross_entropy_both(Y, labels, scale)
            how = loss_scale, scale, base.label_smoothing
            return loss_step.cross_entropy(contiguous(Y), labels, *how)
        if self._weights is not None and len(self._weights) != Y.shape[1]:
            raise ShapeError(
                f"SoftmaxCrossEntropy: logits have {Y.shape[1]} classes, there are "
                f"{len(self._weights)} class weights"
            )
        how = base.ignore_index, base.reduction == "mean", base.label_smoothing
        return loss_step.weighted_cross_entropy(
            contiguous(Y), labels, loss_scale, self._weights, *how
        )
