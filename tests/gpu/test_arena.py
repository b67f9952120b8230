"""Memory of captures: shared by one after the other, nobody else's, given back in the end."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential
from tests.conftest import Backend

MB = 1 << 20


def recorder_of(device: Backend) -> Any:
    return importlib.import_module("gpulayers.cuda.graph").Recorder()


@pytest.fixture
def held(device: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The bytes that arenas hold, counted where they take them: other processes use the device
    too."""
    count = [0]
    original = device.xp.cuda.Memory

    class Counted(original):  # type: ignore[misc, valid-type]
        def __init__(self, size: int) -> None:
            super().__init__(size)
            count[0] += size
            self._counted = size

        def __del__(self) -> None:
            count[0] -= getattr(self, "_counted", 0)
            parent = getattr(super(), "__del__", None)
            if parent is not None:
                parent()

    monkeypatch.setattr(device.xp.cuda, "Memory", Counted)

    def bytes_now() -> int:
        gc.collect()
        return count[0]

    return bytes_now


def filled(device: Backend, *sizes: int) -> Callable[[], list[int]]:
    """Writes to an array of each size, one after the other; the addresses."""

    def run() -> list[int]:
        addresses: list[int] = []
        for size in sizes:
            array = device.xp.empty(size, "uint8")
            device.xp.add(array, 1, out=array)
            addresses.append(array.data.ptr)
        return addresses

    return run


def captured(recorder: Any, run: Callable[[], list[int]]) -> list[int]:
    found: list[int] = []
    recorder.capture("a step", lambda: found.extend(run()))
    return found


def test_memory_of_captures_is_shared_and_given_back(
    device: Backend, held: Callable[[], int]
) -> None:
    recorder = recorder_of(device)
    (first,) = captured(recorder, filled(device, 12 * MB))
    assert held() == recorder.nbytes == 12 * MB
    second = captured(recorder, filled(device, 4 * MB, 8 * MB, 3))
    assert set(second) <= {first, first + 4 * MB}
    assert held() == recorder.nbytes == 12 * MB
    kept: list[Any] = []
    recorder.capture("a step", lambda: kept.append(device.xp.full(7, 3.0, "float32")))
    third = captured(recorder, filled(device, 12 * MB))
    assert kept[0].data.ptr == first and third[0] != first, "an array in use keeps its place"
    assert held() == recorder.nbytes == 24 * MB
    del recorder
    kept.clear()
    assert held() == 0


def test_compiling_again_and_again_takes_no_memory(
    device: Backend, held: Callable[[], int]
) -> None:
    random.seed(0)
    network = Sequential([Flatten(), FullyConnected(256), FullyConnected(3)])
    X, labels = device.asarray(np.ones((5, 40), np.float32)), device.asarray(np.arange(5) % 3)
    found: list[int] = []
    for _ in range(6):
        plan: Any = network.compile((5, 40))
        for _ in range(3):
            plan.step(X, labels)
        assert held() >= plan.arena_bytes > 0
        del plan
        found.append(held())
    assert found == [0] * 6


def test_a_capture_that_fails_leaves_the_graphs_their_memory(device: Backend) -> None:
    """And gives back what it had taken."""
    pool, recorder = device.xp.get_default_memory_pool(), recorder_of(device)
    y, x = device.xp.zeros(MB, "uint8"), device.xp.ones(MB, "uint8")

    def run() -> None:
        device.xp.add(device.xp.add(x, x), x, out=y)

    graph = recorder.capture("a step", run)
    held = recorder.nbytes
    gc.collect()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + held + 8 * MB)
    try:
        with pytest.raises(MemoryError, match="limit set to"):
            recorder.capture("a step", filled(device, 6 * MB, 9 * MB))
        assert recorder.nbytes >= held
    finally:
        pool.set_limit(size=0)
    gc.collect()
    captured(recorder, filled(device, 3))
    assert recorder.nbytes == held
    others = [device.xp.full(MB, 9, "uint8") for _ in range(8)]
    importlib.import_module("gpulayers.cuda.graph").launch(graph)
    assert (device.asnumpy(y) == 3).all()
    assert all((device.asnumpy(other) == 9).all() for other in others)


def test_what_a_failed_capture_still_holds_stays(device: Backend) -> None:
    recorder, kept = recorder_of(device), []

    def run() -> None:
        kept.append(device.xp.zeros(MB, "uint8"))
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        recorder.capture("a step", run)
    del kept[1:]
    gc.collect()
    recorder.tidy()
    assert recorder.nbytes == MB
    kept[0][...] = 4
    assert (device.asnumpy(kept[0]) == 4).all()
    kept.clear()
    recorder.tidy()
    assert recorder.nbytes == 0


# ------------------------------------------------------------------------------- book-keeping


class Space:
    """The device's memory, whose pieces lie side by side; it says so when there is no more."""

    def __init__(self, device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = device.xp.cuda.runtime.CUDARuntimeError
        self.segments: list[tuple[int, int]] = []
        self.most, self.status = 1 << 40, 2
        space = self

        class Memory:
            def __init__(self, size: int) -> None:
                begin = sum(space.segments[-1]) if space.segments else 1 << 20
                if begin + size > space.most:
                    raise space.error(space.status)
                self.ptr, self.size = begin, size
                space.segments.append((begin, size))

        monkeypatch.setattr(device.xp.cuda, "Memory", Memory)


@pytest.fixture
def space(device: Backend, monkeypatch: pytest.MonkeyPatch) -> Space:
    return Space(device, monkeypatch)


def arena_of(_: Space) -> Any:
    return importlib.import_module("gpulayers.cuda.arena").Arena()


def test_the_smallest_block_that_is_large_enough(space: Space) -> None:
    arena = arena_of(space)
    blocks = [arena._take(size, 0) for size in (8192, 512, 4096, 512, 16384)]
    for block in blocks[::2]:
        arena._give(block, 0)
    assert arena._take(3000, 0) == blocks[2]
    assert arena._take(1000, 0) == blocks[2] + 3072
    assert arena._take(1, 0) == blocks[0]
    assert len(space.segments) == 5


def test_blocks_of_two_segments_are_not_joined(space: Space) -> None:
    arena = arena_of(space)
    one, two = arena._take(1024, 0), arena._take(1024, 0)
    assert two == one + 1024
    for block in (one, two):
        arena._give(block, 0)
    assert arena._take(2048, 0) == two + 1024
    again = arena_of(space)
    one, two = again._take(1024, 0), again._take(1024, 0)
    for block in (two, one):
        again._give(block, 0)
    assert again._take(2048, 0) == two + 1024


def test_each_device_has_its_own(space: Space) -> None:
    arena = arena_of(space)
    arena._give(arena._take(4096, 0), 0)
    assert arena._take(512, 1) != arena._take(512, 0)
    assert len(space.segments) == 2


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_taking_and_giving_back(space: Space, seed: int) -> None:
    rng, arena = np.random.default_rng(seed), arena_of(space)
    taken: dict[int, int] = {}
    for _ in range(400):
        if taken and rng.random() < 0.5:
            block = list(taken)[rng.integers(len(taken))]
            del taken[block]
            arena._give(block, 0)
        else:
            size = int(rng.integers(1, 20000))
            block = arena._take(size, 0)
            end = block + size
            assert block % 512 == 0
            assert any(s <= block and end <= s + n for s, n in space.segments)
            assert all(end <= b or b + n <= block for b, n in taken.items())
            taken[block] = size
    assert arena.nbytes == sum(n for _, n in space.segments) < 3 * 400 * 5000
    for block in taken:
        arena._give(block, 0)
    arena.back_to(0)
    assert arena.nbytes == 0, "all of it is whole again"


def test_no_more_memory(space: Space) -> None:
    arena = arena_of(space)
    arena._take(4096, 0)
    space.most = 0
    with pytest.raises(MemoryError, match="allocated so far"):
        arena._take(512, 0)
    space.status = 719
    with pytest.raises(space.error):
        arena._take(512, 0)
    assert arena.nbytes == 4096
