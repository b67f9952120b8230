"""The functions of `cupy`, `cupy.linalg`, ...: the real names and signatures, NumPy underneath."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.fake_cupy.api import API, bind, signature_of
from tests.support.fake_cupy.arrays import (
    NOT_FOR_FILL,
    created,
    host,
    ndarray,
    new_array,
    view_of,
)
from tests.support.fake_cupy.state import DeviceRuleError, state
from tests.support.fake_cupy.ufuncs import ufunc

# Functions whose result's shape depends on values: the host waits for the device.
SYNCHRONISE = {"argwhere", "bincount", "compress", "delete", "extract", "flatnonzero", "histogram"}
SYNCHRONISE |= {"intersect1d", "nonzero", "setdiff1d", "trim_zeros", "union1d", "unique"}
IN_PLACE = {"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"}
KEEP_LAYOUT = {"copy", "full_like", "ones_like", "zeros_like"}
ZERO_D = {"allclose", "array_equal", "array_equiv", "count_nonzero"}  # NumPy returns Python values
PRODUCTS = {"dot", "einsum", "inner", "matmul", "outer", "tensordot", "vdot"}  # cuBLAS
UPLOADS = {"array", "asanyarray", "asarray", "ascontiguousarray", "asfortranarray"}
NO_CUBLAS = "calling cuBLAS API during stream capture is currently unsupported"
NO_CURAND = "calling cuRAND API during stream capture is currently unsupported"
NO_CUSOLVER = "calling cuSOLVER API during stream capture is currently unsupported"


def device_arrays(value: Any) -> list[ndarray]:
    """All device arrays inside an argument."""
    if isinstance(value, ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in device_arrays(v)]
    return []


def call(
    name: str,
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    out: Any = None,
    in_place: ndarray | None = None,
    keep_layout: bool = False,
) -> Any:
    """Run a NumPy function on device data: into `out`, into an argument, or to a new array."""
    inputs = device_arrays(args) + device_arrays(kwargs)
    values = tuple(host(a, name) for a in args)
    options = {k: host(v, name) for k, v in kwargs.items()}
    target = out if out is not None else in_place
    if target is None:
        return created(name, lambda: function(*values, **options), inputs, keep_layout)
    if not isinstance(target, ndarray):
        raise TypeError(f"{name}: expected a cupy.ndarray to write to, got {type(target)}")
    state.write(target._a, lambda: function(*values, **options), name)
    return out


# ---------------------------------------------------------------------------- matrix products


def check_product(name: str, operands: list[ndarray], subscripts: Any = None) -> None:
    """The rules of CuPy's cuBLAS calls: none during capture, none without the library, no batches
    of bfloat16."""
    floating = any(a.dtype.kind in "fcV" for a in operands)
    if name == "einsum" and not (isinstance(subscripts, str) and _contracts(subscripts)):
        return
    if floating and state.recording is not None:
        raise NotImplementedError(NO_CUBLAS)
    # a transposition by `asfortranarray` is its rule for the tests' own arrays, which may
    if floating and name != "asfortranarray" and state.lacks_cublas():
        raise DeviceRuleError(f"{name}: there is no cuBLAS")
    if name == "matmul" and any(a.dtype.name == "bfloat16" and a.ndim > 2 for a in operands):
        raise DeviceRuleError("CuPy 14 cannot multiply batches of bfloat16: use 2-D operands")


def _contracts(subscripts: str) -> bool:
    """Whether an index is shared by two operands and summed over."""
    left, _, right = subscripts.replace(" ", "").partition("->")
    operands = left.split(",")
    shared = {c for c in left if c.isalpha() and sum(c in o for o in operands) > 1}
    return bool(shared - set(right)) if "->" in subscripts else bool(shared)


# ------------------------------------------------------------------------------ making arrays


def upload(name: str, arguments: dict[str, Any]) -> ndarray:
    """array, asarray, ...: the only functions that take host data."""
    arguments = {k: v for k, v in arguments.items() if k not in ("blocking", "subok", "ndmin")}
    source = arguments.pop(next(iter(arguments)))
    dtype = arguments.pop("dtype", None)
    order = arguments.pop("order", None) or ("C" if name == "ascontiguousarray" else "K")
    order = "F" if name == "asfortranarray" else order
    copy = arguments.pop("copy", True if name == "array" else None)
    if isinstance(source, ndarray):
        array = source._a
        if name == "asfortranarray" and array.ndim == 2 and array.flags.c_contiguous:
            check_product("asfortranarray", [source])  # a cuBLAS transposition
        result = np.array(array, dtype, order=order, copy=copy or None)
        if result is array:
            return source
        if np.may_share_memory(result, array):
            return view_of(source, result)
        return created(name, lambda: np.array(array, dtype, order=order), [], keep_layout=True)
    if device_arrays(source):
        parts = [host(part, name) for part in source]
        return created(name, lambda: np.array(parts, dtype), [])
    result = np.array(source, dtype, order=order)
    state.note("h2d", name)
    return new_array(result, keep_layout=True)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """An uninitialised array (poisoned)."""
    return ndarray(shape, float if dtype is None else dtype, order=order)


def empty_like(
    prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    model = host(prototype, "empty_like")
    dtype = model.dtype if dtype is None else dtype
    if shape is not None or order in ("C", "F"):
        return ndarray(
            model.shape if shape is None else shape, dtype, order=order.replace("K", "C")
        )
    axes = sorted(range(model.ndim), key=lambda axis: -abs(model.strides[axis]))
    packed = ndarray(tuple(model.shape[axis] for axis in axes), dtype)
    return view_of(packed, packed._a.transpose(np.argsort(axes))) if axes else packed


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a)


OWN: dict[str, Callable[..., Any]] = {"empty": empty, "empty_like": empty_like, "asnumpy": asnumpy}


# ----------------------------------------------------------------------------- wrapped functions


def wrapped(module: str, name: str, parameters: str, function: Any) -> Callable[..., Any]:
    """The stand-in for one function of CuPy, checked against the real signature."""
    if module == "cupy" and name in OWN:
        return OWN[name]
    signature = signature_of(parameters)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(name, signature, args, kwargs)
        if function is None:
            raise NotImplementedError(f"{module}.{name}: in CuPy, not in this stand-in")
        if name in UPLOADS:
            return upload(name, arguments)
        _check(module, name, args, arguments)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("stream", "blocking")}
        out = arguments.get("out", arguments.get("kwargs", {}).get("out"))
        run = function
        if module == "cupy.random":
            run, kwargs = _random(function, kwargs)
        in_place = args[0] if name in IN_PLACE or name == "shuffle" else None
        keep = name in KEEP_LAYOUT or "order" in arguments
        if name in ZERO_D:
            return call(name, lambda *a, **k: np.asarray(run(*a, **k)), args, kwargs)
        return call(name, run, args, kwargs, out, in_place, keep)

    stand_in.__name__ = stand_in.__qualname__ = name
    stand_in.__module__ = module
    stand_in.__signature__ = signature  # type: ignore[attr-defined]
    return stand_in


def _check(module: str, name: str, args: tuple, arguments: dict[str, Any]) -> None:
    """What the real function would refuse, or wait for."""
    if name in SYNCHRONISE or (name == "where" and len(arguments) == 1):
        state.note("sync", f"{module}.{name}")
    if module == "cupy" and name in PRODUCTS:
        for a in args:
            if isinstance(a, np.ndarray):
                raise TypeError(
                    f"Argument has incorrect type (expected cupy._core.core._ndarray_base, "
                    f"got numpy.ndarray) (cupy.{name})"
                )
        check_product(name, device_arrays(args), args[0] if args else None)
    if module == "cupy.linalg" and name != "norm" and state.recording is not None:
        raise NotImplementedError(NO_CUSOLVER)
    if module == "cupy.random" and state.recording is not None:
        raise NotImplementedError(NO_CURAND)
    if name == "repeat" and isinstance(arguments.get("repeats"), ndarray):
        raise ValueError("cupy.repeat: `repeats` must be int or tuple or list of ints")
    if name == "copyto" and isinstance(arguments.get("src"), np.ndarray):
        raise ValueError(NOT_FOR_FILL.replace("fill", "copyto"))


def _random(function: Any, kwargs: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """cupy.random functions take dtype=, NumPy's legacy ones do not."""
    dtype = kwargs.pop("dtype", None)

    def draw(*args: Any, **rest: Any) -> Any:
        result = function(*args, **rest)
        return result if dtype is None or result is None else np.asarray(result).astype(dtype)

    return draw, kwargs


class Namespace(ModuleType):
    """A module with exactly the names the snapshot lists, made when first used."""

    def __init__(self, name: str, library: Any, own: dict[str, Any] | None = None) -> None:
        super().__init__(name)
        self.__dict__.update(_library=library, _api=API[name], **(own or {}))

    def __getattr__(self, name: str) -> Any:
        entry = self.__dict__["_api"].get(name)
        library = self.__dict__["_library"]
        if entry is None:
            hint = " (NumPy has it, CuPy does not)" if hasattr(library, name) else ""
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{hint}")
        member = self._make(name, entry, getattr(library, name, None))
        self.__dict__[name] = member
        return member

    def _make(self, name: str, entry: str, counterpart: Any) -> Any:
        if name == "newaxis":
            return None
        if entry.startswith("ufunc") and callable(counterpart):
            return ufunc(name, *(int(n) for n in entry.split()[1:]))
        if entry.startswith("("):
            return wrapped(self.__name__, name, entry, counterpart)
        if entry in ("type", "value") and counterpart is not None:
            return counterpart
        raise NotImplementedError(f"{self.__name__}.{name}: in CuPy, not in this stand-in")

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__["_api"], *self.__dict__})


def signature_is_known(function: Any) -> bool:
    """Whether the snapshot holds a real parameter list for a stand-in function."""
    return str(inspect.signature(function)) != "(*args, **kwargs)"
