"""Philox words from NumPy's own compiled generator: the same stream, many times faster."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpulayers.backend import Array

_MASK = 2**64 - 1


class CpuRandom:
    """numpy.random.Philox with the key and counter set."""

    def philox_words(self, xp: ModuleType, key: tuple[int, int], counter: int, n: int) -> Array:
        words = [counter >> shift & _MASK for shift in (0, 64, 128, 192)]
        bits = np.random.Philox(
            key=np.array(key, dtype=np.uint64), counter=np.array(words, dtype=np.uint64)
        )
        return bits.random_raw(n)
