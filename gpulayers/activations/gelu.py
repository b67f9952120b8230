"""GELU, by the normal distribution or by tanh."""

from __future__ import annotations

import math
from types import ModuleType

from gpulayers import _spec
from gpulayers._erf import normal_cdf
from gpulayers.activations._base import BuiltIn, logistic
from gpulayers.backend import Array


class GELU(BuiltIn):
    """z Phi(z), with Phi the normal distribution function (Hendrycks & Gimpel, 2016).

    approximate=True: Phi(z) ~ (1 + tanh u) / 2, u = sqrt(2 / pi) (z + 0.044715 z^3).
    approximate=False: Phi(z) = erfc(-z / sqrt 2) / 2.

    Both derivatives are those of the form that ``fn`` uses. In numpy-ml `approximate` is ignored,
    ``grad`` belongs to no form (off by 7e-4) and ``grad2`` is wrong.

    Parameters
    ----------
    approximate : bool

    Raises
    ------
    ParameterError
        If `approximate` is not True or False.
    """

    _kernel = "gelu_tanh"

    def __init__(self, approximate: bool = True) -> None:
        self.approximate = _spec.flag("GELU", "approximate", approximate)

    def __str__(self) -> str:
        return f"GELU(approximate={self.approximate})"

    @property
    def kernel(self) -> tuple[str, float, float] | None:
        if self._kernel is None:
            return None
        return ("gelu_tanh" if self.approximate else "gelu_erf", 0.0, 0.0)

    # Beyond +-40 Phi is 0 or 1 in every dtype: cut there, so that no power of z overflows.
    def _fn(self, xp: ModuleType, z: Array) -> Array:
        cut = xp.clip(z, -40.0, 40.0)
        if self.approximate:
            phi = logistic(xp, 2.0 * _gelu_u(cut)[0])[0]  # (1 + tanh u) / 2 = s(2 u)
        else:
            phi = normal_cdf(xp, cut)
        return xp.maximum(z, -40.0) * phi

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        x = xp.clip(x, -40.0, 40.0)
        if not self.approximate:
            return normal_cdf(xp, x) + x * _normal_pdf(xp, x)
        u, du, _ = _gelu_u(x)
        s, ds = logistic(xp, 2.0 * u)
        return s + 2.0 * x * ds * du

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        x = xp.clip(x, -40.0, 40.0)
        if not self.approximate:
            return (2.0 - x * x) * _normal_pdf(xp, x)
        u, du, d2u = _gelu_u(x)
        ds = logistic(xp, 2.0 * u)[1]
        return 2.0 * ds * (2.0 * du + x * (d2u - 2.0 * xp.tanh(u) * du * du))


def _gelu_u(x: Array) -> tuple[Array, Array, Array]:
    """u = sqrt(2 / pi) (x + 0.044715 x^3) and its first two derivatives."""
    k = math.sqrt(2.0 / math.pi)
    square = x * x
    u = k * x * (1.0 + 0.044715 * square)
    return u, k * (1.0 + 3.0 * 0.044715 * square), (6.0 * 0.044715 * k) * x


def _normal_pdf(xp: ModuleType, x: Array) -> Array:
    return xp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
