"""What all activation functions share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError


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
        self._library(z)  # raises where it is no array
        if z.ndim == 1:
            z = z.reshape(1, -1)
        return self.fn(z)

    def _library(self, z: Any) -> ModuleType:
        """`xp_of`; the error for what is no array says which activation it was."""
        try:
            return xp_of(z)
        except DTypeError as error:
            raise DTypeError(f"{self}: {error}") from None

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


class BuiltIn(ActivationBase):
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
        array : new, of z's library, shape and dtype, in the machine's byte order

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
        xp = self._library(z)
        dtype = z.dtype
        if not is_floating(dtype):
            raise DTypeError(f"{self}: expected a floating array, got {dtype}")
        if not dtype.isnative:
            dtype = dtype.newbyteorder("=")
            z = z.astype(dtype)
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


def logistic(xp: ModuleType, z: Array) -> tuple[Array, Array]:
    """Return s = 1 / (1 + exp(-z)) and s (1 - s); only exp(-|z|) <= 1 is ever computed."""
    e = xp.exp(-xp.abs(z))
    inverse = 1.0 / (1.0 + e)
    return xp.where(z >= 0, 1.0, e) * inverse, e * inverse * inverse
