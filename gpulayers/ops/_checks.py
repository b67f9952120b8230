"""Checks that the families share: one library, one floating dtype, C-contiguous, right shapes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import BackendError, DTypeError, ShapeError


def array(op: str, name: str, value: Any) -> None:
    """Raise DTypeError unless `value` is a numpy or cupy array."""
    try:
        xp_of(value)
    except DTypeError as error:
        raise DTypeError(f"{op}: {name}: {error}") from None


def one_library(op: str, *arrays: Array | None) -> ModuleType:
    """Return the library of all `arrays`; an error names the operation."""
    try:
        return xp_of(*arrays)
    except (BackendError, DTypeError) as error:
        raise type(error)(f"{op}: {error}") from None


def same_float(op: str, **arrays: Array | None) -> list[Array]:
    """Return the arrays (``None`` stays) C-contiguous, after checking library and dtype.

    Byte-swapped and unaligned arrays, as of memory-mapped files, are copied.

    Raises
    ------
    BackendError
        If numpy and cupy arrays are mixed.
    DTypeError
        If one is no floating array, or the dtypes differ.
    """
    xp = one_library(op, *arrays.values())
    dtype, first = None, ""
    result: list[Array | None] = []
    for name, given in arrays.items():
        if given is None:
            result.append(None)
            continue
        if given.dtype is not dtype:  # else all of it has been asked of the array before
            if not is_floating(given.dtype):
                raise DTypeError(f"{op}: {name} must be a floating array, got {given.dtype}")
            if not given.dtype.isnative:
                given = given.astype(given.dtype.newbyteorder("="))
            if dtype is None:
                dtype, first = given.dtype, name
            elif given.dtype != dtype:
                raise DTypeError(
                    f"{op}: {name} is {given.dtype}, but {first} is {dtype}; convert one of them"
                )
        flags = given.flags
        if not flags.c_contiguous:
            given = xp.ascontiguousarray(given)
        elif not getattr(flags, "aligned", True):
            given = given.copy()
        result.append(given)
    return result


def changeable(given: Array) -> Array:
    """`given` if a kernel can change it in place, else a copy which it can: C-contiguous, in the
    machine's byte order, aligned, writable."""
    flags, dtype = given.flags, given.dtype
    if flags.c_contiguous and dtype.isnative and getattr(flags, "behaved", True):
        return given
    return xp_of(given).array(
        given, dtype=dtype if dtype.isnative else dtype.newbyteorder("="), order="C"
    )


def rank(op: str, name: str, value: Array, ndim: int, axes: str) -> None:
    """Raise ShapeError unless `value` has `ndim` axes; `axes` describes them."""
    array(op, name, value)
    if value.ndim != ndim:
        raise ShapeError(f"{op}: {name} must have shape {axes}, got {value.shape}")


def shape(op: str, name: str, value: Array, expected: tuple[int, ...]) -> None:
    """Raise ShapeError unless `value` has exactly the shape `expected`."""
    array(op, name, value)
    if value.shape != expected:
        raise ShapeError(f"{op}: {name} must have shape {expected}, got {value.shape}")
