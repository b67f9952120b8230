"""Sums of multiples by BLAS: one pass over memory where NumPy's operations take two or three, a
column added to a matrix, where they take a loop for each row, and large matrices turned around.

NumPy does not offer them, but OpenBLAS, which its wheels bring along, has them under C names. They
are looked up in the library whose threads `gpulayers.threads` controls; where there is no such
library, or not those names, NumPy computes. BLAS takes a factor of zero to mean that there is
nothing to read, so that NaN and infinity would be lost: those go to NumPy, too. The arrays must be
contiguous.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops.cpu import _blocks
from gpulayers.threads import blas_libraries

# OpenBLAS is built with names of its own, so that two of them can live in one process.
_NAMES = ("scipy_cblas_{}64_", "cblas_{}64_", "scipy_cblas_{}", "cblas_{}")
ROWS = 101  # CblasRowMajor
_TRANSPOSED = 112  # CblasTrans
_LARGE = 1 << 13  # numbers of a matrix that BLAS turns faster than NumPy, whose loop is plain


class _Functions(NamedTuple):
    """Of C, so arrays are given by their `address`, which for a block is found by adding: to ask a
    block takes longer than to call, and for that time no other thread can begin anything."""

    axpy: Callable[..., None]  # (n, a, x, 1, y, 1): y += a x
    axpby: Callable[..., None]  # (n, a, x, 1, b, y, 1): y = a x + b y
    ger: Callable[..., None]  # (ROWS, m, n, a, x, 1, y, 1, matrix, n): matrix += a x y^T


@cache
def functions(dtype: np.dtype) -> _Functions | None:
    """The functions for numbers of `dtype`; None where there are none."""
    if dtype.char not in "fd":
        return None
    number = _numbers(dtype)
    size, vector = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64)
    arguments = (  # a library of 32-bit integers reads the lower half of them
        (size, number, *vector, *vector),
        (size, number, *vector, number, *vector),
        (ctypes.c_int, size, size, number, *vector, *vector, *vector),
    )
    found = _looked_up(dtype, _Functions._fields, arguments)
    return None if found is None else _Functions(*found)


@cache
def _turning(dtype: np.dtype) -> Callable[..., None] | None:
    """``omatcopy(ROWS, _TRANSPOSED, m, n, 1, a, lda, b, ldb)``: b = a^T; None where it is not."""
    size, matrix = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64)
    types = (ctypes.c_int, ctypes.c_int, size, size, _numbers(dtype), *matrix, *matrix)
    found = _looked_up(dtype, ("omatcopy",), (types,)) if dtype.char in "fd" else None
    return None if found is None else found[0]


def _numbers(dtype: np.dtype) -> type[ctypes.c_float | ctypes.c_double]:
    return ctypes.c_float if dtype.char == "f" else ctypes.c_double


def _looked_up(
    dtype: np.dtype, fields: Iterable[str], arguments: Iterable[tuple[type, ...]]
) -> list[Callable[..., None]] | None:
    """OpenBLAS's functions of that name for `dtype`; None if one is not there."""
    letter = "s" if dtype.char == "f" else "d"
    for library in blas_libraries():
        if library.internal_api != "openblas":
            continue
        for name in _NAMES:
            full = [name.format(letter + field) for field in fields]
            if all(hasattr(library.dynlib, field) for field in full):
                found = [getattr(library.dynlib, field) for field in full]
                for function, types in zip(found, arguments, strict=True):
                    function.argtypes, function.restype = types, None
                return found
    return None


def turn(source: Array, out: Array) -> None:
    """out (k, n, m) = each matrix of `source` (k, m, n), turned around; the rows of both may lie
    apart in memory."""
    k, m, n = source.shape
    item = source.itemsize
    function = _turning(source.dtype) if m * n >= _LARGE else None
    steps = (*source.strides[:2], *out.strides[:2])
    if (
        function is None
        or not source.strides[2] == out.strides[2] == item
        or not (out.dtype == source.dtype and out.flags.writeable and source.dtype.isnative)
        or source.strides[1] < n * item
        or out.strides[1] < m * item
        or any(step % item for step in steps)
    ):
        out[...] = source.transpose(0, 2, 1)
        return
    lda, ldb = source.strides[1] // item, out.strides[1] // item
    a, b = address(source), address(out)
    for _ in range(k):
        function(ROWS, _TRANSPOSED, m, n, 1.0, a, lda, b, ldb)
        a, b = a + source.strides[0], b + out.strides[0]


def serves(written: Iterable[Array], factors: Iterable[float]) -> _Functions | None:
    """The functions if sums with these factors, written to these arrays of one size, are BLAS's;
    else None."""
    arrays = list(written)
    number = arrays[0].dtype.type
    if (
        _blocks.SMALL < arrays[0].size < 1 << 31  # there are libraries of 32-bit integers
        and all(array.flags.writeable for array in arrays)  # BLAS would not ask
        and all(number(factor) != 0 for factor in factors)
    ):
        return functions(arrays[0].dtype)
    return None


def address(array: Array) -> int:
    """Where the array's numbers begin in memory."""
    return array.__array_interface__["data"][0]
