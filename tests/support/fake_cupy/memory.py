"""Device memory: aligned poisoned blocks, pools that count the live bytes, allocators."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.support.fake_cupy.state import CUDARuntimeError, poison, state

ALIGNMENT = 512  # CuPy's pool rounds every block up to this and aligns it so


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(f"{text}, limit set to: {limit:,} bytes)." if limit else f"{text}).")


def rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class MemoryPool:
    """Counts live and cached bytes; freed blocks stay cached until `free_all_blocks`."""

    def __init__(self, allocator: Any = None) -> None:
        self._used = 0
        self._total = 0
        self._limit = 0
        self.given_out = 0  # blocks that went to somebody outside a capture

    def _take(self, nbytes: int) -> None:
        size = rounded(nbytes)
        if self._limit and self._used + size > self._limit:
            raise OutOfMemoryError(size, self._used, self._limit)
        self.given_out += state.recording is None
        self._used += size
        self._total = max(self._total, self._used)

    def _give(self, nbytes: int) -> None:
        self._used -= rounded(nbytes)

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(Block(int(size), self), 0)

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def free_all_blocks(self, stream: Any = None) -> None:
        self._total = self._used

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("exactly one of size and fraction must be given")
        self._limit = int(size) if size is not None else int(TOTAL_MEMORY * (fraction or 0.0))

    def get_limit(self) -> int:
        return self._limit


TOTAL_MEMORY = 16 << 30
default_pool = MemoryPool()
pinned_pool = MemoryPool()
unpooled = MemoryPool()  # what `Memory` took; its limit is the device's own memory
_allocator: Callable[[int], MemoryPointer] = default_pool.malloc


#: the live blocks by the identity of the NumPy array that holds their bytes
blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()


class Block:
    """One allocation; gives its bytes back to the pool when nothing refers to it any more."""

    def __init__(self, nbytes: int, pool: MemoryPool) -> None:
        pool._take(nbytes)
        self.size, self._pool = nbytes, pool
        raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self._lies(raw, raw[start : start + nbytes])

    def _lies(self, owner: np.ndarray, part: np.ndarray) -> None:
        self.bytes, self.ptr, self.device_id = part, part.ctypes.data, state.device
        blocks[id(owner)] = self

    @property
    def pool(self) -> MemoryPool:
        return self._pool

    def __del__(self) -> None:
        if hasattr(self, "bytes"):
            self._pool._give(self.size)


class Memory(Block):
    """Memory of the device's own, outside any pool. Parts of it go to others by their addresses
    (`PythonFunctionAllocator`)."""

    def __init__(self, size: int) -> None:
        try:
            super().__init__(int(size), unpooled)
        except OutOfMemoryError as error:
            raise CUDARuntimeError(2, "cudaErrorMemoryAllocation", "out of memory") from error
        self.given_out = 0  # parts that went to somebody outside a capture
        _segments[self.ptr] = self


_segments: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


class _Part(Block):
    """What an allocator in Python cut out of a `Memory`."""

    def __init__(self, size: int, malloc: Callable[..., int], free: Callable[..., None]) -> None:
        self.size, self._free = size, free
        if not size:  # nothing is asked for, and nothing can be wrong with it
            self.bytes = np.empty(0, np.uint8)
            self.ptr, self.device_id = self.bytes.ctypes.data, state.device
            return
        address = malloc(size, state.device)
        end = address + size
        found = [s for s in _segments.values() if s.ptr <= address and end <= s.ptr + s.size]
        if not found:
            raise ValueError(f"{size} bytes at {address} lie in no memory of the device")
        segment = found[0]
        self._segment = weakref.ref(segment)
        segment.given_out += state.recording is None
        # by way of a memoryview, so that the part is the owner of its bytes
        start = address - segment.ptr
        part = np.frombuffer(memoryview(segment.bytes)[start : start + size], np.uint8)
        self._lies(part, part)

    @property
    def pool(self) -> Any:
        return self._segment()

    def __del__(self) -> None:
        if hasattr(self, "_segment"):
            self._free(self.ptr, self.device_id)


class PythonFunctionAllocator:
    """Asks functions of Python's for an address, and tells them when its memory is done with."""

    def __init__(self, malloc_func: Callable[..., int], free_func: Callable[..., None]) -> None:
        self._malloc_func, self._free_func = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(_Part(int(size), self._malloc_func, self._free_func), 0)


class MemoryPointer:
    """An address inside a block: `pointer.ptr`, `pointer.mem`."""

    def __init__(self, mem: Block, offset: int) -> None:
        self.mem, self._offset = mem, offset
        self.ptr = mem.ptr + offset
        self.device_id = mem.device_id

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self._offset + int(offset))

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        self.mem.bytes[self._offset : self._offset + int(size)] = value

    def _view(self, shape: tuple[int, ...], dtype: np.dtype, order: str) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        part = self.mem.bytes[self._offset : self._offset + nbytes]
        if part.size != nbytes:
            raise ValueError(f"array of {nbytes} bytes does not fit its memory block")
        return part.view(dtype).reshape(shape, order=order)


def allocate(shape: Any, dtype: Any, order: str = "C") -> tuple[np.ndarray, Block]:
    """A new poisoned array from the current allocator."""
    dtype = checked_dtype(dtype)
    shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(n) for n in shape)
    if any(n < 0 for n in shape):
        raise ValueError("negative dimensions are not allowed")
    nbytes = math.prod(shape) * dtype.itemsize
    state.note_alloc(nbytes, dtype)
    pointer = _allocator(nbytes)
    array = pointer._view(shape, dtype, order)
    poison(array)
    return array, pointer.mem


def adopt(array: np.ndarray, keep_layout: bool = False) -> tuple[np.ndarray, Block]:
    """Copy a NumPy result into device memory: C order, or the same order of axes."""
    axes = list(range(array.ndim))
    if keep_layout:
        axes.sort(key=lambda axis: -abs(array.strides[axis]))  # stable: ties stay in C order
    turned = array.transpose(axes)
    dtype = checked_dtype(array.dtype)
    state.note_alloc(array.nbytes, dtype)
    pointer = _allocator(array.nbytes)
    copy = pointer._view(turned.shape, dtype, "C")
    copy[...] = turned
    return copy.transpose(np.argsort(axes)) if axes else copy, pointer.mem


def checked_dtype(dtype: Any) -> np.dtype:
    """The dtypes a device array can have; CuPy's error for the others."""
    dtype = np.dtype(dtype)
    known = dtype.kind in "biufc" and dtype.itemsize <= 16 and dtype.char not in "gG"
    if not (known or dtype.name == "bfloat16"):
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


class Hold:
    """What a graph knows of memory that it uses: whether that can still be its own."""

    def __init__(self, block: Block) -> None:
        self._block, self._pool = weakref.ref(block), weakref.ref(block.pool)
        self._is_default = block.pool is default_pool
        self._given_out = 0

    def captured(self) -> None:
        """The capture ends: from now on nobody else may be given the pool's memory."""
        pool = self._pool()
        self._given_out = pool.given_out if pool is not None else 0

    def fault(self) -> str | None:
        """Why a launch of the graph would use memory that may be somebody else's; None if not."""
        if self._block() is not None:
            return None
        pool = self._pool()
        if self._is_default:
            return "an array that is gone, whose memory the default pool may give to others"
        if pool is None:
            return "memory of a pool that is gone"
        if pool.given_out > self._given_out:
            return "memory that its pool has given to others since the capture"
        return None


def get_allocator() -> Callable[[int], MemoryPointer]:
    return _allocator


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    _allocator = allocator or default_pool.malloc


def alloc(size: int) -> MemoryPointer:
    return _allocator(size)


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = _allocator
    set_allocator(allocator)
    try:
        yield
    finally:
        set_allocator(before)
