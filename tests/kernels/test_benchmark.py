"""benchmarks/gpu.py runs: each case with both engines, on the stand-in, tiny."""

from __future__ import annotations

import importlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import Backend, no_gpu_reason

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_gpu"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.emulated
def test_every_case_runs_and_gives_a_row(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load()

    def once(xp: object, run: object, launches: int = 0, groups: int = 0) -> float:
        run()  # type: ignore[operator]
        return 0.5

    monkeypatch.setattr(benchmark, "milliseconds", once)
    rows = benchmark.measure(emulated.xp, 1, ("float32",), copy_megabytes=1)
    assert len({row[0] for row in rows}) == len(rows) == 15
    for row in rows:
        assert len(row) == len(benchmark.HEADER)
        assert math.isfinite(row[4]) and row[4] > 0
    copy = next(row for row in rows if row[0] == "copy")
    assert copy[4] == pytest.approx(2 * 2**20 / 0.5e-3 / 1e9)


@pytest.mark.emulated
def test_times_are_between_events(emulated: Backend) -> None:
    benchmark = load()
    x = emulated.xp.zeros(10)
    assert benchmark.milliseconds(emulated.xp, lambda: x + 1, launches=2, groups=3) >= 0


@pytest.mark.emulated
def test_the_first_training_step_is_timed(
    emulated: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(load().FIRST_USE.format(batch=2), {})
    word, first, later = capsys.readouterr().out.split()
    assert word == "seconds"
    assert float(first) > 0 and float(later) > 0


@pytest.mark.emulated
def test_the_planned_step_is_timed(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("gpulayers.cuda.conv")
    monkeypatch.setattr(module, "SPECIALISED", False)  # compiling for a shape takes long here
    with emulated.count() as events:
        assert load().planned_step(emulated.xp, 1, steps=2, warm_up=2) > 0
    assert events["graph_launch"] == 3


@pytest.mark.skipif(no_gpu_reason() is None, reason="a GPU is there")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
