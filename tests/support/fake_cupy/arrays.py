"""The device array: NumPy memory that refuses to meet host arrays.

Stricter than CuPy on purpose: CuPy lets `np.exp(x)` and `np.sum(x)` through to its own functions;
here they raise, since library code should name the array library that it means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.support.fake_cupy import memory
from tests.support.fake_cupy.state import DeviceRuleError, state

IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. "
    "Please use `.get()` to construct a NumPy array explicitly."
)
NOT_FOR_FILL = "non-scalar numpy.ndarray cannot be used for fill"
METADATA = {"shape", "ndim", "size", "result_type", "can_cast", "iscomplexobj", "isrealobj"}


class _Functions:
    """The functions of the stand-in's module by name; `cupy` is set when it is assembled."""

    cupy: Any = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self.cupy, name)


namespace = _Functions()


class Flags:
    """`array.flags`: contiguity and ownership, nothing else (as in CuPy)."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous = array._a.flags.c_contiguous
        self.f_contiguous = array._a.flags.f_contiguous
        self.owndata = array._base is None
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class ndarray:  # noqa: N801 - CuPy's name
    """cupy.ndarray. Operators and most methods are added by operators.py."""

    __slots__ = ("__weakref__", "_a", "_base", "_block")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: memory.MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        self._base = None
        if memptr is None:
            if strides is not None:
                raise ValueError("strides need a memptr")
            self._a, self._block = memory.allocate(shape, dtype, order or "C")
            if state.recording is not None:
                state.recording.produced(self._a)
            return
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(shape)
        self._a, self._block = memptr._view(shape, np.dtype(dtype), order or "C"), memptr.mem
        if strides is not None:
            self._a = np.lib.stride_tricks.as_strided(self._a, shape, strides)

    # -- between host and device -----------------------------------------------------------
    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(IMPLICIT)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        scalars = all(isinstance(x, (ndarray, np.generic, int, float, complex)) for x in inputs)
        if method == "__call__" and scalars and any(isinstance(x, np.generic) for x in inputs):
            return namespace[ufunc.__name__](*inputs, **kwargs)  # np.float32(2) * x
        if ufunc.__name__ == "matmul" and method == "__call__":
            return namespace["matmul"](*inputs, **kwargs)  # refuses the host array
        call = ufunc.__name__ + ("" if method == "__call__" else f".{method}")
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise TypeError(f"Unsupported type {np.ndarray} (np.{call} with a device array)")
        raise TypeError(f"np.{call} on a device array: use xp.{call}")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ in METADATA:
            return namespace[function.__name__](*args, **kwargs)
        raise TypeError(f"np.{function.__name__} on a device array: use xp.{function.__name__}")

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        state.note("d2h", ".get()")
        if blocking:
            state.note("sync", ".get()")
        if out is None:
            return self._a.copy(order)
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        if out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, got {out.shape}")
        out[...] = self._a
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        state.note("h2d", ".set()")
        self._a[...] = arr

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        self._read("item()")
        return self._a.item()

    def tolist(self) -> Any:
        self._read("tolist()")
        return self._a.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        self._read("tobytes()")
        return self._a.tobytes(order)  # type: ignore[arg-type]

    def _read(self, what: str) -> None:
        """The host reads values: it waits for the device and copies them."""
        state.note("sync", what)
        state.note("d2h", what)

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. "
                "Use a.any() or a.all()"
            )
        self._read("bool()")
        return bool(self._a)

    def __float__(self) -> float:
        self._read("float()")
        return float(self._a.item())

    def __int__(self) -> int:
        self._read("int()")
        return int(self._a.item())

    def __complex__(self) -> complex:
        self._read("complex()")
        return complex(self._a.item())

    def __repr__(self) -> str:
        self._read("repr()")
        return repr(self._a)

    def __str__(self) -> str:
        self._read("str()")
        return str(self._a)

    def __format__(self, spec: str) -> str:
        self._read("format()")
        return format(self._a[()], spec)

    def __reduce__(self) -> Any:
        self._read("pickle")
        return namespace["array"], (self._a.copy(),)

    def __copy__(self) -> ndarray:
        return self.copy()  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()  # type: ignore[attr-defined]

    # -- attributes --------------------------------------------------------------------------
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    flags = property(Flags)
    base = property(lambda self: self._base)
    T = property(lambda self: view_of(self, self._a.T))
    mT = property(lambda self: view_of(self, self._a.mT))  # noqa: N815 - NumPy's name
    real = property(lambda self: view_of(self, self._a.real))
    device = property(lambda self: namespace["cuda"].Device(self._block.device_id))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._a.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._a = self._a.view()
        self._a.shape = shape

    @property
    def imag(self) -> ndarray:
        if self.dtype.kind == "c":
            return view_of(self, self._a.imag)
        return namespace["zeros_like"](self)

    @property
    def data(self) -> memory.MemoryPointer:
        return memory.MemoryPointer(self._block, self._a.ctypes.data - self._block.ptr)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr, False),
            "strides": None if self._a.flags.c_contiguous else self.strides,
            "stream": 1,
            "version": 3,
        }

    @property
    def flat(self) -> Any:
        raise NotImplementedError("ndarray.flat: in CuPy, not in this stand-in")

    # -- indexing --------------------------------------------------------------------------
    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        state.note("iterate", "for ... in a device array: one small array an element")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        keys, advanced = index_of(key)
        if not advanced:
            if not any(k is Ellipsis for k in keys):
                keys = (*keys, Ellipsis)  # keeps a single element a 0-d view
            return view_of(self, self._a[keys])
        if any(isinstance(k, np.ndarray) and k.dtype == bool for k in keys):
            state.note("sync", "boolean mask: the host must learn the shape of the result")
        return created("indexing", lambda: np.asarray(self._a[keys]), [])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, (np.ndarray, list, tuple)) and np.ndim(value) > 0:
            raise ValueError(NOT_FOR_FILL)
        keys, advanced = index_of(key)
        source = host(value, "assigned value")
        if advanced:
            _check_assignment(self._a, keys, source)

        def work() -> None:
            self._a[keys] = source

        state.write(self._a, work, "assignment")


def _check_assignment(target: np.ndarray, keys: tuple, source: Any) -> None:
    if np.ndim(source) == 0:
        return
    if any(isinstance(k, np.ndarray) and k.dtype == bool for k in keys):
        state.note("sync", "assigning an array through a boolean mask")
    hit = np.arange(target.size).reshape(target.shape)[keys]
    if np.unique(hit).size != hit.size:
        raise DeviceRuleError(
            "assignment through index arrays with repeated entries: which value wins is undefined "
            "on a device (use xp.add.at, or an assignment where each element is hit once)"
        )


def index_of(key: Any) -> tuple[tuple, bool]:
    """The key as a tuple for NumPy, and whether it is advanced indexing (a copy)."""
    keys, advanced = [], False
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, np.ndarray):
            raise TypeError(f"Unsupported type {np.ndarray} (a host array as an index)")
        if isinstance(k, (list, tuple)):
            state.note("h2d", "a list as an index")
            k, advanced = np.asarray(k), True
        elif isinstance(k, ndarray):
            k, advanced = k._a, True
        elif isinstance(k, (bool, np.bool_)):
            advanced = True
        keys.append(k)
    return tuple(keys), advanced


# ------------------------------------------------------------------------- crossing the border


def host(value: Any, name: str) -> Any:
    """The NumPy value behind a device argument; a host array is refused."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray} ({name}: expected a cupy.ndarray)")
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(host(v, name) for v in value)
    return getattr(value, "_numpy", value)  # a stand-in ufunc handed over as an argument


def view_of(owner: ndarray, array: np.ndarray) -> ndarray:
    """`array` as a device array that shares the memory of `owner`."""
    view = object.__new__(ndarray)
    view._a, view._block = array, owner._block
    view._base = owner if owner._base is None else owner._base
    return view


def new_array(array: np.ndarray, keep_layout: bool = False) -> ndarray:
    """A NumPy result as a new device array with memory of its own."""
    result = object.__new__(ndarray)
    result._a, result._block = memory.adopt(array, keep_layout)
    result._base = None
    return result


def created(
    name: str,
    compute: Callable[[], Any],
    inputs: list[ndarray],
    keep_layout: bool = False,
    launches: bool = True,
) -> Any:
    """Run `compute`, a NumPy function of device data, and give its result to the device.

    Results that look at the memory of an input stay views; the others get memory of their own.
    """
    for array in inputs:  # CuPy's error where a device cannot reach another's memory
        if array._block.device_id != state.device:
            raise ValueError(
                f"The device where the array resides ({array._block.device_id}) is different from "
                f"the current device ({state.device}). Peer access is unavailable between them."
            )
    with np.errstate(all="ignore"):  # a device raises no floating-point warnings
        value = compute()
    fresh: list[np.ndarray] = []
    result = _given(value, inputs, keep_layout, fresh)
    if fresh and launches:
        state.note("launch", name)
    if fresh and state.recording is not None:
        state.created(fresh, lambda: _new_leaves(compute(), inputs))
    return result


def _given(value: Any, inputs: list[ndarray], keep_layout: bool, fresh: list[np.ndarray]) -> Any:
    """`value` with its NumPy arrays turned into device arrays; the new ones are put in `fresh`."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        for array in inputs:
            if np.may_share_memory(value, array._a):
                return view_of(array, value)
        new = new_array(value, keep_layout)
        fresh.append(new._a)
        return new
    if isinstance(value, (list, tuple)):
        parts = [_given(v, inputs, keep_layout, fresh) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _new_leaves(value: Any, inputs: list[ndarray]) -> list[np.ndarray]:
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _new_leaves(part, inputs)]
    if not isinstance(value, (np.ndarray, np.generic)):
        return []
    array = np.asarray(value)
    shared = any(np.may_share_memory(array, x._a) for x in inputs)
    return [] if shared else [array]
