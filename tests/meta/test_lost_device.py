"""The plugin that keeps the fault of one GPU test from all others, and what tells its results."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: a device that a test can lose, of this process alone, and tests of which two do
TESTS = """
import os, sys, types
import pytest

lost = []

def wait():
    if lost:
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

sys.modules["cupy"] = types.SimpleNamespace(
    cuda=types.SimpleNamespace(runtime=types.SimpleNamespace(deviceSynchronize=wait))
)
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("number", range(4))
def test_before(number):
    assert not lost

def test_that_fails():
    assert 1 == 2

def test_that_fails_and_loses_it():
    lost.append(1)
    wait()

def test_that_loses_it_unseen():
    lost.append(1)

def test_that_ends_the_process():
    os._exit(7)

@pytest.mark.parametrize("number", range(4))
def test_behind(number):
    assert not lost
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_tests", ROOT / "tools" / "gpu_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results_of(tool: Any, folder: Path, *options: str) -> dict[str, Any]:
    (folder / "test_device.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a CUDA device\n")
    results = folder / "results.jsonl"
    words = [word for word in tool.command([], results, 1) if word != "--require-gpu"]
    subprocess.run(
        [*words, *options, "test_device.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return tool.summary(tool.read(results))


def test_each_fault_costs_one_test(tool: Any, tmp_path: Path) -> None:
    found = results_of(tool, tmp_path, "-n", "1")
    assert found["counts"]["passed"] == 8, "those before and behind"
    assert found["lost"] == [
        "test_device.py::test_that_fails_and_loses_it",
        "test_device.py::test_that_loses_it_unseen",
        "test_device.py::test_that_ends_the_process",
    ]
    assert found["failed"]["assert # == #"] == ["test_device.py::test_that_fails"]
    (told,) = (reason for reason in found["failed"] if reason.startswith("the CUDA device is lost"))
    assert "cudaErrorIllegalAddress" in told
    assert len(found["failed"][told]) == 2
    assert found["failed"]["its process has ended"] == found["lost"]


def test_without_processes_the_run_ends_with_the_first_one(tool: Any, tmp_path: Path) -> None:
    found = results_of(tool, tmp_path)
    assert found["counts"] == {"passed": 4, "failed": 2}
    assert found["lost"] == ["test_device.py::test_that_fails_and_loses_it"]
