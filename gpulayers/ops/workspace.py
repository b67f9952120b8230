"""Memory for results on the CPU that is used again: a training step then allocates nothing large.

A fresh large array costs page faults, and its first touch misses the cache. So the CPU operations
take their results from buffers that a workspace keeps: the one entered with ``with workspace:``, as
networks do, else one of the thread's own. Nobody has to give a buffer back: it is free when nothing
refers to it any more, which Python's reference count tells, so an array that a user keeps is never
written over.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import numpy as np

from gpulayers.backend import Array

__all__ = ["Workspace", "active", "empty", "trusted", "zeros"]

VARIABLE = "GPULAYERS_WORKSPACE"
SMALL = 1 << 13  # bytes below which NumPy's own allocation is as fast
_PAGE = 4096  # bytes
_STAGGER = 17 * 64  # bytes: an odd number of cache lines, which are as wide as the widest vector
_LIMIT = 1 << 28  # bytes that a thread's own workspace keeps at most
_CALLS = 64  # of a thread's own workspace that make a round
_IDLE = 16  # rounds after which a buffer nobody used is given back to the system


class _Buffer:
    __slots__ = ("array", "used")

    def __init__(self, array: Array, used: int) -> None:
        self.array, self.used = array, used


class Workspace:
    """Buffers that the results of CPU operations are taken from, inside ``with workspace:``.

    One workspace serves one thread at a time: a second thread that enters allocates afresh. A copy
    of a workspace is an empty one.

    Parameters
    ----------
    limit : int, optional
        Bytes to keep at most; beyond them arrays are fresh ones.
    small : int
        Bytes below which arrays are fresh ones.

    Attributes
    ----------
    nbytes : int
        Of all buffers kept.
    """

    def __init__(self, limit: int | None = None, small: int = SMALL) -> None:
        self.limit, self.small = limit, small
        self._buffers: dict[int, list[_Buffer]] = {}
        self._round = 0
        self._owner = threading.RLock()
        self._entries = threading.local()
        self._thread = 0  # the owner's
        self._made = 0  # buffers, ever
        self.nbytes = 0

    def __enter__(self) -> Workspace:
        mine = self._owner.acquire(blocking=False)
        if mine:
            self._thread = threading.get_ident()
        if not hasattr(self._entries, "stack"):
            stack: list[tuple[bool, Token[Workspace | None]]] = []
            self._entries.stack = stack
        self._entries.stack.append((mine, _active.set(self if mine else None)))
        return self

    def __exit__(self, *exc: object) -> None:
        mine, token = self._entries.stack.pop()
        _active.reset(token)
        if mine:
            self._owner.release()

    def __reduce__(self) -> tuple[type[Workspace], tuple[int | None, int]]:
        return Workspace, (self.limit, self.small)

    def holds(self, address: int) -> bool:
        """Whether a buffer begins at this address."""
        return any(
            buffer.array.__array_interface__["data"][0] == address
            for kept in self._buffers.values()
            for buffer in kept
        )

    def fill(self, byte: int) -> None:
        """Overwrite all buffers, in use or not."""
        for kept in self._buffers.values():
            for buffer in kept:
                buffer.array.fill(byte)

    def next_round(self) -> None:
        """Say that a step begins; buffers idle for many steps are let go."""
        self._round += 1
        if self._round % _IDLE:
            return
        self._keep(lambda buffer: self._round - buffer.used < _IDLE)

    def _keep(self, wanted: Callable[[_Buffer], bool]) -> None:
        for size, kept in list(self._buffers.items()):
            still = [buffer for buffer in kept if wanted(buffer)]
            self.nbytes -= size * (len(kept) - len(still))
            if still:
                self._buffers[size] = still
            else:
                del self._buffers[size]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised C-contiguous array, 64-byte aligned, of a buffer that is free."""
        dtype = np.dtype(dtype)
        nbytes = dtype.itemsize * math.prod(shape)
        if nbytes < self.small:
            return np.empty(shape, dtype)
        size = -(-nbytes // _PAGE) * _PAGE
        kept = self._buffers.setdefault(size, [])
        for buffer in kept:
            if sys.getrefcount(buffer.array) == _FREE:
                break
        else:
            if self.limit is not None and not self._has_room(size):
                return np.empty(shape, dtype)
            buffer = self._new(self._buffers.setdefault(size, []), size)
        buffer.used = self._round
        return np.ndarray(shape, dtype, buffer.array)

    def _has_room(self, size: int) -> bool:
        """Whether a buffer of `size` may be added; lets go of those in nobody's use if need be."""
        limit = self.limit or 0
        if self.nbytes + size <= limit:
            return True
        self._keep(lambda buffer: sys.getrefcount(buffer.array) > _FREE)
        return self.nbytes + size <= limit

    def _new(self, kept: list[_Buffer], size: int) -> _Buffer:
        # Arrays that begin at the same place of a page get in each other's way: a pass over three
        # of them takes a tenth longer. So each buffer begins somewhere else.
        self._made += 1
        place = self._made * _STAGGER % _PAGE
        raw = np.empty(size + _PAGE, dtype=np.uint8)
        start = (place - raw.__array_interface__["data"][0]) % _PAGE
        # a frombuffer array is the end of the chain of bases, so every view counts on it
        buffer = _Buffer(np.frombuffer(raw.data[start : start + size], dtype=np.uint8), 0)
        kept.append(buffer)
        self.nbytes += size
        return buffer


def _count_when_free() -> int:
    """What getrefcount says of a buffer's array that only its buffer refers to."""
    buffer = _Buffer(np.empty(1), 0)
    return sys.getrefcount(buffer.array)


_FREE = _count_when_free()
_active: ContextVar[Workspace | None] = ContextVar("gpulayers_workspace", default=None)
# Without the interpreter lock a count may be out of date the moment it is read.
trusted = getattr(sys, "_is_gil_enabled", lambda: True)()
# Who looks for memory errors wants every array by itself: GPULAYERS_WORKSPACE=0.
_threads_have_own = os.environ.get(VARIABLE, "1") != "0"


def active() -> Workspace | None:
    """Return the workspace that this thread has entered, if any.

    A thread that runs a share in a copy of the caller's context finds the caller's workspace there,
    but does not own it.
    """
    workspace = _active.get()
    if workspace is None or not trusted or workspace._thread != threading.get_ident():
        return None
    return workspace


class _Own(threading.local):
    """A thread's own workspace, made when it is first used."""

    def __init__(self) -> None:
        self.space = Workspace(_LIMIT)
        self.calls = 0


_own = _Own()


def _current() -> Workspace | None:
    """The workspace to take from; None where reference counts cannot be trusted."""
    workspace = active()
    if workspace is not None or not trusted or not _threads_have_own:
        return workspace
    _own.calls += 1
    if _own.calls % _CALLS == 0:
        _own.space.next_round()
    return _own.space


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array: of the workspace entered, else of the thread's own."""
    workspace = _current()
    return np.empty(shape, dtype) if workspace is None else workspace.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array of zeros, as `empty` does."""
    workspace = _current()
    if workspace is None:
        return np.zeros(shape, dtype)
    array = workspace.empty(shape, dtype)
    array.fill(0)
    return array
