"""Work done ahead in threads, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from gpulayers import _spec

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int, stop: int, threads: int) -> Iterator[T]:
    """Yield make(start), ..., make(stop - 1), worked out ahead of their use.

    At most ``2 * threads`` results are ready or in the making. An exception of ``make(i)`` is
    raised where its result would have come. When the iterator ends, is closed or forgotten (a
    ``break`` does that), the threads end too; calls not yet begun are dropped. The calls see the
    caller's settings (backend, dtype, engine, `numpy.errstate`) as of the first ``next``.

    Parameters
    ----------
    make : function of an int
    start, stop : int
    threads : int
        0 calls `make` in the caller's thread, one call for each result.

    Raises
    ------
    ParameterError
        If threads is no integer >= 0.
    """
    _spec.integer("ahead", "threads", threads, 0)
    if threads == 0 or stop - start <= 1:
        return (make(i) for i in range(start, stop))
    return _threaded(make, start, stop, threads)


def _threaded(make: Callable[[int], T], start: int, stop: int, threads: int) -> Iterator[T]:
    threads = min(threads, stop - start)
    waiting: deque[Future[T]] = deque()
    context = copy_context()
    pool = ThreadPoolExecutor(threads, "gpulayers-batches")
    try:
        following = start
        for _ in range(start, stop):
            while following < stop and len(waiting) < 2 * threads:
                # a context can be entered by one thread at a time
                waiting.append(pool.submit(context.copy().run, make, following))
                following += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
