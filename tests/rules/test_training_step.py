"""A training step on the GPU: no hidden waits or copies, few launches, fit for a captured graph.

All on the CuPy stand-in, which sees what a device would be asked to do.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from gpulayers.ops import use_engine
from tests.conftest import Backend
from tests.rules.step import BUDGET, SLACK, Step
from tests.support import fake_cupy
from tests.support.fake_cupy import CaptureError, DeviceRuleError

OPTIMIZERS = [name for name in BUDGET if name not in ("about", "Trainer", "graph")]


@pytest.fixture(params=OPTIMIZERS)
def step(request: pytest.FixtureRequest, emulated: Backend) -> Step:
    step = Step(emulated, request.param)
    step.optimizer = request.param
    for _ in range(2):  # parameters, optimizer state and kernels are made
        step.run()
    return step


def test_nothing_waits_and_nothing_is_copied(step: Step) -> None:
    with fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        step.run()


def test_evaluation_does_not_wait_either(step: Step) -> None:
    with fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        step.network.forward(step.X, retain_derived=False)


def test_launches_and_allocations_stay_in_the_budget(step: Step) -> None:
    with fake_cupy.count() as events:
        step.run()
    budget = BUDGET[step.optimizer]
    used = {name: events[name] for name in budget}
    over = {name: n for name, n in used.items() if n > budget[name]}
    assert over == {}, f"over the budget {budget}"
    loose = {name: n for name, n in used.items() if n < SLACK * budget[name]}
    assert loose == {}, f"better than the budget {budget}: lower it in budget.json"


def test_every_step_does_the_same(step: Step) -> None:
    """Nothing is compiled, cached or grown any more after the first steps."""
    counts = []
    for _ in range(3):
        with fake_cupy.count() as events:
            step.run()
        counts.append(events)
    assert counts[0] == counts[1] == counts[2]


def test_memory_does_not_grow(step: Step) -> None:
    """A leaked array a step would show; evaluation in between must not change it."""
    pool = fake_cupy.cupy.get_default_memory_pool()
    gc.collect()  # tracebacks of earlier tests may hold arrays
    used, total = [], []
    for _ in range(4):
        losses = step.run()
        step.network.forward(step.X[:1], retain_derived=False)
        assert losses.size == len(step.labels)
        used.append(pool.used_bytes())
        total.append(pool.total_bytes())
    assert used[1:] == used[1:2] * 3
    assert total[1:] == total[1:2] * 3


def test_the_input_batch_is_not_changed(step: Step) -> None:
    X, labels = step.X.get(), step.labels.get()
    step.run()
    np.testing.assert_array_equal(step.X.get(), X)
    np.testing.assert_array_equal(step.labels.get(), labels)


# ----------------------------------------------------------------------------------- capture


def captured(step: Step) -> Any:
    cuda = fake_cupy.cupy.cuda
    stream = cuda.Stream(non_blocking=True)
    step.pool = cuda.MemoryPool()  # what the capture lets go of must go to nobody else
    with cuda.using_allocator(step.pool.malloc), stream:
        stream.begin_capture()
        try:
            step.run()
        finally:
            graph = stream.end_capture()
    return graph


def test_cublas_stands_in_the_way_of_a_graph(step: Step) -> None:
    with (
        use_engine("cublas"),
        pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"),
    ):
        captured(step)


def test_a_captured_step_trains(emulated: Backend) -> None:
    """Replaying one captured step is the same as running steps: nothing is decided on the host."""
    eager, replayed = (Step(emulated, "SGD(lr=0.05, momentum=0.9)") for _ in range(2))
    for step in (eager, replayed):
        step.run()
    before = replayed.parameters(emulated)
    graph = captured(replayed)
    for name, array in replayed.parameters(emulated).items():
        np.testing.assert_array_equal(array, before[name])  # capturing computes nothing
    for _ in range(3):
        eager.run()
        graph.launch()
    for name, array in replayed.parameters(emulated).items():
        np.testing.assert_array_equal(array, eager.parameters(emulated)[name])
        assert not np.array_equal(array, before[name]), f"{name} was not trained"


# ------------------------------------------------------------------------- planted mistakes


class _Spoiled(Step):
    """A step with one careless line."""

    def __init__(self, backend: Backend, mistake: str) -> None:
        super().__init__(backend, "SGD(lr=0.01)")
        self.mistake, self.kept = mistake, []

    def run(self) -> Any:
        losses = super().run()
        if self.mistake == "looks at the loss":
            float(losses.mean())
        elif self.mistake == "copies the batch":
            self.X = fake_cupy.cupy.asarray(np.zeros(self.X.shape, np.float32))
        elif self.mistake == "downloads":
            losses.get()
        elif self.mistake == "keeps every loss":
            self.kept.append(losses)
        elif self.mistake == "many small launches":
            for _ in range(5):
                losses = losses + 0
        return losses


@pytest.mark.parametrize("mistake", ["looks at the loss", "copies the batch", "downloads"])
def test_the_rules_see_waits_and_copies(emulated: Backend, mistake: str) -> None:
    step = _Spoiled(emulated, mistake)
    step.run()
    with pytest.raises(DeviceRuleError):
        test_nothing_waits_and_nothing_is_copied(step)
    with pytest.raises(CaptureError):
        captured(step)


def test_the_rules_see_leaks_and_launches(emulated: Backend) -> None:
    leaking, chatty = (
        _Spoiled(emulated, "keeps every loss"),
        _Spoiled(emulated, "many small launches"),
    )
    for step in (leaking, chatty):
        step.optimizer = "SGD(lr=0.01, momentum=0.9)"
        step.run()
    with pytest.raises(AssertionError):
        test_memory_does_not_grow(leaking)
    with pytest.raises(AssertionError, match="over the budget"):
        test_launches_and_allocations_stay_in_the_budget(chatty)
