"""Comparing arrays of any backend and dtype with gold values."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers.backend import to_cpu, xp_of

# unit roundoff of the dtype times room for sums of some dozen terms
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


def host(array: Any) -> np.ndarray:
    """`array` on the host in float64 (integers and booleans as they are)."""
    array = to_cpu(array)
    return array.astype(np.float64) if array.dtype.kind not in "iub" else array


def assert_close(actual: Any, gold: Any, *, dtype: Any = None, factor: float = 1.0) -> None:
    """Same shape, values within the dtype's tolerance of the largest gold value; NaNs match."""
    name = np.dtype(actual.dtype if dtype is None else dtype).name
    gold = np.asarray(gold)
    assert actual.shape == gold.shape, f"shape {actual.shape}, gold has {gold.shape}"
    finite = np.abs(gold[np.isfinite(gold)])
    tolerance = factor * TOLERANCE[name]
    np.testing.assert_allclose(
        host(actual), gold, rtol=tolerance, atol=tolerance * max(1.0, finite.max(initial=0.0))
    )


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Same dtype, shape and every bit (NaN equals NaN)."""
    a, b = to_cpu(actual), to_cpu(expected)
    assert a.dtype == b.dtype, f"dtype {a.dtype}, expected {b.dtype}"
    np.testing.assert_array_equal(a, b)


def scrambled(array: Any, layout: str) -> Any:
    """The same values on the same backend in another memory layout (one of `LAYOUTS`)."""
    xp = xp_of(array)
    if layout == "fortran":
        return xp.asfortranarray(array)
    if layout == "strided":
        wide = xp.full((*array.shape[:-1], 2 * array.shape[-1] + 1), 99, dtype=array.dtype)
        wide[..., 1::2] = array
        return wide[..., 1::2]
    if layout == "reversed":
        return xp.ascontiguousarray(array[::-1])[::-1]
    raise ValueError(f"unknown layout {layout!r}")


LAYOUTS = ("fortran", "strided", "reversed")
