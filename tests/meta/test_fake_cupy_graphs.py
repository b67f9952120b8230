"""The stand-in's graphs keep addresses: what a launch would do to memory that is not theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support import fake_cupy
from tests.support.fake_cupy import DeviceRuleError

pytestmark = pytest.mark.emulated

DOUBLE = """
extern "C" __global__ void twice(const float* x, float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2.0f * x[i];
}
"""


@pytest.fixture
def cp() -> Iterator[Any]:
    with fake_cupy.installed() as cupy:
        yield cupy


def captured(cp: Any, run: Any, pool: Any = None) -> Any:
    stream = cp.cuda.Stream(non_blocking=True)
    allocator = cp.cuda.get_allocator() if pool is None else pool.malloc
    with cp.cuda.using_allocator(allocator), stream:
        stream.begin_capture()
        try:
            run()
        finally:
            graph = stream.end_capture()
    return graph


class Work:
    """y = 2 (x + 1) by way of an array that is let go of at once, unless `keep`."""

    def __init__(self, cp: Any, keep: bool = False) -> None:
        self.cp, self.keep = cp, keep
        self.x, self.y = cp.zeros(8, "f4"), cp.zeros(8, "f4")
        self.kernel = cp.RawKernel(DOUBLE, "twice")
        self.kept: Any = None

    def __call__(self) -> None:
        between = self.x + 1
        self.kernel((1,), (32,), (between, self.y, np.int32(8)))
        if self.keep:
            self.kept = between


def test_a_launch_computes_anew_from_what_the_inputs_hold(cp: Any) -> None:
    work, pool = Work(cp), cp.cuda.MemoryPool()
    graph = captured(cp, work, pool)
    assert (work.y.get() == 0).all(), "capturing computes nothing"
    for value in (0, 3):
        work.x.fill(value)
        graph.launch()
        np.testing.assert_array_equal(work.y.get(), 2 * (value + 1))


def test_memory_that_the_default_pool_may_give_away(cp: Any) -> None:
    graph = captured(cp, Work(cp))
    with pytest.raises(DeviceRuleError, match="an array that is gone, whose memory the default"):
        graph.launch()
    captured(cp, kept := Work(cp, keep=True)).launch()
    np.testing.assert_array_equal(kept.y.get(), 2)


def test_an_input_that_is_gone(cp: Any) -> None:
    work, pool = Work(cp), cp.cuda.MemoryPool()
    graph = captured(cp, work, pool)
    work.y = None
    with pytest.raises(DeviceRuleError, match="an array that is gone"):
        graph.launch()


def test_memory_of_a_pool_that_is_gone(cp: Any) -> None:
    pool = cp.cuda.MemoryPool()
    graph = captured(cp, work := Work(cp), pool)
    del pool
    with pytest.raises(DeviceRuleError, match="memory of a pool that is gone"):
        graph.launch()
    assert work.y is not None


def test_memory_that_a_private_pool_has_given_away(cp: Any) -> None:
    pool = cp.cuda.MemoryPool()
    graph = captured(cp, work := Work(cp), pool)
    captured(cp, Work(cp), pool)  # another capture may share it: graphs run one after the other
    graph.launch()
    with cp.cuda.using_allocator(pool.malloc):
        other = cp.zeros(8, "f4")
    with pytest.raises(DeviceRuleError, match="given to others since the capture"):
        graph.launch()
    assert other is not work.y
