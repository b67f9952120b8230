"""Copies that go on by themselves, as the PTX ISA's "Asynchronous copy" has them: cp.async,
commit_group and wait_group. A copy arrives as late as it may, when its thread has waited for its
group; until then nobody may touch where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.ptx.memory import FaultError, Global, Shared

__all__ = ["Copies"]

Array = np.ndarray[Any, Any]


@dataclass
class _Copy:
    """What several threads have asked for by one instruction."""

    threads: Array
    groups: Array
    places: Array  # (threads, bytes)
    data: Array


class Copies:
    """All that a block has asked for."""

    def __init__(self, outside: Global, shared: Shared, threads: int) -> None:
        self.outside, self.shared = outside, shared
        self.open_group = np.zeros(threads, np.int64)
        self.under_way: list[_Copy] = []

    def reset(self) -> None:
        """For another block."""
        self.open_group[:] = 0
        self.under_way = []

    def begin(self, to: Array, origin: Array, size: int, given: Array, threads: Array) -> None:
        """cp.async of `size` bytes, of which all but the first `given` are zeros."""
        if (given > size).any():
            text = f"{int(given.max())} bytes of a copy of {size}"
            raise FaultError("copy-size", text, threads[given > size])
        if (origin % np.uint64(size) != 0).any():
            raise FaultError("misaligned-access", f"copies {size} bytes from there", threads)
        data = np.zeros((len(threads), size), np.uint8)
        for count in np.unique(given[given > 0]):
            those = given == count
            place = origin[those]
            first = self.outside.read(place, np.uint8, 1, threads[those])
            last = place + np.uint64(count - 1)
            self.outside.read(last, np.uint8, 1, threads[those])
            start = (place - np.uint64(self.outside.base)).astype(np.int64)
            data[those, :count] = self.outside.bytes[start[:, None] + np.arange(count)]
            data[those, :1] = first
        offset = self.shared.offsets(to, size, threads)
        self.shared.note_write(offset, size, threads)
        places = offset[:, None] + np.arange(size)
        self.shared.under_way[places] = True
        self.under_way.append(_Copy(threads, self.open_group[threads], places, data))

    def commit(self, threads: Array) -> None:
        """What each thread has asked for since the last time is a group."""
        self.open_group[threads] += 1

    def wait(self, pending: int | None, threads: Array) -> None:
        """All groups of these threads but the last `pending` arrive; None: all that was asked."""
        waits = np.zeros(len(self.open_group), np.bool_)
        waits[threads] = True
        left = []
        for copy in self.under_way:
            group = copy.groups if pending is not None else copy.groups - 1
            done = waits[copy.threads] & (group < self.open_group[copy.threads] - (pending or 0))
            self._arrive(copy, done)
            if not done.all():
                rest = ~done
                left.append(
                    _Copy(copy.threads[rest], copy.groups[rest], copy.places[rest], copy.data[rest])
                )
        self.under_way = left

    def _arrive(self, copy: _Copy, done: Array) -> None:
        places = copy.places[done]
        self.shared.bytes[places] = copy.data[done]
        self.shared.under_way[places] = False
        if len(places):
            self.shared.stamp(places, places[:, 0], copy.threads[done])
