"""What the losses share: the base class, checks of pairs of arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers.backend import Array, home_of, is_floating, xp_of
from gpulayers.errors import DTypeError, ShapeError


class ObjectiveBase(ABC):
    """Base class of losses: ``loss`` and ``grad``, and calling the object is ``loss``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``loss(...)``."""
        return self.loss(*args, **kwargs)

    @staticmethod
    @abstractmethod
    def loss(*args: Any, **kwargs: Any) -> Any:
        """Return the loss, a 0-d array: ``loss(y, y_pred)`` unless the class says otherwise."""

    @staticmethod
    @abstractmethod
    def grad(*args: Any, **kwargs: Any) -> Any:
        """Return the gradient of the loss: ``grad(y, y_pred, ...)``."""

    def __str__(self) -> str:
        return type(self).__name__


def library_of(name: str, y: Array, y_pred: Array) -> ModuleType:
    """The library of both; an error says which is no array."""
    for what, array in (("y", y), ("y_pred", y_pred)):
        home_of(name, what, array)
    return xp_of(y, y_pred)


def pair(name: str, y: Array, y_pred: Array) -> Array:
    """Check targets and predictions; return the targets in the predictions' dtype."""
    library_of(name, y, y_pred)
    if not is_floating(y_pred.dtype):
        raise DTypeError(f"{name}: y_pred must be a floating array, got {y_pred.dtype}")
    if not (is_floating(y.dtype) or y.dtype.kind in "iub"):
        raise DTypeError(f"{name}: y must be an array of numbers, got {y.dtype}")
    if y.shape != y_pred.shape:
        raise ShapeError(f"{name}: y_pred must have y's shape {y.shape}, got {y_pred.shape}")
    return y.astype(y_pred.dtype, copy=False)


def wide(a: Array) -> Array:
    """Half types are added up in float32."""
    return a.astype(np.float32) if a.dtype.itemsize < 4 else a
