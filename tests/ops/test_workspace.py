"""The workspace hands memory out again only when nobody can see it any more."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from gpulayers.ops import workspace
from gpulayers.ops.workspace import SMALL, Workspace
from gpulayers.threads import run_shares
from tests.support.workspaces import needs_workspaces

pytestmark = needs_workspaces

SIZE = 4 * SMALL // 4  # float32 numbers, well above what the workspace leaves to NumPy


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def one(space: Workspace) -> np.ndarray:
    return space.empty((SIZE,), np.float32)


# --------------------------------------------------------------------------------- using it again


def test_memory_is_used_again() -> None:
    space = Workspace()
    first = one(space)
    where, nbytes = address(first), space.nbytes
    assert nbytes >= first.nbytes
    del first
    again = space.empty((SIZE // 2, 2), np.int32)  # another shape and dtype of as many bytes
    assert (address(again), space.nbytes) == (where, nbytes)
    other = one(space)
    assert not np.shares_memory(again, other)
    assert space.nbytes == 2 * nbytes


@pytest.mark.parametrize("shape", [(SIZE,), (33, 65, 7), (SIZE, 1), (1, 5000, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "float16"])
def test_arrays_are_aligned_contiguous_and_whole(shape: tuple[int, ...], dtype: str) -> None:
    space = Workspace()
    held = []
    for value in range(4):
        array = space.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        if array.nbytes >= SMALL:
            assert address(array) % 64 == 0
        array.fill(value)
        held.append(array)
    for value, array in enumerate(held):
        assert (array == value).all()


@pytest.mark.parametrize("shape", [(0,), (0, 5000), (3, 4), ()])
def test_small_and_empty_arrays_are_numpys(shape: tuple[int, ...]) -> None:
    space = Workspace()
    array = space.empty(shape, np.float64)
    assert array.shape == shape and array.base is None
    assert space.nbytes == 0


def test_zeros_are_zeros_the_second_time_too() -> None:
    space = Workspace()
    with space:
        workspace.empty((SIZE,), np.float32).fill(7)
        assert not workspace.zeros((SIZE,), np.float32).any()
    assert not workspace.zeros((SIZE,), np.float32).any()
    assert space.nbytes < 3 * 4 * SIZE


# ------------------------------------------------------------------------- who can still see memory

HOLDERS: dict[str, Any] = {
    "the array": lambda a: a,
    "a view": lambda a: a[5:9],
    "a view of a view": lambda a: a.reshape(-1, 2)[3:, 1].T,
    "another dtype": lambda a: a.view(np.uint8)[::3],
    "a subclass": lambda a: a.reshape(2, -1).view(np.matrix),
    "memoryview": lambda a: memoryview(a),
    "a slice of a memoryview": lambda a: memoryview(a).cast("B")[10:20],
    "an array of a memoryview": lambda a: np.frombuffer(memoryview(a), np.float32),
    "ctypes": lambda a: (ctypes.c_float * 4).from_buffer(a),
    "DLPack": lambda a: np.from_dlpack(a),
    "a capsule": lambda a: a.__dlpack__(),
    "a closure": lambda a: lambda: a[0],
    "a list": lambda a: [a],
    "an iterator": lambda a: iter(a),
    "nditer": lambda a: np.nditer(a[:4]),
    "flat": lambda a: a.flat,
    "strides": lambda a: np.lib.stride_tricks.as_strided(a, (5, 5), (4, 4)),
    "broadcast": lambda a: np.broadcast_to(a, (3, SIZE)),
    "an object array": lambda a: np.array([a, None], dtype=object),
    "a cycle": lambda a: _cycle(a),
}


def _cycle(array: np.ndarray) -> list[Any]:
    loop: list[Any] = [array]
    loop.append(loop)
    return loop


@pytest.mark.parametrize("name", HOLDERS)
def test_memory_that_something_refers_to_is_not_handed_out(name: str) -> None:
    space = Workspace()
    array = one(space)
    where = address(array)
    array.fill(3)
    holder = HOLDERS[name](array)
    del array
    others = [one(space) for _ in range(3)]
    for other in others:
        assert address(other) != where
        other.fill(9)
    del other
    del holder
    gc.collect()
    assert where in [address(one(space)), *map(address, [one(space)])]  # and then it is


def test_memory_in_a_traceback_is_not_handed_out() -> None:
    space = Workspace()

    def fail() -> None:
        array = one(space)
        array.fill(3)
        raise ValueError(address(array))

    try:
        fail()
    except ValueError as error:
        kept = error
    assert address(one(space)) != kept.args[0]
    kept.__traceback__ = None
    assert address(one(space)) == kept.args[0]


def test_a_result_a_user_keeps_survives_later_steps() -> None:
    space, kept = Workspace(), []
    for k in range(40):
        space.next_round()
        with space:
            array = workspace.empty((SIZE,), np.float32)
            array.fill(k)
            workspace.empty((SIZE,), np.float32).fill(-1)
            if k % 7 == 0:
                kept.append(array[k:])
            del array
    for k, array in zip(range(0, 40, 7), kept, strict=True):
        assert (array == k).all()


# ----------------------------------------------------------------------------------------- keeping


def test_buffers_nobody_uses_are_let_go() -> None:
    space = Workspace()
    one(space), space.empty((5 * SIZE,), np.float32)
    both = space.nbytes
    for _ in range(40):
        space.next_round()
        one(space)
    assert 0 < space.nbytes < both / 4
    for _ in range(40):
        space.next_round()
    assert space.nbytes == 0


def test_changing_sizes_do_not_pile_up() -> None:
    space = Workspace()
    for k in range(400):
        space.next_round()
        space.empty((SIZE + 2048 * k,), np.float32)
    assert space.nbytes <= 40 * 4 * (SIZE + 2048 * 400)


def test_copies_are_empty() -> None:
    space = Workspace()
    held = one(space)
    for other in (copy.copy(space), copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert isinstance(other, Workspace) and other is not space
        assert other.nbytes == 0
        assert not np.shares_memory(one(other), held)
    assert space.nbytes


# ------------------------------------------------------------------------------ entering, threads


def test_only_within() -> None:
    space = Workspace()
    workspace.empty((SIZE,), np.float32)
    assert space.nbytes == 0
    with space:
        assert workspace.active() is space
        workspace.empty((SIZE,), np.float32)
    assert workspace.active() is None
    assert space.nbytes
    with pytest.raises(ZeroDivisionError), space:
        _ = 1 / 0
    assert workspace.active() is None


def test_without_entering_one_a_threads_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_threads_have_own", True)
    first = workspace.empty((SIZE,), np.float32)
    place = address(first)
    second = workspace.empty((SIZE,), np.float32)
    assert address(second) != place
    del first
    third = workspace.zeros((SIZE,), np.float32)
    assert address(third) == place and not third.any()

    def other() -> None:
        places.append(address(workspace.empty((SIZE,), np.float32)))

    places: list[int] = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert places[0] not in (place, address(second))


def test_threads_own_workspaces_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_threads_have_own", False)
    assert workspace.empty((SIZE,), np.float32).base is None
    with Workspace():
        assert workspace.empty((SIZE,), np.float32).base is not None


def test_a_limit_holds_and_makes_room_first() -> None:
    space = Workspace(limit=3 * 4 * SIZE)
    kept = [one(space) for _ in range(5)]
    assert space.nbytes <= space.limit
    assert [array.base is None for array in kept] == [False] * 3 + [True] * 2
    kept.clear()
    larger = space.empty((2 * SIZE,), np.float32)  # the three are let go for it
    assert larger.base is not None and space.nbytes <= space.limit
    huge = space.empty((4 * SIZE,), np.float32)
    assert huge.base is None and space.nbytes <= space.limit


def test_a_threads_own_workspace_lets_go_of_what_nobody_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "_threads_have_own", True)
    own = workspace._own.space
    workspace.empty((50 * SIZE,), np.float32)
    before = own.nbytes
    for _ in range(3 * workspace._CALLS * workspace._IDLE):
        workspace.empty((SIZE,), np.float32)
    assert own.nbytes <= before - 50 * 4 * SIZE


def test_within_one_another() -> None:
    outer, inner = Workspace(), Workspace()
    with outer:
        with inner, inner:
            workspace.empty((SIZE,), np.float32)
            assert workspace.active() is inner
        assert workspace.active() is outer
        with outer:
            assert workspace.active() is outer
        assert workspace.active() is outer
    assert outer.nbytes == 0 and inner.nbytes


def test_a_second_thread_that_enters_allocates_afresh() -> None:
    space = Workspace()
    seen: list[Any] = []

    def other() -> None:
        with space:
            seen.append(workspace.active())
            array = workspace.empty((SIZE,), np.float32)
            seen.append(space.nbytes)
            del array

    with space:
        workspace.empty((SIZE,), np.float32)
        nbytes = space.nbytes
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [None, nbytes]
        assert workspace.active() is space
    thread = threading.Thread(target=other)  # and when the first has left it is the second's
    thread.start()
    thread.join()
    assert seen[2] is space


def test_shares_do_not_take_from_the_callers_workspace() -> None:
    space = Workspace()
    seen: list[Any] = [None] * 3

    def work(i: int, part: slice) -> None:
        seen[i] = workspace.active()

    with space:
        run_shares(work, [slice(0, 1)] * 3)
        assert workspace.active() is space
    assert seen == [space, None, None]  # share 0 is the caller's own


def test_many_threads_never_share_memory() -> None:
    space, wrong = Workspace(), []

    def work(number: int) -> None:
        for _ in range(200):
            with space:
                array = workspace.empty((SIZE,), np.float32)
                array.fill(number)
                if not (array == number).all():
                    wrong.append(number)

    crowd = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []


def test_without_the_interpreter_lock_nothing_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "trusted", False)
    with Workspace() as space:
        assert workspace.empty((SIZE,), np.float32).base is None
        assert not workspace.zeros((SIZE,), np.float32).any()
        assert space.nbytes == 0
