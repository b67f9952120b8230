"""Softmax as a layer."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import softmax


class Softmax(LayerBase):
    """Y = exp(X) / sum exp(X) along one axis: positive numbers that sum to one.

    Parameters
    ----------
    dim : int
        The axis, any; negative ones count from the end.
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters, derived_variables : none

    Raises
    ------
    ParameterError
        If dim is no integer. `forward` raises ShapeError if the input has no such axis.

    Notes
    -----
    Input and output of any shape, floating. Right along every axis and for every rank (numpy-ml's
    gradient is wrong or crashes but for the last axis of 2-D and 3-D arrays), and `dim` is listed
    in `hyperparameters`, where numpy-ml forgets it.
    With `CrossEntropy` as loss leave this layer's backward out: that loss gives the gradient with
    respect to the softmax's input.
    Source: Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.2.2.3.
    """

    _kind = "SoftmaxLayer"
    _hyper = ("n_in", "n_out", "dim")

    def __init__(self, dim: int = -1, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out: int | None = None
        self.dim = dim
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.dim = check.integer(self._name, "dim", self.dim, minimum=-64)

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y = exp(X - max) / sum exp(X - max); taking the maximum out avoids overflow."""
        if not -X.ndim <= self.dim < X.ndim:
            raise ShapeError(f"Softmax: expected an input with an axis {self.dim}, got {X.shape}")
        size = X.shape[1] if X.ndim > 1 else X.shape[0]
        vars(self).update(n_in=size, n_out=size)  # unchecked: it is every pass
        Y = softmax.softmax_forward(X, self.dim)
        return Y, {"Y": Y}

    def _retain(self, X: Array, Y: Array, saved: Saved) -> None:
        super()._retain(X, Y, {"Y": Y.copy()})  # whoever has Y may write into it

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX = Y * (dY - sum(dY * Y)), the product with the Jacobian diag(y) - y y^T."""
        return softmax.softmax_backward(dLdY, saved["Y"], self.dim), {}
