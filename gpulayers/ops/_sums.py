"""The dtype in which numbers are added up."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array


def sum_dtype(X: Array) -> Any:
    """float32 for a half-precision `X`, else X's dtype.

    Half precision loses sums of many numbers (adding ones, float16 stalls at 2048 and bfloat16 at
    256), and squares overflow.
    """
    return "float32" if X.dtype.itemsize == 2 else X.dtype
