"""Arrays shared with other libraries, without a copy: DLPack, both ways.

    x = from_dlpack(torch_tensor)       # a NumPy or CuPy array on the tensor's own memory
    t = torch.from_dlpack(to_dlpack(y))

Both see the same memory: what one writes, the other reads. Source: DLPack (https://dmlc.github.io/
dlpack/), the Python array API standard's section on data interchange.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, InterchangeError

__all__ = ["from_dlpack", "to_dlpack"]

# DLPack's device types: the host, and those that CuPy can look at
_HOST, _CUDA, _CUDA_MANAGED = 1, 2, 13
_BACKENDS = {_HOST: "numpy", _CUDA: "cupy", _CUDA_MANAGED: "cupy"}


def from_dlpack(source: Any, backend_name: str | None = None) -> Array:
    """Return the array of another library as one of ours, on the same memory.

    Parameters
    ----------
    source : object with ``__dlpack__`` and ``__dlpack_device__``
        E.g. a PyTorch, JAX or TensorFlow tensor, of any strides. It is kept alive.
    backend_name : ``"numpy"``, ``"cupy"`` or None
        Where the array is expected to be; None takes it where it is. Nothing is ever moved.

    Returns
    -------
    array : NumPy or CuPy array of the source's shape and dtype
        Read-only if the source says so.

    Raises
    ------
    BackendError
        If the memory is on a device other than `backend_name`, or on one that neither NumPy nor
        CuPy can look at, or CuPy cannot start.
    DTypeError
        If `source` does not speak DLPack, or its dtype is none that the array library has
        (NumPy: no bfloat16).
    InterchangeError
        If the other library refuses, e.g. PyTorch for a tensor that requires a gradient.
    """
    kind, number = _device(source)
    home = _BACKENDS.get(kind)
    if home is None:
        raise BackendError(
            f"from_dlpack: the memory is on a device of DLPack type {kind}, expected the host (1) "
            "or an NVIDIA GPU (2); move it to one of them first"
        )
    if backend_name is not None and backend_name != home:
        where = "in host memory" if home == "numpy" else f"on GPU {number}"
        raise BackendError(
            f"from_dlpack: the array is {where}, not on the backend {backend_name!r}; take it as "
            f"it is, then move it with gpulayers.backend.to_backend(array, {backend_name!r})"
        )
    xp = backend.module(home)
    name = f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
    try:
        return xp.from_dlpack(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        if "dtype" in str(error).lower() or "bfloat16" in str(getattr(source, "dtype", "")):
            raise DTypeError(
                f"from_dlpack: {xp.__name__} has no counterpart of {name} with the dtype "
                f"{getattr(source, 'dtype', 'unknown')}: {error}"
            ) from error
        raise InterchangeError(f"from_dlpack: {name} does not give its memory: {error}") from error


def to_dlpack(array: Array, copy: bool = False) -> Any:
    """Return `array` as an object that every ``from_dlpack`` takes, on the same memory.

    The arrays themselves already speak DLPack; this checks that others will understand them.

    Parameters
    ----------
    array : NumPy or CuPy array, of any strides
        E.g. a layer's output or ``layer.parameters["W"]``.
    copy : bool
        Hand over a copy instead: for read-only arrays, or to keep the original from changes.

    Returns
    -------
    array : with ``__dlpack__`` and ``__dlpack_device__``

    Raises
    ------
    DTypeError
        If `array` is no array, or its dtype is none that DLPack knows: it knows bool, integers,
        floats and complex numbers in the machine's byte order; no bfloat16 on NumPy.
    InterchangeError
        If the array is read-only, or its strides are no multiples of an element, and `copy` is
        False: a receiver that does not know the mark would write into it.
    """
    xp = backend.module(backend.home_of("to_dlpack", "array", array))
    dtype = array.dtype
    foreign = dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 16
    if foreign or dtype.name in ("longdouble", "float128"):
        raise DTypeError(
            f"to_dlpack: DLPack has no dtype {dtype}; convert the array first, e.g. with "
            ".astype('float32')"
        )
    if copy:
        return xp.array(array, copy=True)
    if not getattr(array.flags, "writeable", True):
        raise InterchangeError(
            "to_dlpack: the array is read-only, and the receiver could write into it; pass "
            "copy=True, or set array.flags.writeable"
        )
    if any(stride % dtype.itemsize for stride in array.strides):
        raise InterchangeError(
            f"to_dlpack: the strides {array.strides} are no multiples of an element of "
            f"{dtype.itemsize} bytes; pass copy=True"
        )
    return array


def _device(source: Any) -> tuple[int, int]:
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise DTypeError(
            f"from_dlpack: expected an array with __dlpack__, got {type(source).__name__}"
        )
    kind, number = source.__dlpack_device__()
    return int(kind), int(np.int64(number))
