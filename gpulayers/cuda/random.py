"""Random words on a GPU, the same as on the CPU."""

from __future__ import annotations

from types import ModuleType

import cupy
import numpy as np

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.ops.reference import Reference

_MASK = 2**64 - 1
_DTYPE = np.dtype("float64")  # the kernel has no storage type; its table entry says float64


class CudaRandom(Reference):
    """Philox4x64-10; one thread works out four words."""

    def philox_words(self, xp: ModuleType, key: tuple[int, int], counter: int, n: int) -> Array:
        words = cupy.empty(n, dtype=cupy.uint64)
        halves = (counter & _MASK, counter >> 64 & _MASK)
        args = (words, n, *key, *halves)
        launch_elements("philox_words", _DTYPE, -(-n // 4), args, table.index_for(n))
        return words
