"""How many CPU threads the library computes with, and what keeps BLAS from adding its own.

One level of threads is enough: where the library splits work over its threads, BLAS is held to one
thread for that time (`single_threaded_blas`), because two pools on the same cores wait for one
another.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from gpulayers.errors import ParameterError

__all__ = ["run_shares", "shares", "single_threaded_blas", "thread_count", "use_threads"]

VARIABLE = "GPULAYERS_THREADS"
_count: ContextVar[int | None] = ContextVar("gpulayers_threads", default=None)


def _checked(value: Any, source: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise ParameterError(
            f"{source}: expected a number of threads, an integer of at least 1, got {value!r}"
        ) from None
    return int(value)


def thread_count() -> int:
    """Return how many threads an operation may use.

    What `use_threads` set, else ``GPULAYERS_THREADS`` (as it was when first asked), else the
    physical cores this process may run on. A result depends on this number alone, not on how the
    threads are scheduled.

    Raises
    ------
    ParameterError
        If the variable holds no positive integer.
    """
    count = _count.get()
    if count is not None:
        return count
    return _default_count()


@cache
def _default_count() -> int:
    text = os.environ.get(VARIABLE)
    return _checked(text, VARIABLE) if text else physical_cores()


class use_threads:  # noqa: N801 - read as a verb, like contextlib.suppress
    """Set the number of threads, at once or for a ``with`` block.

    Parameters
    ----------
    count : int

    Raises
    ------
    ParameterError
        If it is no positive integer.
    """

    def __init__(self, count: int) -> None:
        self._token = _count.set(_checked(count, "use_threads"))

    def __enter__(self) -> use_threads:
        return self

    def __exit__(self, *exc: object) -> None:
        _count.reset(self._token)


@cache
def physical_cores() -> int:
    """Return the cores this process may use; two hardware threads of one core count once."""
    allowed = _allowed_cpus()
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota()))


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quota() -> int:
    """CPUs that a Linux container grants; a large number where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return sys.maxsize


# ----------------------------------------------------------------------------------------- BLAS


@cache
def _blas() -> list[Any]:
    """The BLAS libraries NumPy loaded that can be told how many threads to use."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


class _Holders:
    """How many users hold BLAS to one thread now, and what it had before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: list[int] = []


_holders = _Holders()


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread for a ``with`` block; does nothing for a BLAS without that control.

    Several threads may be inside at a time; the last one to leave restores the former number.
    """
    libraries, holders = _blas(), _holders
    with holders.lock:
        if holders.users == 0:
            holders.before = [library.get_num_threads() or 1 for library in libraries]
            _set_blas(libraries, [1] * len(libraries), holders.before)
        holders.users += 1
    try:
        yield
    finally:
        with holders.lock:
            holders.users -= 1
            if holders.users == 0:
                _set_blas(libraries, holders.before, [1] * len(libraries))


def _set_blas(libraries: list[Any], counts: list[int], current: list[int]) -> None:
    for library, count, now in zip(libraries, counts, current, strict=True):
        if count != now:
            library.set_num_threads(count)


# --------------------------------------------------------------------------------- Python threads

_executors: dict[int, ThreadPoolExecutor] = {}
_executors_lock = threading.Lock()
_inside = threading.local()


def _forget_after_fork() -> None:
    """A forked child has none of its parent's threads, and its locks may be held by them."""
    global _executors_lock, _holders
    _executors.clear()
    _executors_lock = threading.Lock()
    _holders = _Holders()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def shares(n: int, grain: int = 1) -> list[slice]:
    """Split 0..n into at most `thread_count` slices of equal size, each of at least `grain`.

    All but the last are multiples of `grain`, so that blocks of that size are cut alike for any
    number of threads.
    """
    count = max(1, min(thread_count(), n // max(1, grain)))
    step = -(-n // count)
    step = -(-step // grain) * grain
    return [slice(start, min(start + step, n)) for start in range(0, n, step)] or [slice(0, n)]


def run_shares(work: Callable[[int, slice], object], parts: list[slice]) -> None:
    """Call ``work(i, parts[i])`` for every share, each in a thread of its own, BLAS at one thread.

    The calling thread takes the first share. Called from within a share it runs them one after
    another, so threads never multiply. The first exception of a share is raised here, after all
    have ended.
    """
    if len(parts) == 1 or getattr(_inside, "value", False):
        for i, part in enumerate(parts):
            work(i, part)
        return

    def run(i: int) -> None:
        _inside.value = True
        try:
            work(i, parts[i])
        finally:
            _inside.value = False

    with single_threaded_blas():
        pool = _executor(len(parts) - 1)
        others = [pool.submit(run, i) for i in range(1, len(parts))]
        try:
            run(0)
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error


def _executor(workers: int) -> ThreadPoolExecutor:
    with _executors_lock:
        if workers not in _executors:
            _executors[workers] = ThreadPoolExecutor(workers, thread_name_prefix="gpulayers")
        return _executors[workers]
