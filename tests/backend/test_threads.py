"""The library's threads: how many, who gets which share, errors, nesting, forks, and BLAS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from gpulayers import threads
from gpulayers.errors import ParameterError
from gpulayers.threads import run_shares, shares, single_threaded_blas, thread_count, use_threads


class FakeBlas:
    """A BLAS that remembers what it was told."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.told: list[int] = []

    def get_num_threads(self) -> int | None:
        return self.count

    def set_num_threads(self, count: int) -> None:
        self.count = count
        self.told.append(count)


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> FakeBlas:
    fake = FakeBlas(7)
    monkeypatch.setattr(threads, "blas_libraries", lambda: [fake])
    return fake


# -------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    "value", ["0", "-2", "two", "1.5", "", " ", "nan", "1e400", "99999999999999999999", "64"]
)
def test_the_variable(value: str) -> None:
    """In a process of its own, since it is read once."""
    code = "from gpulayers.threads import thread_count; print(thread_count())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GPULAYERS_THREADS": value},
        capture_output=True,
        text=True,
        check=False,
    )
    if value == "64":
        assert done.stdout == "64\n"
    elif value == "":
        assert done.returncode == 0 and int(done.stdout) >= 1
    else:
        assert "ParameterError" in done.stderr.splitlines()[-1]
        assert "GPULAYERS_THREADS: expected a number of threads" in done.stderr
        assert repr(value) in done.stderr


@pytest.mark.parametrize(
    "value", [0, -1, 1025, 10**6, 1.5, "many", None, True, float("nan"), float("inf"), []]
)
def test_bad_counts(value: Any) -> None:
    before = thread_count()
    with pytest.raises(ParameterError, match="use_threads: expected a number of threads, an int"):
        use_threads(value)
    assert thread_count() == before


def test_use_threads_at_once_and_as_context() -> None:
    before = thread_count()
    with use_threads(3):
        assert thread_count() == 3
        use_threads(np.int64(5))
        assert thread_count() == 5
        with use_threads(1):
            assert thread_count() == 1
        assert thread_count() == 5
    assert thread_count() == before
    with pytest.raises(ZeroDivisionError), use_threads(4):
        _ = 1 / 0
    assert thread_count() == before


def test_the_default_is_what_the_process_may_use() -> None:
    assert 1 <= threads.physical_cores() <= len(threads._allowed_cpus())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 64, 1000])
@pytest.mark.parametrize("grain", [0, 1, 4, 100])
def test_shares(count: int, n: int, grain: int) -> None:
    with use_threads(count):
        parts = shares(n, grain)
    assert 1 <= len(parts) <= count
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    for part in parts[:-1]:
        assert (part.stop - part.start) % max(grain, 1) == 0
    assert len(parts) == 1 or n // len(parts) >= grain


# ------------------------------------------------------------------------------------ run_shares


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
def test_every_share_runs_once(count: int) -> None:
    parts = [slice(i, i + 1) for i in range(count)]
    seen: list[Any] = []
    run_shares(lambda i, part: seen.append((i, part.start)), parts)
    assert sorted(seen) == [(i, i) for i in range(count)]


def test_shares_run_at_the_same_time_in_threads_of_their_own() -> None:
    meeting = threading.Barrier(3, timeout=20)
    names = set()

    def work(i: int, part: slice) -> None:
        meeting.wait()  # would break if one waited for another
        names.add(threading.get_ident())

    run_shares(work, [slice(i, i + 1) for i in range(3)])
    assert len(names) == 3 and threading.get_ident() in names


def test_within_a_share_threads_do_not_multiply() -> None:
    names: list[list[int]] = [[], []]

    def inner(i: int, part: slice) -> None:
        names[i].append(threading.get_ident())

    def outer(i: int, part: slice) -> None:
        me = threading.get_ident()
        with use_threads(4):
            assert shares(1000) == [slice(0, 1000)]
        mine: list[int] = []
        run_shares(lambda k, p: mine.append(threading.get_ident()), [slice(0, 1)] * 3)
        assert mine == [me] * 3

    run_shares(outer, [slice(0, 1), slice(1, 2)])
    with use_threads(4):
        assert len(shares(1000)) == 4  # and outside again


@pytest.mark.parametrize("bad", [[0], [1], [2], [0, 2], [1, 2]])
def test_exceptions(bad: list[int], blas: FakeBlas) -> None:
    ended = []

    def work(i: int, part: slice) -> None:
        if i in bad:
            raise ValueError(f"share {i}")
        time.sleep(0.02)
        ended.append(i)

    parts = [slice(0, 1)] * 3
    with pytest.raises(ValueError, match=f"share {bad[0]}"):
        run_shares(work, parts)
    assert sorted(ended) == [i for i in range(3) if i not in bad]  # all had ended by then
    assert blas.count == 7
    run_shares(lambda i, part: ended.append(9), parts)  # and the workers go on
    assert ended.count(9) == 3


def test_nothing_of_a_call_is_kept() -> None:
    """A workspace's buffer is free when nothing refers to it: the workers must let go in time."""
    array = np.zeros(10)
    for _ in range(200):
        before = sys.getrefcount(array)

        def work(i: int, part: slice, array: np.ndarray = array) -> None:
            array[i] += 1

        run_shares(work, [slice(0, 1)] * 3)
        del work
        assert sys.getrefcount(array) == before


def test_an_interrupt_waits_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Queue(threads.SimpleQueue):  # type: ignore[misc, type-arg]
        pressed = False

        def get(self, *args: Any, **kwargs: Any) -> Any:
            if not Queue.pressed and threading.current_thread() is threading.main_thread():
                Queue.pressed = True
                raise KeyboardInterrupt
            return super().get(*args, **kwargs)

    monkeypatch.setattr(threads, "_pool", threads._Pool())
    monkeypatch.setattr(threads, "SimpleQueue", Queue)

    def work(i: int, part: slice) -> None:
        if i:
            time.sleep(0.1)
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_shares(work, [slice(0, 1)] * 2)
    assert ended.is_set()


def test_context_variables_reach_the_workers() -> None:
    big = np.full(4, 1e300)
    results = []

    def work(i: int, part: slice) -> None:
        results.append(np.multiply(big, big)[0])

    with np.errstate(over="ignore"):  # a warning would be an error
        run_shares(work, [slice(0, 1)] * 3)
    assert results == [np.inf] * 3
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        run_shares(lambda i, part: big * big if i else None, [slice(0, 1)] * 2)


def test_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", threads._Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen: list[int] = []
    run_shares(lambda i, part: seen.append(i), [slice(0, 1)] * 3)
    assert sorted(seen) == [0, 1, 2]


# ------------------------------------------------------------------------------------------ BLAS


def test_blas_has_one_thread_within_and_its_number_back_after(blas: FakeBlas) -> None:
    seen: list[int | None] = []
    run_shares(lambda i, part: seen.append(blas.count), [slice(0, 1)] * 2)
    assert seen == [1, 1]
    assert (blas.count, blas.told) == (7, [1, 7])
    run_shares(lambda i, part: seen.append(blas.count), [slice(0, 1)])
    assert seen[-1] == 1  # one share, too: BLAS's threads would go on looking for work after it
    assert blas.count == 7


def test_the_last_of_several_holders_restores(blas: FakeBlas) -> None:
    first, second = single_threaded_blas(), single_threaded_blas()
    with first:
        with second:
            assert blas.count == 1
        assert blas.count == 1
    assert (blas.count, blas.told) == (7, [1, 7])
    with pytest.raises(ZeroDivisionError), single_threaded_blas():
        _ = 1 / 0
    assert blas.count == 7


@pytest.mark.parametrize("count", [None, 1])
def test_a_blas_without_control_is_left_alone(blas: FakeBlas, count: int | None) -> None:
    blas.count = count
    seen: list[int] = []
    run_shares(lambda i, part: seen.append(i), [slice(0, 1)] * 2)
    assert sorted(seen) == [0, 1]
    assert blas.told == []


def test_work_without_products_leaves_blas_alone(blas: FakeBlas) -> None:
    seen: list[int] = []
    run_shares(lambda i, part: seen.append(i), [slice(0, 1)] * 3, blas=False)
    assert (sorted(seen), blas.told) == ([0, 1, 2], [])
    run_shares(lambda i, part: seen.append(i), [slice(0, 1)] * 3)
    assert blas.told == [1, 7]


def test_blas_alone_has_the_threads(blas: FakeBlas) -> None:
    with use_threads(3), threads.threaded_blas():
        assert blas.count == 3
        assert shares(100) == [slice(0, 100)]
        with single_threaded_blas(), threads.threaded_blas():
            assert blas.count == 3
        seen: list[int] = []
        run_shares(lambda i, part: seen.append(threading.get_ident()), [slice(0, 1)] * 4)
        assert seen == [threading.get_ident()] * 4
    assert len(shares(100)) == thread_count()
    assert (blas.count, blas.told) == (7, [3, 7])
    with pytest.raises(ZeroDivisionError), threads.threaded_blas():
        _ = 1 / 0
    assert blas.count == 7


def test_held_to_one_by_this_thread_blas_gets_no_threads(blas: FakeBlas) -> None:
    with use_threads(3), single_threaded_blas(), single_threaded_blas():
        with threads.threaded_blas():
            assert blas.count == 1
            assert len(shares(100)) == 3
        assert blas.count == 1
    assert (blas.count, blas.told) == (7, [1, 7])


def test_who_holds_blas_to_one_thread_has_its_way(blas: FakeBlas) -> None:
    """Two threads of a user, the blocks of each begun and ended in every order."""
    entered, leave = threading.Barrier(2, timeout=20), threading.Event()

    def other() -> None:
        with threads.threaded_blas():
            entered.wait()
            leave.wait(20)

    for order in ("single first", "threaded first"):
        leave.clear()
        thread = threading.Thread(target=other)
        if order == "single first":
            with single_threaded_blas():
                thread.start()
                entered.wait()
                assert blas.count == 1
            assert blas.count == thread_count()
        else:
            thread.start()
            entered.wait()
            with single_threaded_blas():
                assert blas.count == 1
                leave.set()
                thread.join(20)
                assert blas.count == 1
        leave.set()
        thread.join(20)
        assert blas.count == 7, order


def test_a_blas_without_control_gets_no_threads_either(blas: FakeBlas) -> None:
    blas.count = None
    with use_threads(3), threads.threaded_blas():
        pass
    assert blas.told == []


def test_no_blas_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "blas_libraries", list)
    with single_threaded_blas():
        pass
