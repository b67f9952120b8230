"""Device memory for captures alone: what one lets go of serves the next, and nobody else.

A graph keeps addresses. CuPy's pools give what is free in them back to the device when memory gets
scarce, in the midst of a capture too, and those are the very places that graphs write to; and a
pool that is dropped keeps what it held (CuPy 14). This memory is given back when its arena is gone
and every array in it, and at no other time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

__all__ = ["Arena"]

_UNIT = 512  # bytes that blocks are multiples of, as CuPy's
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Arena:
    """Blocks cut out of segments that the device gave; the smallest that is large enough is taken.

    Attributes
    ----------
    nbytes : int
        Bytes of all segments.
    """

    def __init__(self) -> None:
        self._segments: list[tuple[int, Any]] = []  # device, cupy.cuda.Memory
        self._begins: set[int] = set()  # addresses of segments, over which blocks do not grow
        self._free: dict[int, dict[int, int]] = {}  # device -> address -> bytes
        self._taken: dict[int, int] = {}
        self._returned: list[tuple[int, int]] = []  # address, device
        self.nbytes = 0

    @property
    def malloc(self) -> Callable[[int], Any]:
        """An allocator for ``cupy.cuda.using_allocator``; the arrays keep the arena alive."""
        return cupy.cuda.PythonFunctionAllocator(self._take, self._give).malloc

    def mark(self) -> int:
        """Where the arena stands, for `back_to`."""
        return len(self._segments)

    def back_to(self, mark: int) -> None:
        """Give back to the device what has come since and is free: after a capture that failed."""
        self._sort_in()
        kept: list[tuple[int, Any]] = []
        for i, (device, memory) in enumerate(self._segments):
            free = self._free[device]
            if i < mark or free.get(memory.ptr) != memory.size:
                kept.append((device, memory))
                continue
            del free[memory.ptr]
            self._begins.discard(memory.ptr)
            self.nbytes -= memory.size
        self._segments = kept

    def _take(self, size: int, device: int) -> int:
        size = -(-size // _UNIT) * _UNIT
        self._sort_in()
        free = self._free.setdefault(device, {})
        fitting = [(length, start) for start, length in free.items() if length >= size]
        if not fitting:
            fitting = [self._grow(size, device)]
        length, start = min(fitting)
        del free[start]
        if length > size:
            free[start + size] = length - size
        self._taken[start] = size
        return start

    def _give(self, address: int, device: int) -> None:
        # whenever an array goes, even in the midst of `_take`: so it is only noted
        self._returned.append((address, device))

    def _sort_in(self) -> None:
        """Blocks that have been returned are free, joined with their neighbours."""
        while self._returned:
            start, device = self._returned.pop()
            length, free = self._taken.pop(start), self._free[device]
            after = start + length
            if after in free and after not in self._begins:
                length += free.pop(after)
            if start not in self._begins:
                before = next((s for s, n in free.items() if s + n == start), None)
                if before is not None:
                    start, length = before, length + free[before]
            free[start] = length

    def _grow(self, size: int, device: int) -> tuple[int, int]:
        pool = cupy.get_default_memory_pool()
        limit, held = pool.get_limit(), pool.total_bytes() + self.nbytes
        if limit and held + size > limit:  # a limit is meant for the whole process
            raise cupy.cuda.memory.OutOfMemoryError(size, held, limit)
        try:
            memory = cupy.cuda.Memory(size)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            raise cupy.cuda.memory.OutOfMemoryError(size, held, limit) from None
        self._segments.append((device, memory))
        self._begins.add(memory.ptr)
        self._free[device][memory.ptr] = size
        self.nbytes += size
        return size, memory.ptr
