"""Processes of `gpulayers train` killed at random moments; tools/kill_trials.py does many more."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "kill_trials.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if not TOOL.exists():
        pytest.skip("tools/ is not part of this distribution")
    spec = importlib.util.spec_from_file_location("kill_trials", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_sees_a_difference(tool, monkeypatch, tmp_path):
    def end(weight=1.0, loss=0.5, step=3, seconds=1.0):
        return (
            {"w": np.array([weight, 0.0])},
            tool._timeless({"trainer": {"step": step, "seconds": seconds}}),
            tool._timeless({"history": {"epochs": [{"val_loss": loss, "seconds": seconds}]}}),
        )

    expected = end()
    for other, found in [
        (end(seconds=2.0), []),
        (end(weight=np.nextafter(1.0, 2.0)), ["w"]),
        (end(weight=1.0, loss=0.25), ["the results"]),
        (end(step=4), ["the description in the checkpoint"]),
        (({"w": np.array([1.0, -0.0])}, *end()[1:]), ["w"]),
        (({}, *end()[1:]), ["the names of the arrays"]),
    ]:
        monkeypatch.setattr(tool, "end_of", lambda folder, _o=other: _o)
        assert tool.differences(tmp_path, expected) == found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_run_killed_behind_its_last_file_is_at_its_end(tool, tmp_path):
    tool.finish([*tool.RUN, "--out", str(tmp_path / "run")])
    assert not tool.kill_after(["--resume", str(tmp_path / "run"), "--quiet"], 60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_killed_runs_go_on_to_the_same_end(tool, tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), "--trials", "3", "--kills", "2", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["equal"] == 3 and summary["lost"] == 0
    assert sum(summary["killed"].values()) >= 3, done.stderr
