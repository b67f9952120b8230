"""How many CPU threads the library computes with, and what keeps BLAS from adding its own.

One level of threads is enough: where the library splits work over its threads, BLAS is held to one
thread for that time (`single_threaded_blas`), because two pools on the same cores wait for one
another. For many small operations it is the other way round (`threaded_blas`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextvars import Context, ContextVar, copy_context
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from threadpoolctl import ThreadpoolController

from gpulayers.errors import ParameterError

__all__ = [
    "blas_libraries",
    "is_serial",
    "run_shares",
    "shares",
    "shares_at_most",
    "single_threaded_blas",
    "thread_count",
    "threaded_blas",
    "use_threads",
]

VARIABLE = "GPULAYERS_THREADS"
MOST = 1024  # more is a slip of the pen: each would be a thread of the system, kept to the end
_count: ContextVar[int | None] = ContextVar("gpulayers_threads", default=None)


def _checked(value: Any, source: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value) or not 1 <= int(value) <= MOST:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(
            f"{source}: expected a number of threads, an integer in 1..{MOST}, got {value!r}"
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
        If the variable holds no integer in 1..1024.
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

    A context variable: threads of your own keep theirs.

    Parameters
    ----------
    count : int
        From 1 to 1024. More threads than cores are allowed and seldom faster; the C kernels use
        at most 64.

    Raises
    ------
    ParameterError
        If it is no integer in that range.
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
    cores: set[str] = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota(), MOST))


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
def blas_libraries() -> list[Any]:
    """Return threadpoolctl's controllers of the BLAS libraries that are loaded."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


class _Holders:
    """How many users now hold BLAS to one thread, how many give it the library's threads, and what
    it had before the first of them. Who holds it to one has its way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.single = self.threaded = 0
        self.count = 1  # the threads that those who give it threads give it
        self.before: list[int | None] = []  # None: a BLAS that cannot be told
        self.now: list[int | None] = []

    def change(self, single: int = 0, threaded: int = 0, count: int | None = None) -> None:
        """Add to the users of each kind, and tell the libraries what follows."""
        libraries = blas_libraries()
        with self.lock:
            if not self.single and not self.threaded:
                self.before = [library.get_num_threads() for library in libraries]
                self.now = self.before[:]
            self.single += single
            self.threaded += threaded
            self.count = count or self.count
            self.tell(libraries)

    def tell(self, libraries: list[Any]) -> None:
        held = self.single or self.threaded
        wanted = 1 if self.single else self.count
        for i, library in enumerate(libraries):
            before = self.before[i]
            new = wanted if held and before is not None else before
            if new is not None and new != self.now[i]:
                library.set_num_threads(new)
            self.now[i] = new


_holders = _Holders()


class single_threaded_blas:  # noqa: N801 - read as a verb, like contextlib.suppress
    """Hold BLAS to one thread for a ``with`` block; does nothing for a BLAS without that control,
    and within `threaded_blas` or a share of `run_shares`.

    Several threads may be inside at a time; the last one to leave restores the former number.
    """

    __slots__ = ("_holders",)  # every operation in threads enters one: nothing dear here

    def __enter__(self) -> None:
        self._holders = None if is_serial() else _holders
        if self._holders is not None:
            self._holders.change(single=1)
            _inside.held = getattr(_inside, "held", 0) + 1

    def __exit__(self, *exc: object) -> None:
        if self._holders is not None:
            _inside.held -= 1
            self._holders.change(single=-1)


@contextlib.contextmanager
def threaded_blas() -> Generator[None]:
    """Give BLAS the `thread_count` threads for a ``with`` block, and nothing else any.

    For many small operations: handing Python's lock from one thread to another costs more than the
    second thread gives there, while BLAS's threads need no lock. Within a share of `run_shares` it
    does nothing, nor within `single_threaded_blas`: BLAS's threads go on looking for work, on the
    cores of what is cut for Python's. While another thread holds BLAS to one, it stays at one for
    both.
    """
    if is_serial() or getattr(_inside, "held", 0):
        yield
        return
    holders = _holders
    holders.change(threaded=1, count=thread_count())
    _inside.value = True
    try:
        yield
    finally:
        _inside.value = False
        holders.change(threaded=-1)


def is_serial() -> bool:
    """Whether this thread computes a share, or lets BLAS alone use the threads."""
    return getattr(_inside, "value", False)


# --------------------------------------------------------------------------------- Python threads

Work = Callable[[int, slice], object]


class _Job:
    """Shares of one call that go to the workers, and where they say that they are done."""

    __slots__ = ("done", "parts", "work")

    def __init__(self, work: Work, parts: list[slice]) -> None:
        self.work, self.parts = work, parts
        self.done: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()

    def run(self, share: int) -> None:
        _inside.value = True
        try:
            self.work(share, self.parts[share])
        finally:
            _inside.value = False


class _Pool:
    """Threads that each wait for a share in an inbox of its own. It serves one call at a time."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.inboxes: list[SimpleQueue[tuple[_Job, int, Context]]] = []

    def workers(self, count: int) -> int:
        """Have `count` workers, or as many as the system gives, and say how many."""
        while len(self.inboxes) < count:
            inbox: SimpleQueue[tuple[_Job, int, Context]] = SimpleQueue()
            name = f"gpulayers-{len(self.inboxes) + 1}"
            try:
                threading.Thread(target=_serve, args=(inbox,), name=name, daemon=True).start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                break
            self.inboxes.append(inbox)
        return min(count, len(self.inboxes))


def _serve(inbox: SimpleQueue[tuple[_Job, int, Context]]) -> None:
    while True:
        job, share, context = inbox.get()
        error: BaseException | None = None
        try:
            context.run(job.run, share)
        except BaseException as raised:
            error = raised
        done = job.done
        # Nothing of the job may be held here once the caller goes on: a buffer of a workspace is
        # free when nothing refers to it.
        del job, context
        done.put((share, error))
        del done, error


_pool = _Pool()
_inside = threading.local()


def _forget_after_fork() -> None:
    """A forked child has none of its parent's threads, and its locks may be held by them."""
    global _pool, _inside, _holders
    held, _holders = _holders, _Holders()
    _pool, _inside = _Pool(), threading.local()
    if held.single or held.threaded:  # those that would have given BLAS its number back
        held.single = held.threaded = 0  # are not here
        held.tell(blas_libraries())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
# Workers stand still while the interpreter ends; whoever computes then does it alone.
atexit.register(lambda: _pool.busy.acquire(timeout=1))


def shares_at_most() -> int:
    """How many slices `shares` cuts at most: `thread_count`, and one within a share."""
    return 1 if is_serial() else thread_count()


def shares(n: int, grain: int = 1) -> list[slice]:
    """Split 0..n into at most `thread_count` slices of equal size, each of at least `grain`.

    All but the last are multiples of `grain`, so that blocks of that size are cut alike for any
    number of threads. Within a share of `run_shares` it is one slice.
    """
    grain = max(1, grain)
    count = max(1, min(shares_at_most(), n // grain))
    step = -(-n // count)
    step = max(1, -(-step // grain) * grain)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)] or [slice(0, n)]


def run_shares(work: Work, parts: list[slice], blas: bool = True) -> None:
    """Call ``work(i, parts[i])`` for every share, each in a thread of its own, BLAS at one thread.

    The calling thread takes the first share. Called from within a share, or while another thread
    has the workers, it runs them one after another, so threads never multiply. Context variables
    (`numpy.errstate` is one) have the caller's values. The first exception of a share is raised
    here, after all have ended. Work without matrix products can do with ``blas=False``: BLAS is
    then left alone, which takes a while to tell.
    """
    if is_serial():
        for i, part in enumerate(parts):
            work(i, part)
        return
    with single_threaded_blas() if blas else contextlib.nullcontext():
        if len(parts) == 1:
            work(0, parts[0])
            return
        pool = _pool
        if not pool.busy.acquire(blocking=False):
            for i, part in enumerate(parts):
                work(i, part)
            return
        try:
            _run_with(pool, _Job(work, parts))
        finally:
            pool.busy.release()


def _run_with(pool: _Pool, job: _Job) -> None:
    errors: list[BaseException | None] = [None] * len(job.parts)
    given = pool.workers(len(job.parts) - 1)
    for share in range(1, given + 1):
        pool.inboxes[share - 1].put((job, share, copy_context()))
    for share in [0, *range(given + 1, len(job.parts))]:
        try:
            job.run(share)
        except BaseException as error:
            errors[share] = error
    interrupt: KeyboardInterrupt | None = None
    while given:  # whatever happened: the workers still write to the caller's arrays
        try:
            share, error = job.done.get()
        except KeyboardInterrupt as pressed:
            interrupt = pressed
            continue
        errors[share] = error
        given -= 1
    raised = next((error for error in [*errors, interrupt] if error is not None), None)
    if raised is not None:
        try:
            raise raised
        finally:
            errors, raised, interrupt = [], None, None  # no cycle: traceback, this frame, error
