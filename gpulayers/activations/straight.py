"""Straight lines and the exponential: Affine, Identity, Exponential."""

from __future__ import annotations

import math
from types import ModuleType

from gpulayers import _spec
from gpulayers.activations._base import BuiltIn
from gpulayers.backend import Array


class Affine(BuiltIn):
    """slope * z + intercept.

    Parameters
    ----------
    slope, intercept : float

    Raises
    ------
    ParameterError
        If one is no finite number.
    """

    _kernel = "affine"

    def __init__(self, slope: float = 1, intercept: float = 0) -> None:
        self.slope = _spec.real("Affine", "slope", slope)
        self.intercept = _spec.real("Affine", "intercept", intercept)

    def __str__(self) -> str:
        return f"Affine(slope={self.slope}, intercept={self.intercept})"

    def _constants(self) -> tuple[float, float]:
        return float(self.slope), float(self.intercept)

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return float(self.slope) * z + float(self.intercept)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return xp.full_like(x, self.slope)

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)


class Identity(Affine):
    """z itself, as a new array: Affine(slope=1, intercept=0)."""

    _kernel = "identity"

    def __init__(self) -> None:
        super().__init__(slope=1, intercept=0)

    def __str__(self) -> str:
        return "Identity"

    def _constants(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return z.copy()


# the largest numbers of the dtype whose exponential is finite
_LOG_MAX = {"float32": 88.72283172607422, "float64": 709.782712893384}


class Exponential(BuiltIn):
    """exp(z), which is its own derivative; infinite, without a warning, where exp(z) exceeds the
    dtype's range."""

    _kernel = "exponential"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        limit = _LOG_MAX[z.dtype.name]
        return xp.where(z > limit, math.inf, xp.exp(xp.minimum(z, limit)))

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return self._fn(xp, x)

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return self._fn(xp, x)
