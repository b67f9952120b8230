"""The pure NumPy engine where it cuts work: remainders of blocks and shares, several threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gpulayers.ops.cpu import _blocks, _columns, _winograd, _winograd2d, fused, normalization, pool
from gpulayers.ops.cpu import activation as cpu_activation
from gpulayers.ops.cpu import softmax as cpu_softmax
from gpulayers.ops.cpu import update as cpu_update
from gpulayers.ops.workspace import Workspace
from gpulayers.threads import use_threads


@pytest.fixture(params=[1, 2, 3, 5])
def count(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads; all memory comes from a workspace that hands out dirty buffers."""
    space = Workspace()
    dirty = [space.empty((n,), np.float32) for n in (5000, 20000, 80000, 300000) for _ in range(6)]
    for array in dirty:
        array.fill(np.nan)
    del array, dirty
    with use_threads(request.param), space:
        yield request.param


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and shares of a few numbers each, so that small arrays are cut, too."""
    for module in (_blocks, cpu_activation, cpu_update, cpu_softmax, fused, normalization, pool):
        for name, value in (
            ("BLOCK", 48),
            ("_BLOCK", 48),
            ("SMALL", 0),
            ("_FEW", 0),
            ("_SCATTERED", 120),
            ("_SHARE", 1),
            ("_ALONE", 1),
            ("_WIDE", 24),
            ("_LONG", 16),
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    forget()
    monkeypatch.setattr(_columns, "_SHARE_WORK", 1)
    monkeypatch.setattr(_columns, "_BLOCK_BYTES", 5000)
    monkeypatch.setattr(_winograd, "BLOCK_BYTES", 200_000)
    monkeypatch.setattr(_winograd2d, "BLOCK_BYTES", 200_000)


@pytest.fixture(autouse=True)
def forget_after() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """What was kept for other sizes of blocks."""
    _blocks._constant.cache_clear()
    _blocks.fold.cache_clear()
    normalization._cut.cache_clear()


def normal(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> np.ndarray:
    array = np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    array.setflags(write=False)  # an operation that writes to its input fails
    return array
