"""A loss of numpy-ml's form, ``loss(y, y_pred)`` and ``grad(...)``, in the form steps take."""

from __future__ import annotations

from gpulayers.activations import Identity
from gpulayers.backend import Array
from gpulayers.errors import NotInitializedError
from gpulayers.losses import SquaredError

__all__ = ["SquaredErrorOfOutputs"]


class SquaredErrorOfOutputs:
    """`losses.SquaredError` of a network's outputs, 0.5 * ||outputs - targets||^2, a sum.

    Attributes
    ----------
    reduction : str
        "sum".
    """

    reduction = "sum"

    def __init__(self) -> None:
        self._kept: tuple[Array, Array] | None = None

    def forward(self, targets: Array, outputs: Array) -> Array:
        """Return the loss, 0-d; `targets` have the outputs' shape."""
        loss = SquaredError.loss(targets, outputs)
        self._kept = targets, outputs
        return loss

    def backward(self) -> Array:
        """Return the gradient with respect to the last `forward`'s outputs: outputs - targets.

        Raises
        ------
        NotInitializedError
            Before a forward.
        """
        if self._kept is None:
            raise NotInitializedError("SquaredError: backward needs a forward before it")
        targets, outputs = self._kept
        self._kept = None
        return SquaredError.grad(targets, outputs, outputs, Identity())
