"""State spaces: bytes with a map of what is allocated, and what threads do to shared memory.

An access must be aligned to all of its bytes and lie in one allocation; gaps are between them.
Global memory lies around a multiple of 2^32, so that an address worked out in 32 bits misses it.
Every byte of shared memory knows which thread wrote it and which warp read it since which barrier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["FaultError", "Generic", "Global", "Local", "Shared", "Space"]

Array = np.ndarray[Any, Any]
GAP = 4096
_AROUND = 0x7F13 << 32
#: not multiples of 2^32, so that half of a generic address is no address in the space
_SHARED_WINDOW, _LOCAL_WINDOW = 0x7E0047 << 24, 0x7D0031 << 24
_FIRST_SHARED = 1024  # so that no address is null
_NOBODY, _MANY = -1, 0xFFF


class FaultError(Exception):
    """What an instruction may not do; `threads` that did."""

    def __init__(self, kind: str, text: str, threads: Array | Sequence[int] = ()) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text
        self.threads = [int(thread) for thread in threads]


class Space:
    """Bytes from `base` on, of which those that are `valid` can be used."""

    def __init__(self, name: str, base: int, size: int) -> None:
        self.name, self.base, self.size = name, base, -(-size // 16) * 16 + 16
        self.bytes = np.zeros(self.size // 8, np.uint64).view(np.uint8)
        self.valid = np.zeros(self.size, np.bool_)
        self._views: dict[Any, Array] = {}

    def view(self, kind: Any) -> Array:
        """All bytes as numbers of a type."""
        if kind not in self._views:
            self._views[kind] = self.bytes.view(kind)
        return self._views[kind]

    def offsets(self, address: Array, width: int, threads: Array) -> Array:
        """Where accesses of `width` bytes begin, checked."""
        skew = address % np.uint64(width) != 0
        if skew.any():
            raise FaultError(
                "misaligned-access",
                f"{width} bytes of {self.name} memory at {int(address[skew][0]):#x}",
                threads[skew],
            )
        offset = (address - np.uint64(self.base)).view(np.int64)
        beyond = (offset < 0) | (offset > self.size - width)
        inside = np.where(beyond, 0, offset)
        wrong = beyond | ~(self.valid[inside] & self.valid[inside + width - 1])
        if wrong.any():
            at = int(address[wrong][0])
            text = f"{width} bytes at {at:#x} are in no allocation of {self.name} memory"
            raise FaultError("out-of-bounds", text, threads[wrong])
        return offset

    def read(self, address: Array, kind: Any, count: int, threads: Array) -> Array:
        """`count` numbers from each address: (threads, count)."""
        size = np.dtype(kind).itemsize
        offset = self.offsets(address, size * count, threads)
        self.note_read(offset, size * count, threads)
        return self.view(kind)[(offset // size)[:, None] + np.arange(count)]

    def write(self, address: Array, values: Array, threads: Array) -> None:
        """`values` (threads, count) to each address."""
        size, count = values.dtype.itemsize, values.shape[1]
        offset = self.offsets(address, size * count, threads)
        self.note_write(offset, size * count, threads)
        self.view(values.dtype.type)[(offset // size)[:, None] + np.arange(count)] = values

    def note_read(self, offset: Array, width: int, threads: Array) -> None:
        """Called before a read."""

    def note_write(self, offset: Array, width: int, threads: Array) -> None:
        """Called before a write."""


class Global(Space):
    """The memory of a device, with copies of the arrays that a kernel gets.

    What is read by ld.global.nc may not be written by the same launch (PTX ISA, "ld.global.nc"):
    the cache on that way is not told.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.places: dict[int, tuple[Array, int]] = {}
        offset = GAP
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(f"an array of shape {array.shape} is not C-contiguous")
            if array.nbytes and array.ctypes.data not in self.places:
                offset += _skew(array)
                self.places[array.ctypes.data] = array, offset
                offset = -(-(offset + 2 * array.nbytes + GAP) // 256) * 256
        base = _AROUND - offset // 2 // 256 * 256
        super().__init__("global", base, offset)
        self.unchanging = np.zeros(self.size, np.bool_)
        self.written = np.zeros(self.size, np.bool_)
        for array, place in self.places.values():
            self.bytes[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)
            self.valid[place : place + array.nbytes] = True

    def address(self, array: Array) -> int:
        """That of an array; null for an empty one, as CuPy has it."""
        if not array.nbytes:
            return 0
        known, place = self.places[array.ctypes.data]
        if known.nbytes != array.nbytes:
            raise ValueError(f"arrays of {known.nbytes} and {array.nbytes} bytes at one address")
        return self.base + place

    def read_unchanging(self, address: Array, kind: Any, count: int, threads: Array) -> Array:
        """ld.global.nc."""
        values = self.read(address, kind, count, threads)
        width = values.dtype.itemsize * count
        self.unchanging[_each(self.offsets(address, width, threads), width)] = True
        return values

    def note_write(self, offset: Array, width: int, threads: Array) -> None:
        self.written[_each(offset, width)] = True

    def finish(self) -> None:
        """Copies what was written back; arrays that nobody may write must not have changed."""
        both = self.unchanging & self.written
        if both.any():
            at = self.base + int(np.flatnonzero(both)[0])
            raise FaultError("read-only-path", f"ld.global.nc of {at:#x}, which this launch writes")
        for array, place in self.places.values():
            if not self.written[place : place + array.nbytes].any():
                continue
            if not array.flags.writeable:
                raise FaultError("read-only-array", f"wrote an array of shape {array.shape}")
            new = self.bytes[place : place + array.nbytes].view(array.dtype)
            array[...] = new.reshape(array.shape)


def _skew(array: Array) -> int:
    """How far an array begins in the memory it is a part of: CuPy's arrays begin at 256 bytes."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return (array.ctypes.data - base.ctypes.data) % 256


def _each(offset: Array, width: int) -> Array:
    return offset[:, None] + np.arange(width)


class Shared(Space):
    """Shared memory of a block of `threads`."""

    def __init__(self, threads: int, variables: Sequence[tuple[str, int, int]]) -> None:
        """`variables`: name, alignment and bytes of each; none is aligned better than it says."""
        self.places, offset = {}, 0
        for name, align, count in variables:
            offset = -(-offset // align) * align
            offset += align * (offset % (2 * align) == 0)
            self.places[name] = (offset, count)
            offset += count + 256  # a gap
        super().__init__("shared", _FIRST_SHARED, offset)
        for place, count in self.places.values():
            self.valid[place : place + count] = True
        self.threads = threads
        self.writer = np.zeros(0, np.int64)
        self.reset()

    def reset(self) -> None:
        """For another block."""
        self.bytes[:] = 0xCB
        self.writer = np.full(self.size, _NOBODY, np.int64)  # barrier, warp's barrier, thread
        self.reader = np.full(self.size, _NOBODY, np.int64)  # barrier, warp
        self.under_way = np.zeros(self.size, np.bool_)
        self.hidden = np.full(self.size, _NOBODY, np.int32)  # from products: who wrote it
        self.barriers = 1
        self.warp_barriers = np.zeros(-(-self.threads // 32), np.int64)

    def address(self, name: str) -> int:
        """That of a variable."""
        return self.base + self.places[name][0]

    def show_to_products(self, threads: Array) -> None:
        """fence.proxy.async: products see what these threads have written."""
        self.hidden[np.isin(self.hidden, threads)] = _NOBODY

    def _conflicts(self, stamps: Array, threads: Array) -> Array:
        """Which bytes another thread has written with no barrier since."""
        by, warp = stamps & 0xFFF, (threads >> 5)[:, None]
        in_order = (by >> 5 == warp) & ((stamps >> 12 & 0xFFFFF) < self.warp_barriers[warp])
        return (stamps >> 32 == self.barriers) & (by != threads[:, None]) & ~in_order

    def _refuse(self, wrong: Array, kind: str, text: str, offset: Array, threads: Array) -> None:
        if wrong.any():
            rows = wrong.any(axis=1)
            at = int(offset[rows][0]) + self.base
            raise FaultError(kind, f"{text}, shared memory at {at:#x}", threads[rows])

    def note_read(self, offset: Array, width: int, threads: Array) -> None:
        each = _each(offset, width)
        self._refuse(self.under_way[each], "copy-under-way", "read", offset, threads)
        stamps = self.writer[each]
        self._refuse(stamps < 0, "uninitialised-shared", "read before written", offset, threads)
        wrong = self._conflicts(stamps, threads)
        self._refuse(wrong, "race-in-block", "another thread wrote it just now", offset, threads)
        warp = np.broadcast_to((threads >> 5)[:, None], each.shape)
        old, now = self.reader[each], self.barriers << 12
        several = (old >> 12 == self.barriers) & (old & 0xFFF != warp)
        new = np.where(several, now | _MANY, now | warp)
        self.reader[each] = new
        clash = self.reader[each] != new  # several warps at once
        if clash.any():
            self.reader[each[clash]] = now | _MANY

    def note_write(self, offset: Array, width: int, threads: Array) -> None:
        each = _each(offset, width)
        self._refuse(self.under_way[each], "copy-under-way", "written", offset, threads)
        wrong = self._conflicts(self.writer[each], threads)
        self._refuse(wrong, "race-in-block", "another thread wrote it just now", offset, threads)
        old = self.reader[each]
        wrong = (old >> 12 == self.barriers) & (old & 0xFFF != (threads >> 5)[:, None])
        self._refuse(wrong, "race-in-block", "another warp read it just now", offset, threads)
        self.stamp(each, offset, threads)

    def stamp(self, each: Array, offset: Array, threads: Array) -> None:
        """These threads have written these bytes."""
        own = self.barriers << 32 | self.warp_barriers[threads >> 5] << 12 | threads
        new = np.broadcast_to(own[:, None], each.shape)
        self.writer[each] = new
        self.hidden[each] = threads[:, None]
        wrong = self.writer[each] != new
        self._refuse(wrong, "race-in-block", "two threads write at once", offset, threads)


class Local(Space):
    """Memory of each thread: the addresses of all are the same."""

    def __init__(self, threads: int, variables: Sequence[tuple[str, int, int]]) -> None:
        self.places, offset = {}, 16
        for name, align, count in variables:
            offset = -(-offset // align) * align
            self.places[name] = offset
            offset += count
        self.each = -(-(offset + 16) // 16) * 16
        super().__init__("local", _LOCAL_WINDOW, self.each * threads)
        for name, _, count in variables:
            for thread in range(threads):
                place = thread * self.each + self.places[name]
                self.valid[place : place + count] = True

    def address(self, name: str) -> int:
        """That of a variable."""
        return self.base + self.places[name]

    def offsets(self, address: Array, width: int, threads: Array) -> Array:
        inside = (address - np.uint64(self.base)).view(np.int64)
        if ((inside < 0) | (inside >= self.each)).any():
            raise FaultError("out-of-bounds", "local memory", threads)
        own = (threads * self.each).astype(np.uint64)
        return super().offsets(address + own, width, threads)


class Generic:
    """Addresses that say by themselves of which space they are."""

    def __init__(self, outside: Global, shared: Shared, local: Local) -> None:
        self.outside, self.shared, self.local = outside, shared, local

    def space(self, address: Array, threads: Array) -> tuple[Space, Array]:
        """The space of all these addresses, and the addresses in it."""
        windows = address >> np.uint64(40)
        if (windows != windows[0]).any():
            raise FaultError("mixed-spaces", "generic addresses of several spaces", threads)
        if windows[0] == _SHARED_WINDOW >> 40:
            return self.shared, address - np.uint64(_SHARED_WINDOW)
        return (self.local if windows[0] == _LOCAL_WINDOW >> 40 else self.outside), address

    def read(self, address: Array, kind: Any, count: int, threads: Array) -> Array:
        """ld without a space."""
        space, place = self.space(address, threads)
        return space.read(place, kind, count, threads)

    def write(self, address: Array, values: Array, threads: Array) -> None:
        """st without a space."""
        space, place = self.space(address, threads)
        space.write(place, values, threads)

    @staticmethod
    def to_generic(space: str) -> int:
        """What cvta adds to an address of a space."""
        return _SHARED_WINDOW if space == "shared" else 0
