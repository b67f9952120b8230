"""Activation functions shaped like an s: Sigmoid, Tanh, HardSigmoid."""

from __future__ import annotations

from types import ModuleType

from gpulayers.activations._base import BuiltIn, logistic
from gpulayers.backend import Array


class Sigmoid(BuiltIn):
    """s(z) = 1 / (1 + exp(-z)); s' = s (1 - s); s'' = s (1 - s) (1 - 2 s)."""

    _kernel = "sigmoid"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return logistic(xp, z)[0]

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return logistic(xp, x)[1]

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return -xp.tanh(0.5 * x) * logistic(xp, x)[1]  # 1 - 2 s(x) = -tanh(x / 2)


class Tanh(BuiltIn):
    """t = tanh(z); t' = 1 - t^2; t'' = -2 t (1 - t^2)."""

    _kernel = "tanh"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.tanh(z)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        t = xp.tanh(x)
        return 1.0 - t * t

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        t = xp.tanh(x)
        return -2.0 * t * (1.0 - t * t)


class HardSigmoid(BuiltIn):
    """0.2 z + 0.5 cut to [0, 1] (Courbariaux, Bengio & David, 2015).

    The slope is 0.2 for |z| <= 2.5, the kinks included, else 0.
    """

    _kernel = "hard_sigmoid"

    def __str__(self) -> str:
        return "Hard Sigmoid"

    def _constants(self) -> tuple[float, float]:
        return 0.2, 0.5

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.clip(0.2 * z + 0.5, 0.0, 1.0)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return (xp.abs(x) <= 2.5).astype(x.dtype) * 0.2

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)
