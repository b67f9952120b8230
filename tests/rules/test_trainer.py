"""`Trainer` on the GPU: the dataset goes there once, and no step waits or copies."""

from __future__ import annotations

from collections import Counter

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


def events_of(backend: Backend, batches: int, schedule: str | None = None) -> Counter[str]:
    """What one epoch of `batches` steps, with validation, does on the device."""
    network = models.lenet(3, (12, 12, 1), "SGD(lr=0.01)")
    trainer = Trainer(network, dataset(batches), BATCH, epochs=1, schedule=schedule, progress=False)
    with backend.count() as events:
        trainer.fit()
    return events


@pytest.mark.parametrize("schedule", [None, "ExponentialScheduler(decay=0.1)"])
def test_steps_neither_wait_nor_copy(emulated: Backend, schedule: str | None) -> None:
    """Three times the steps, the same number of waits and copies: those of an epoch's ends."""
    events_of(emulated, 2, schedule)  # compiles the kernels
    few, many = events_of(emulated, 3, schedule), events_of(emulated, 9, schedule)
    for event in ("sync", "d2h", "h2d", "iterate"):
        assert many[event] == few[event], event
    a_step = (many["launch"] - few["launch"]) / 6
    assert SLACK * BUDGET["Trainer"]["launch"] <= a_step <= BUDGET["Trainer"]["launch"]
