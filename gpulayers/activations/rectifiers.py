"""ReLU and what bends more gently: LeakyReLU, ELU, SELU, SoftPlus."""

from __future__ import annotations

from types import ModuleType

from gpulayers import _spec
from gpulayers.activations._base import BuiltIn, logistic
from gpulayers.backend import Array


class ReLU(BuiltIn):
    """max(z, 0) (Nair & Hinton, 2010). The slope at the kink 0 is 0, as in PyTorch."""

    _kernel = "relu"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.maximum(z, 0.0)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return (x > 0).astype(x.dtype)

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)


class LeakyReLU(BuiltIn):
    """z for z >= 0, else alpha z (Maas, Hannun & Ng, 2013).

    The slope at the kink 0 is 1 as in numpy-ml's code (its docstring and PyTorch say alpha).

    Parameters
    ----------
    alpha : float
        The slope for negative values.

    Raises
    ------
    ParameterError
        If alpha is no finite number.
    """

    _kernel = "leaky_relu"

    def __init__(self, alpha: float = 0.3) -> None:
        self.alpha = _spec.real("LeakyReLU", "alpha", alpha)

    def __str__(self) -> str:
        return f"Leaky ReLU(alpha={self.alpha})"

    def _constants(self) -> tuple[float, float]:
        return float(self.alpha), 0.0

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        # the branch not picked must not overflow, nor be 0 times infinity
        below = z if 0 < abs(self.alpha) <= 1 else xp.minimum(z, 0.0)
        return xp.where(z < 0, self.alpha * below, z)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x < 0, float(self.alpha), xp.ones_like(x))

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)


class ELU(BuiltIn):
    """z for z > 0, else alpha (exp(z) - 1) (Clevert, Unterthiner & Hochreiter, 2016).

    The slope at 0 is alpha; with alpha = 1 there is no kink. At 0 ``grad2`` is alpha.

    Parameters
    ----------
    alpha : float
        Minus the limit for z -> -infinity.

    Raises
    ------
    ParameterError
        If alpha is no finite number.
    """

    _kernel = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _spec.real("ELU", "alpha", alpha)

    def __str__(self) -> str:
        return f"ELU(alpha={self.alpha})"

    def _constants(self) -> tuple[float, float]:
        return float(self.alpha), 0.0

    # exp is taken of min(z, 0), since the branch not picked must not overflow either
    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.where(z > 0, z, self.alpha * xp.expm1(xp.minimum(z, 0.0)))

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x > 0, 1.0, self.alpha * xp.exp(xp.minimum(x, 0.0)))

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x > 0, 0.0, self.alpha * xp.exp(xp.minimum(x, 0.0)))


class SELU(BuiltIn):
    """scale * ELU(z) with alpha = 1.67326.., scale = 1.05070.. (Klambauer et al., 2017).

    With these constants activations keep mean 0 and variance 1 from layer to layer. The slope at
    the kink 0 is scale * alpha, as in PyTorch (numpy-ml: scale).
    """

    _kernel = "selu"
    alpha = 1.6732632423543772848170429916717
    scale = 1.0507009873554804934193349852946

    def _constants(self) -> tuple[float, float]:
        return self.alpha, self.scale

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return self.scale * xp.where(z > 0, z, self.alpha * xp.expm1(xp.minimum(z, 0.0)))

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return self.scale * xp.where(x > 0, 1.0, self.alpha * xp.exp(xp.minimum(x, 0.0)))

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return self.scale * xp.where(x > 0, 0.0, self.alpha * xp.exp(xp.minimum(x, 0.0)))


class SoftPlus(BuiltIn):
    """log(1 + exp(z)) (Dugas et al., 2001), computed as max(z, 0) + log1p(exp(-|z|)).

    Its derivative is the sigmoid. numpy-ml overflows: there SoftPlus(800) is infinite.
    """

    _kernel = "softplus"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return logistic(xp, x)[0]

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return logistic(xp, x)[1]
