"""The backend that the CUDA engine runs on, the modules of its tuner, and the kernels' compiler."""

from __future__ import annotations

import base64
import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Backend
from tests.static.conftest import compiler
from tests.support import fake_cupy
from tests.support.fake_cupy.kernels import machine_code

__all__ = ["compiler", "cuda"]

MODULES = (
    "tune",
    "tune_measure",
    "tune_table",
    "tune_work",
    "cubins",
    "compile",
    "conv",
    "conv_step",
    "product",
)


def compiled_here(library: str, jobs: Sequence[Any]) -> list[dict[str, str]]:
    """In the place of NVRTC: machine code that the stand-in runs."""
    answers: list[dict[str, str]] = []
    for job in jobs:
        code, symbol = machine_code(job.code, job.expression, job.options)
        answers.append({"cubin": base64.b64encode(code).decode(), "symbol": symbol})
    return answers


@pytest.fixture
def cuda(
    emulated: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    """The modules of gpulayers.cuda, as in a new process with an empty cache folder; `clock` maps a
    kernel to its time, 1 ms for the others, and `timed` counts what was timed."""
    monkeypatch.setenv("GPULAYERS_TUNE_DIR", str(tmp_path / "tune"))
    found = {name: importlib.import_module(f"gpulayers.cuda.{name}") for name in MODULES}
    cuda = SimpleNamespace(**found, clock={}, timed=Counter(), folder=tmp_path / "tune")

    def milliseconds(captured: Any, candidate: Any) -> float:
        if not cuda.timed[candidate.label]:
            captured.launch()
        cuda.timed[candidate.label] += 1
        return cuda.clock.get(candidate.label, cuda.clock.get(candidate.kernel, 1.0))

    monkeypatch.setattr(cuda.tune_measure, "milliseconds", milliseconds)
    monkeypatch.setattr(cuda.tune_measure, "LAUNCHES", 2)
    monkeypatch.setattr(cuda.cubins, "_run", compiled_here)
    monkeypatch.setattr(cuda.cubins, "nvrtc_path", lambda: "NVRTC")
    monkeypatch.setattr(cuda.compile, "_kernels", {})
    new_process(cuda)
    yield cuda
    new_process(cuda)
    fake_cupy.state.kernel_attributes = {}


def new_process(cuda: SimpleNamespace) -> None:
    """Forget what is in memory alone."""
    cuda.tune._table.cache_clear()
    cuda.tune.forget()
