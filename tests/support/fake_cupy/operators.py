"""Operators and methods of the device array, attached to `ndarray` when imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.fake_cupy.api import bind, members, signature_of
from tests.support.fake_cupy.arrays import NOT_FOR_FILL, created, host, namespace, ndarray
from tests.support.fake_cupy.functions import SYNCHRONISE, call
from tests.support.fake_cupy.state import state

BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "lshift": "left_shift",
    "rshift": "right_shift",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "matmul": "matmul",
    "divmod": "divmod",
}
COMPARE = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
WRITES = {"fill", "partition", "put", "sort"}
SCALARS = (np.generic, int, float, complex, bool)


def _binary(name: str, swapped: bool) -> Callable[[ndarray, Any], Any]:
    def operator(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, np.ndarray, list, *SCALARS)):
            return NotImplemented
        return namespace[name](*((other, self) if swapped else (self, other)))

    return operator


def _in_place(name: str) -> Callable[[ndarray, Any], ndarray]:
    def operator(self: ndarray, other: Any) -> ndarray:
        return namespace[name](self, other, out=self)

    return operator


def _unary(name: str) -> Callable[[ndarray], Any]:
    return lambda self: namespace[name](self)


def _method(name: str, parameters: str) -> Callable[..., Any]:
    """A method with CuPy's signature that runs NumPy's method of the same name."""
    signature = signature_of(parameters, method=True)
    has_counterpart = hasattr(np.ndarray, name)

    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        arguments = bind(name, signature, args, kwargs)
        if not has_counterpart:
            raise NotImplementedError(f"ndarray.{name}: in CuPy, not in this stand-in")
        if name in SYNCHRONISE:
            state.note("sync", f".{name}()")

        def run(array: np.ndarray, *a: Any, **k: Any) -> Any:
            return getattr(array, name)(*a, **k)

        in_place = self if name in WRITES else None
        keep = name == "astype" or "order" in arguments
        return call(f".{name}", run, (self, *args), kwargs, arguments.get("out"), in_place, keep)

    method.__name__ = name
    return method


def _astype(self: ndarray, dtype: Any, order: str = "K", **options: Any) -> ndarray:
    """Like NumPy; `copy=False` returns the array itself when nothing changes."""
    unknown = set(options) - {"casting", "subok", "copy"}
    if unknown:
        raise TypeError(f"astype() got an unexpected keyword argument {unknown.pop()!r}")
    array, copy = self._a, options.pop("copy", True)
    options.pop("subok", None)
    if not copy and array.astype(dtype, order=order, copy=False) is array:  # type: ignore[call-overload]
        return self
    return created(
        ".astype",
        lambda: array.astype(dtype, order=order, **options),  # type: ignore[call-overload]
        [],
        keep_layout=True,
    )


def _fill(self: ndarray, value: Any) -> None:
    if isinstance(value, (np.ndarray, list, tuple)) and np.ndim(value):
        raise ValueError(NOT_FOR_FILL)
    source = host(value, "fill") if isinstance(value, ndarray) else value
    state.write(self._a, lambda: self._a.fill(source), ".fill")


def _dot(self: ndarray, b: Any, out: Any = None) -> Any:
    return namespace["dot"](self, b, out) if out is not None else namespace["dot"](self, b)


def _scatter(name: str) -> Callable[[ndarray, Any, Any], None]:
    return lambda self, slices, value: namespace[name].at(self, slices, value)


def attach() -> None:
    """Give `ndarray` every operator and method that CuPy's array has, and no other."""
    real = members("cupy.ndarray")
    own: dict[str, Any] = {"astype": _astype, "fill": _fill, "dot": _dot}
    own |= {"scatter_add": _scatter("add"), "scatter_max": _scatter("maximum")}
    own |= {"scatter_min": _scatter("minimum")}
    for short, name in BINARY.items():
        own[f"__{short}__"] = _binary(name, swapped=False)
        own[f"__r{short}__"] = _binary(name, swapped=True)
        own[f"__i{short}__"] = _in_place(name)
    own |= {f"__{short}__": _binary(name, swapped=False) for short, name in COMPARE.items()}
    own |= {f"__{short}__": _unary(name) for short, name in UNARY.items()}
    for name, member in own.items():
        if name in real:
            setattr(ndarray, name, member)
    for name, parameters in real.items():
        if not name.startswith("_") and parameters != "attribute" and not hasattr(ndarray, name):
            setattr(ndarray, name, _method(name, parameters))


attach()
