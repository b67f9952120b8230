"""Layers that only rearrange."""

from __future__ import annotations

import math
from typing import Any

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase


class Flatten(LayerBase):
    """Turn each example into a vector, as a fully connected layer wants it.

    Parameters
    ----------
    keep_dim : ``"first"``, ``"last"`` or -1
        ``"first"``: (n_ex, everything else); ``"last"``: (everything else, channels);
        -1: (1, everything).
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters : none
    derived_variables : in_dims, the shapes of the inputs (which are not retained themselves)

    Raises
    ------
    ParameterError
        If keep_dim is none of the three.

    Notes
    -----
    Input of any shape with at least one axis, floating. The output may be a view of the input.
    """

    _hyper = ("keep_dim",)
    _keeps_input = False

    def __init__(self, keep_dim: Any = "first", optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.keep_dim = keep_dim
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        keep_dim = check.plain(self.keep_dim)
        self.keep_dim = check.choice(self._name, "keep_dim", keep_dim, ("first", "last", -1))

    def _new_derived(self) -> dict[str, Any]:
        return {"in_dims": []}

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y holds X's elements in their order."""
        if X.ndim == 0:
            raise ShapeError("Flatten: expected an input with at least one axis, got shape ()")
        if self.keep_dim == "first":
            shape = (X.shape[0], math.prod(X.shape[1:]))
        elif self.keep_dim == "last":
            shape = (math.prod(X.shape[:-1]), X.shape[-1])
        else:
            shape = (1, X.size)
        Y = X.reshape(shape)
        return Y, {"in_dims": X.shape}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX holds dY's elements in their order."""
        return dLdY.reshape(saved["in_dims"]), {}
