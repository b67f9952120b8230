"""Dropout as a layer of its own."""

from __future__ import annotations

from typing import Any

from gpulayers import random
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase


def draw_kept(X: Array, p: float) -> Array:
    """Which elements of `X` stay, each with probability 1 - p: bool, of its shape and backend.

    Drawn from the default generator, the same on every backend.
    """
    return random.default_generator().uniform(X.shape, dtype="float32", xp=xp_of(X)) >= p


def drop(X: Array, kept: Array, p: float) -> Array:
    """X * kept / (1 - p), a new array; its own gradient too."""
    return X * (kept.astype(X.dtype) * X.dtype.type(1 / (1 - p)))


class Dropout(LayerBase):
    """Set each element to zero with probability p while training: Y = X * mask.

    The mask holds 0 or 1 / (1 - p), so that the expected output is the input and evaluation
    (`retain_derived=False`, or frozen) is the identity ("inverted" dropout).

    Parameters
    ----------
    p : float in [0, 1)
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters : none
    derived_variables : dropout_mask, None for an input that passed unchanged

    Raises
    ------
    ParameterError
        If p is no number in [0, 1).

    Notes
    -----
    Input and output of any shape, floating. The mask is drawn from the default generator, the same
    one on every backend. It applies to the gradient too. Not in numpy-ml, whose wrapper of this
    name forgets the mask in its backward pass and scales the wrapped layer's output.
    Source: Srivastava et al., "Dropout" (2014).
    """

    _hyper = ("p",)
    _keeps_input = False

    def __init__(self, p: float, optimizer: Any = None) -> None:
        if isinstance(p, LayerBase):  # numpy-ml's wrapper can be had under this name too
            raise ParameterError(
                f"{type(self).__name__}: p must be a number in [0, 1), got a layer; to drop a "
                "layer's inputs wrap it: gpulayers.wrappers.Dropout(layer, p)"
            )
        super().__init__(optimizer)
        self.p = p
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.p = check.number(self._name, "p", self.p, 0, 1, "[")

    def _new_derived(self) -> dict[str, Any]:
        return {"dropout_mask": []}

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y = X * mask."""
        if not training or self.p == 0:
            return X, {"dropout_mask": None}
        mask = draw_kept(X, self.p).astype(X.dtype) * X.dtype.type(1 / (1 - self.p))
        return X * mask, {"dropout_mask": mask}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX = dY * mask."""
        mask = saved["dropout_mask"]
        return (dLdY if mask is None else dLdY * mask), {}
