"""Checks that the families share: one library, one floating dtype, C-contiguous, right shapes."""

from __future__ import annotations

from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError, ShapeError


def same_float(op: str, **arrays: Array | None) -> list[Array]:
    """Return the arrays (``None`` stays) C-contiguous, after checking library and dtype.

    Raises
    ------
    BackendError
        If numpy and cupy arrays are mixed.
    DTypeError
        If one is no floating array, or the dtypes differ.
    """
    xp = xp_of(*arrays.values())
    dtype, first = None, ""
    result = []
    for name, array in arrays.items():
        if array is None:
            result.append(None)
            continue
        if not is_floating(array.dtype):
            raise DTypeError(f"{op}: {name} must be a floating array, got {array.dtype}")
        if dtype is None:
            dtype, first = array.dtype, name
        elif array.dtype != dtype:
            raise DTypeError(
                f"{op}: {name} is {array.dtype}, but {first} is {dtype}; convert one of them"
            )
        result.append(array if array.flags.c_contiguous else xp.ascontiguousarray(array))
    return result


def rank(op: str, name: str, array: Array, ndim: int, axes: str) -> None:
    """Raise ShapeError unless `array` has `ndim` axes; `axes` describes them."""
    if array.ndim != ndim:
        raise ShapeError(f"{op}: {name} must have shape {axes}, got {array.shape}")


def shape(op: str, name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raise ShapeError unless `array` has exactly the shape `expected`."""
    if array.shape != expected:
        raise ShapeError(f"{op}: {name} must have shape {expected}, got {array.shape}")
