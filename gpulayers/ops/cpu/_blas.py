"""Sums of multiples by BLAS: one pass over memory where NumPy's operations take two or three, and
a column added to a matrix, where they take a loop for each row.

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
    letter, number = ("s", ctypes.c_float) if dtype.char == "f" else ("d", ctypes.c_double)
    size, vector = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64)
    arguments = (  # a library of 32-bit integers reads the lower half of them
        (size, number, *vector, *vector),
        (size, number, *vector, number, *vector),
        (ctypes.c_int, size, size, number, *vector, *vector, *vector),
    )
    for library in blas_libraries():
        if library.internal_api != "openblas":
            continue
        for name in _NAMES:
            full = [name.format(letter + field) for field in _Functions._fields]
            if all(hasattr(library.dynlib, field) for field in full):
                found = [getattr(library.dynlib, field) for field in full]
                for function, types in zip(found, arguments, strict=True):
                    function.argtypes, function.restype = types, None
                return _Functions(*found)
    return None


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
