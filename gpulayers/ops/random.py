"""Random words and uniform numbers from Philox4x64-10, the same on every backend."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops._kernels import kernels_of_module

# random bits that fit the significand: dtype name -> (bits, unsigned word the bits come from)
_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def words(xp: ModuleType, key: tuple[int, int], counter: int, n: int) -> Array:
    """Return `n` uint64 words of the stream (key, counter), in the order of
    ``numpy.random.Philox(key=key, counter=counter).random_raw``."""
    return kernels_of_module(xp).philox_words(xp, key, counter, n)


def uniform(xp: ModuleType, key: tuple[int, int], counter: int, n: int, dtype: Any) -> Array:
    """Return `n` numbers of `dtype`, uniform in [0, 1).

    Each is the top bits of a 64-bit word (float64) or of a 32-bit half, low half first (the
    narrower types), times 2**-bits.
    """
    dtype = np.dtype(dtype)
    bits = _BITS[dtype.name]
    if dtype == np.float64:
        raw = words(xp, key, counter, n) >> np.uint64(64 - bits)
        return raw.astype(np.float64) * np.float64(2.0**-bits)
    raw = words(xp, key, counter, -(-n // 2)).view(np.uint32)[:n] >> np.uint32(32 - bits)
    return (raw.astype(np.float32) * np.float32(2.0**-bits)).astype(dtype, copy=False)
