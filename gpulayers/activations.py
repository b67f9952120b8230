"""Activation functions and their first two derivatives, on NumPy or CuPy arrays.

Each stands as ``fn``, ``grad`` and ``grad2`` of the pre-activation, next to each other. Results are
new arrays on the input's library and of its dtype. Nothing overflows on the way to a finite result,
so no warnings. float16 and bfloat16 are computed in float32 and rounded once.

At a kink (a point without a derivative) ``grad`` is the slope named in the class's docstring. NaN
gives NaN in ``fn``; in the derivatives too, except where they are constants picked by comparing
(ReLU, LeakyReLU, HardSigmoid, Affine).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpulayers import _spec
from gpulayers._erf import normal_cdf
from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "ActivationBase",
    "Affine",
    "Exponential",
    "HardSigmoid",
    "Identity",
    "LeakyReLU",
    "ReLU",
    "Sigmoid",
    "SoftPlus",
    "Tanh",
]


class ActivationBase(ABC):
    """Base class of activation functions.

    A class of your own needs ``fn(z)`` and ``grad(x)`` written with array operations (for both
    libraries: ``xp = gpulayers.backend.xp_of(z)``), and works in every layer on CPU and GPU.
    """

    @property
    def kernel(self) -> tuple[str, float, float] | None:
        """(name, alpha, beta) of the built-in function that CUDA code may use; else None."""
        return None

    def __call__(self, z: Array) -> Array:
        """Return ``fn(z)``; as in numpy-ml a 1-D `z` of n values is taken as shape (1, n)."""
        if z.ndim == 1:
            z = z.reshape(1, -1)
        return self.fn(z)

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self}>"

    @abstractmethod
    def fn(self, z: Array) -> Array:
        """Return the activation of the pre-activation `z`, elementwise."""

    @abstractmethod
    def grad(self, x: Array) -> Array:
        """Return the derivative at the pre-activation `x`, elementwise."""

    def grad2(self, x: Array) -> Array:
        """Return the second derivative at the pre-activation `x`, elementwise."""
        raise NotImplementedError(f"{self} defines no second derivative")


class _BuiltIn(ActivationBase):
    """Does once what all built-in functions share: checks, the computing dtype, the result's."""

    _kernel: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # a user's subclass with a formula of its own must not run the built-in CUDA code
        if "_kernel" not in cls.__dict__ and {"fn", "grad", "_fn", "_grad"} & cls.__dict__.keys():
            cls._kernel = None

    @property
    def kernel(self) -> tuple[str, float, float] | None:
        return None if self._kernel is None else (self._kernel, *self._constants())

    def _constants(self) -> tuple[float, float]:
        return 0.0, 0.0

    def fn(self, z: Array) -> Array:
        """Return the activation of the pre-activation `z`.

        Parameters
        ----------
        z : numpy or cupy array of any shape, floating

        Returns
        -------
        array : new, of z's library, shape and dtype

        Raises
        ------
        DTypeError
            If `z` is no array, or not floating.
        """
        return self._apply(self._fn, z)

    def grad(self, x: Array) -> Array:
        """Return the derivative at the pre-activation `x`; arguments and errors as `fn`."""
        return self._apply(self._grad, x)

    def grad2(self, x: Array) -> Array:
        """Return the second derivative at the pre-activation `x`; arguments and errors as `fn`."""
        return self._apply(self._grad2, x)

    def _apply(self, formula: Any, z: Array) -> Array:
        xp = xp_of(z)
        dtype = z.dtype
        if not is_floating(dtype):
            raise DTypeError(f"{self}: expected a floating array, got {dtype}")
        if dtype.itemsize < 4:
            return _narrow(xp, xp.asarray(formula(xp, z.astype(np.float32))), dtype)
        return xp.asarray(formula(xp, z))  # NumPy makes scalars of 0-d results

    @abstractmethod
    def _fn(self, xp: ModuleType, z: Array) -> Array: ...
    @abstractmethod
    def _grad(self, xp: ModuleType, x: Array) -> Array: ...
    @abstractmethod
    def _grad2(self, xp: ModuleType, x: Array) -> Array: ...


def _narrow(xp: ModuleType, y: Array, dtype: np.dtype) -> Array:
    if dtype == np.float16:  # 65520 and more round to infinity; NumPy would warn
        y = xp.where(xp.abs(y) >= 65520.0, xp.copysign(xp.full_like(y, math.inf), y), y)
    return y.astype(dtype)


# ------------------------------------------------------------------------------------- s-shaped


def _logistic(xp: ModuleType, z: Array) -> tuple[Array, Array]:
    """Return s = 1 / (1 + exp(-z)) and s (1 - s); only exp(-|z|) <= 1 is ever computed."""
    e = xp.exp(-xp.abs(z))
    inverse = 1.0 / (1.0 + e)
    return xp.where(z >= 0, 1.0, e) * inverse, e * inverse * inverse


class Sigmoid(_BuiltIn):
    """s(z) = 1 / (1 + exp(-z)); s' = s (1 - s); s'' = s (1 - s) (1 - 2 s)."""

    _kernel = "sigmoid"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return _logistic(xp, z)[0]

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return _logistic(xp, x)[1]

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return -xp.tanh(0.5 * x) * _logistic(xp, x)[1]  # 1 - 2 s(x) = -tanh(x / 2)


class Tanh(_BuiltIn):
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


class HardSigmoid(_BuiltIn):
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


# ------------------------------------------------------------------------------------- rectifiers


class ReLU(_BuiltIn):
    """max(z, 0) (Nair & Hinton, 2010). The slope at the kink 0 is 0, as in PyTorch."""

    _kernel = "relu"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.maximum(z, 0.0)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return (x > 0).astype(x.dtype)

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)


class LeakyReLU(_BuiltIn):
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
        return xp.where(z < 0, self.alpha * z, z)

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return xp.where(x < 0, float(self.alpha), xp.ones_like(x))

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return xp.zeros_like(x)


class ELU(_BuiltIn):
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


class SELU(_BuiltIn):
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


class SoftPlus(_BuiltIn):
    """log(1 + exp(z)) (Dugas et al., 2001), computed as max(z, 0) + log1p(exp(-|z|)).

    Its derivative is the sigmoid. numpy-ml overflows: there SoftPlus(800) is infinite.
    """

    _kernel = "softplus"

    def _fn(self, xp: ModuleType, z: Array) -> Array:
        return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        return _logistic(xp, x)[0]

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        return _logistic(xp, x)[1]


class GELU(_BuiltIn):
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
            phi = _logistic(xp, 2.0 * _gelu_u(cut)[0])[0]  # (1 + tanh u) / 2 = s(2 u)
        else:
            phi = normal_cdf(xp, cut)
        return xp.maximum(z, -40.0) * phi

    def _grad(self, xp: ModuleType, x: Array) -> Array:
        x = xp.clip(x, -40.0, 40.0)
        if not self.approximate:
            return normal_cdf(xp, x) + x * _normal_pdf(xp, x)
        u, du, _ = _gelu_u(x)
        s, ds = _logistic(xp, 2.0 * u)
        return s + 2.0 * x * ds * du

    def _grad2(self, xp: ModuleType, x: Array) -> Array:
        x = xp.clip(x, -40.0, 40.0)
        if not self.approximate:
            return (2.0 - x * x) * _normal_pdf(xp, x)
        u, du, d2u = _gelu_u(x)
        ds = _logistic(xp, 2.0 * u)[1]
        return 2.0 * ds * (2.0 * du + x * (d2u - 2.0 * xp.tanh(u) * du * du))


def _gelu_u(x: Array) -> tuple[Array, Array, Array]:
    """u = sqrt(2 / pi) (x + 0.044715 x^3) and its first two derivatives."""
    k = math.sqrt(2.0 / math.pi)
    square = x * x
    u = k * x * (1.0 + 0.044715 * square)
    return u, k * (1.0 + 3.0 * 0.044715 * square), (6.0 * 0.044715 * k) * x


def _normal_pdf(xp: ModuleType, x: Array) -> Array:
    return xp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


# ------------------------------------------------------------------------ straight and exponential


class Affine(_BuiltIn):
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


class Exponential(_BuiltIn):
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
