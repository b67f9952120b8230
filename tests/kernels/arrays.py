"""Arrays as the kernels store them, and how exactly results must agree."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import numpy as np

from gpulayers.cuda import table


class Launcher(Protocol):
    """See `tests.kernels.launchers`."""

    def launch(
        self,
        name: str,
        dtype: str,
        index: str,
        grid: Any,
        args: Any,
        shared_mem: int = 0,
        block: int = 0,
        constants: str = "",
    ) -> None: ...


NUMPY = {"float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "u2"}
#: type that sums are kept in
WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
#: relative to the size of the result: a few roundings of the storage type
TOLERANCE = {"float32": 3e-6, "float64": 2e-14, "float16": 2e-3, "bfloat16": 1.2e-2}

#: every storage type and both index types, the usual one first
COMBINATIONS = (
    ("float32", "int32"),
    ("float64", "int64"),
    ("float16", "int32"),
    ("bfloat16", "int64"),
)


def random(*shape: int, seed: str = "", scale: float = 1.0) -> np.ndarray:
    """Normal numbers in float64, the same in each run; in float32 none lies half way between two
    of TF32, where architectures round differently (fragments.cuh)."""
    seed_number = zlib.crc32(f"{seed}{shape}".encode())
    values = np.random.default_rng(seed_number).standard_normal(shape) * scale
    ties = np.asarray(values, np.float32).view(np.uint32) % 2**13 == 2**12
    return np.where(ties, values * (1 + 2.0**-20), values)


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to the storage type, to the nearest, ties to even."""
    values = np.asarray(values)
    if dtype != "bfloat16":
        return np.ascontiguousarray(values.astype(NUMPY[dtype]))
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


def load(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The stored numbers in float64, exactly."""
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


#: whether ties to TF32 go to even numbers, as from sm_90 on; a device before rounds them away
ties = {"to even": True}


def tf32(values: np.ndarray) -> np.ndarray:
    """`values` to the nearest of 10 bits of mantissa; see `ties`."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = bits >> np.uint32(13) & np.uint32(1)
    up = np.uint32(0xFFF) + (odd if ties["to even"] else np.uint32(1))
    nearest = ((bits + up) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), nearest, values).astype(np.float64)


def rounded(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`values` as stored, and what is left of them in float64."""
    stored = store(values, dtype)
    return stored, load(stored, dtype)


def poisoned(shape: Any, dtype: str) -> np.ndarray:
    """An output array full of what no kernel computes, so that an element left out shows."""
    if dtype not in NUMPY:
        return np.full(shape, 0xAB, dtype=dtype)
    return store(np.full(shape, -7777.0), dtype)


def blocks(threads: int, name: str) -> tuple[int, ...]:
    """Grid of one dimension for at least `threads` threads."""
    return (-(-threads // table.KERNELS[name].block),)


def close(got: np.ndarray, want: np.ndarray, dtype: str, factor: float = 1.0) -> None:
    """`got` (stored) equals `want` (float64) up to the storage type's tolerance."""
    want = np.asarray(want, dtype=np.float64)
    finite = np.abs(want[np.isfinite(want)])
    scale = max(float(finite.max()), 1e-30) if finite.size else 1.0
    tolerance = TOLERANCE[dtype] * factor
    np.testing.assert_allclose(
        load(got, dtype), want, rtol=tolerance, atol=tolerance * min(scale, 1.0)
    )
