"""Faults in the kernel of engine "mega" are seen; with every case all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda.compile import load_source
from gpulayers.models import mega_source
from gpulayers.models.resident import Resident
from tests.conftest import CASES, Backend
from tests.models.test_mega import Run, checked, dropped, normalized, pooled, strided
from tests.support.cuda_on_cpu import KernelError

pytestmark = pytest.mark.emulated
__all__ = ["checked"]  # the fixture that runs kernels under the checker

#: the network that sees it, what stands there, and what is planted in its place
FAULTS: dict[str, tuple[Callable[[], list[Any]], str, str]] = {
    "nobody waits for the gradients": (
        pooled,
        "wait(arrived, arrive(arrived, blockIdx.x == 0, gridDim.x));",
        "",
    ),
    "nobody waits for the parameters": (pooled, "wait(arrived, before);", ""),
    "nobody sees to it that others read what is new": (
        pooled,
        "    __threadfence();\n    return atomicAdd",
        "    return atomicAdd",
    ),
    "what L1 has from the last step is read": (
        pooled,
        "pause();\n        __threadfence();",
        "pause();",
    ),
    "the gradient goes to every pixel of a window": (pooled, "= winner == t ? d : 0.0f;", "= d;"),
    "the sums of a step are kept": (pooled, "            *part = 0.0f;\n", ""),
    "a bias summed in all channels": (pooled, "if (r == 0 && channel == 0) target", "target"),
    "no slope behind a convolution": (
        pooled,
        "sum[pixel] * slope_before<S>(shared, number, value)",
        "sum[pixel]",
    ),
    "no slope behind a dense layer": (
        pooled,
        "* slope_before<S>(shared, row, shared[S::input + row])",
        "",
    ),
    "a bias for each tile": (pooled, "if (top + row == 0) update_one", "if (row == 0) update_one"),
    "the weights' rate for a bias": (pooled, "? S::section : S::section + 1", "? 0 : 99"),
    "the first step's rates": (pooled, "rates + step * rates_pitch", "rates"),
    "the record's first row": (pooled, "((recorded + step) % slots)", "(step % slots)"),
    "the mean of a whole batch": (pooled, "1.0f / static_cast<float>(examples)", "1.0f / batch"),
    "an image beyond the batch": (pooled, "if (example + gridDim.x < examples) fetch", "fetch"),
    "no barrier before the next image": (
        pooled,
        "fetch(from + example + gridDim.x);\n            __syncthreads();",
        "fetch(from + example + gridDim.x);",
    ),
    "no room beside a gradient": (pooled, "S::stride_cols + S::spread_left", "S::stride_cols"),
    "masks all begin at one place": (dropped, "+ NUMBERS - 1) / NUMBERS;", ") * 0;"),
    "the masks of the launch before": (dropped, "draws[2] += drawn;", ""),
    "every example's mask is the first one's": (
        dropped,
        "begin = static_cast<Word>(example) * S::dropped",
        "begin = 0",
    ),
    "a gradient for what was dropped": (dropped, "return stays ?", "return true ?"),
    "the slope at what dropout made": (dropped, "(value / S::scale)", "(value)"),
    "the unbiased variance runs": (
        normalized,
        "S::rest * var;",
        "S::rest * var * total / (total - 1.0f);",
    ),
    "statistics of one block only": (normalized, "means[0];", "means[0] + 0 * (blocks = 1);"),
    "the mean of a block's last example": (normalized, "away * share : mean", "0.0f : mean"),
    "examples differ in nothing": (
        normalized,
        "+ squares + away * away * PIXELS * before * share",
        "+ squares",
    ),
    "blocks weigh the same": (
        normalized,
        "return seen(block) * (means",
        "return total / blocks * (means",
    ),
    "every block moves the running ones": (
        normalized,
        "        if (blockIdx.x > 0) continue;\n",
        "",
    ),
    "a mean over the pooled pixels": (
        normalized,
        "(examples) * (S::rows * S::cols)",
        "(examples) * (S::out_rows * S::out_cols)",
    ),
    "the statistics are no function of the input": (
        normalized,
        "if constexpr (!S::frozen) {\n            const",
        "if (false) {\n            const",
    ),
    "no statistics where the gradient is zero": (
        normalized,
        "if constexpr (!S::frozen) {\n            const",
        "if (d != 0.0f) {\n            const",
    ),
    "the sums of a step are kept, of scalers": (
        normalized,
        "        shared[S::sums + i] = 0.0f;\n",
        "",
    ),
    "another example's state": (
        normalized,
        "for (int i = BEGIN + this_thread(); i < END; i += THREADS) shared[i] = saved[i];",
        "",
    ),
    "blocks do not meet": (
        normalized,
        "const auto meet = [&] { wait(arrived, arrive(arrived, blockIdx.x == 0, gridDim.x)); };",
        "const auto meet = [&] {};",
    ),
    "the other stride": (strided, "col * S::stride_cols) * S::channels", "col) * S::channels"),
}
SCHEDULE = "ExponentialScheduler(initial_lr=0.1, stage_length=1, decay=0.5)"
SAMPLE = "the sums of a step are kept", "statistics of one block only"
chosen = FAULTS if os.environ.get(CASES) else SAMPLE


def agrees(backend: Backend, layers: Callable[[], list[Any]]) -> bool:
    """Whether losses, hits and parameters of two launches of two steps are the layers'."""
    run = Run(backend, layers, f"SGD(momentum=0.9, lr_scheduler={SCHEDULE})")
    resident = Resident(run.X, run.labels)
    order = np.array([3, 0, 4, 2, 1])
    want = []
    for _ in range(2):
        resident.begin(order)
        assert run.plan.run(resident, 2, 3) == 2
        want += [run.gold.step(run.X[part], run.labels[part]) for part in (order[:3], order[3:])]
    losses, _ = resident.read()
    if not np.allclose(losses, want, rtol=5e-6):
        return False
    got = run.parameters()
    pairs = ((got[name], array) for name, array in run.gold.network.parameters.items())
    return all(np.allclose(a, b, atol=2e-5 if layers is normalized else 2e-6) for a, b in pairs)


@pytest.mark.parametrize("name", chosen)
def test_faults_are_seen(emulated: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, old, new = FAULTS[name]
    assert old in load_source("mega_kernel.cuh")
    monkeypatch.setattr(
        mega_source, "load_source", lambda file: load_source(file).replace(old, new)
    )
    with contextlib.suppress(KernelError):  # a race, or an access out of bounds
        assert not agrees(emulated, layers)


@pytest.mark.parametrize("layers", [pooled, normalized])
def test_without_a_fault_all_agrees(emulated: Backend, layers: Callable[[], list[Any]]) -> None:
    assert agrees(emulated, layers)
