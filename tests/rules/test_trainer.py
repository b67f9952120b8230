"""`Trainer` on the GPU: the dataset goes there once, and no step waits or copies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gpulayers import models
from gpulayers.training import Trainer
from gpulayers.training.data import Dataset, Split
from tests.conftest import Backend
from tests.rules.step import BUDGET, SLACK

BATCH = 4


def dataset(batches: int) -> Dataset:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 12, 12, 1), np.uint8), rng.integers(0, 3, n))

    return Dataset("noise", split(BATCH * batches), split(BATCH), ("a", "b", "c"))


def events_of(backend: Backend, batches: int, **options: Any) -> Counter[str]:
    """What one epoch of `batches` steps, with validation, does on the device."""
    network = models.lenet(3, (12, 12, 1), "SGD(lr=0.01)")
    trainer = Trainer(network, dataset(batches), BATCH, epochs=1, progress=False, **options)
    with backend.count() as events:
        trainer.fit()
    return events


def a_step(backend: Backend, **options: Any) -> Counter[str]:
    """What a step does; three times as many wait and copy as often: at the ends of an epoch."""
    events_of(backend, 2, **options)  # compiles the kernels
    few, many = events_of(backend, 3, **options), events_of(backend, 9, **options)
    for event in ("sync", "d2h", "h2d", "iterate"):
        assert many[event] == few[event], event
    return Counter({event: (many[event] - few[event]) // 6 for event in many})


@pytest.mark.parametrize("schedule, launches", [(None, 0), ("ExponentialScheduler(decay=0.1)", 1)])
def test_a_step_is_the_launch_of_a_graph(
    emulated: Backend, schedule: str | None, launches: int
) -> None:
    """And of the learning rate's new value, where it has one."""
    events = a_step(emulated, schedule=schedule)
    assert (events["graph_launch"], events["launch"]) == (1, launches)


def test_a_step_by_the_layers(emulated: Backend) -> None:
    launches = a_step(emulated, compile=False)["launch"]
    assert SLACK * BUDGET["Trainer"]["launch"] <= launches <= BUDGET["Trainer"]["launch"]
