"""What benchmarks/gpu.py keeps of its runs, and what is made of it: ratios of one run alone, and
the sizes of installations."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Entry = dict[str, Any]


def test_a_ratio_is_of_one_run(bench: SimpleNamespace) -> None:
    ours = {"fused": {"median_us": 1.0}, "fused again": {"median_us": 1.5}}
    theirs = {"torch eager": {"median_us": 5.0}}
    found = bench.tables.ratios([(2, theirs), (1, ours)])
    assert (found["us"], found["against eager"], found["against best"]) == (1.0, None, None)
    slower = {"fused": {"median_us": 2.0}, "jax jit": {"median_us": 8.0}, **theirs}
    found = bench.tables.ratios([(3, slower), (2, theirs), (1, ours)])
    assert (found["us"], found["against eager"]) == (2.0, 2.5)
    assert (found["peer"], found["runs"]) == ("torch eager", [3])
    assert bench.tables.noise([(2, theirs), (1, ours)]) == 0.5
    again = {"fused again": {"median_us": 9.0}}
    assert bench.tables.noise([(2, again), (1, {"fused": {"median_us": 1.0}})]) is None
    assert bench.tables.ratios([(1, {"torch eager": {"error": "x"}})]) == {"ours": None}


def test_runs_of_another_kind_stay_apart(bench: SimpleNamespace) -> None:
    """Other sources, driver or settings: no row has figures of both."""

    def run(us: float, **facts: Any) -> Entry:
        return {"steps": {"lenet b64 fp32": {"fused": {"median_us": us}}}, **facts}

    peer = run(3.0)
    peer["steps"]["lenet b64 fp32"]["torch eager"] = {"median_us": 30.0}
    line = bench.tables.ratio_table([peer, run(2.0)]).splitlines()[1].split()
    assert (line[3], line[5], line[-2:]) == ("2.0", "10.00", ["1,", "2"])
    for facts in ({"source": "b"}, {"device": {"driver_version": "2"}}, {"settings": {"steps": 2}}):
        assert not bench.record.alike(run(2.0), run(2.0, **facts))
        line = bench.tables.ratio_table([peer, run(2.0, **facts)]).splitlines()[1].split()
        assert (line[3], line[5]) == ("2.0", "-")
    clocks = {"device": {"name": None, "clocks.sm": "1 MHz"}, "date": "now", "commit": "x"}
    assert bench.record.alike(run(2.0), run(2.0, **clocks))


def test_decisions_of_numbers_of_one_run(bench: SimpleNamespace) -> None:
    product = {"micro": {"product 4096, bf16": {"measured": {"TFLOP/s": 350.0}}}}
    cores = {"micro": {"tensor cores, bf16": {"measured": {"TFLOP/s": 700.0}}}}
    what = "product of the instruction's speed, bf16"
    assert what not in {d.what for d in bench.decide.decisions([product, cores])}
    both = {"micro": {**product["micro"], **cores["micro"]}}
    assert what in {d.what for d in bench.decide.decisions([both, cores])}
    failed = {"kernels": {"x": {"measured": {"error": "off by 1"}}}}
    right = {"kernels": {"x": {"measured": {"ms": 1.0}}}}
    assert bench.decide.decisions([right, failed])
    assert not bench.decide.decisions([failed, right]), "mended since"


def test_a_record_is_taken_up(bench: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    for date, us in (("a", 1.0), ("b", 2.0)):
        kept = bench.record.Record(file)
        kept.begin({"device": {"driver_version": date}, "commit": date})
        kept.put("steps", "x", "fused", {"median_us": us})
    one, two = json.loads(file.read_text())["runs"]
    assert (one["commit"], one["steps"]["x"]["fused"]) == ("a", {"median_us": 1.0})
    assert (two["commit"], two["steps"]["x"]["fused"]) == ("b", {"median_us": 2.0})
    values = {"a": {"ms": 1.0}}, {"a": {"error": "x"}}, {"a": {"not measured": "x"}}
    newest = bench.record.newest([{"kernels": {"k": value}} for value in values], "kernels")
    assert newest == {"k": {"a": {"error": "x"}}}, "what was left out replaces nothing"
    elsewhere = bench.record.Record(tmp_path / "new" / "gpu.json", former=file)
    assert len(elsewhere.runs) == 2
    for broken in ("{broken", '{"steps": {}}'):
        file.write_text(broken)
        assert bench.record.Record(file).runs == []
        assert any(p.read_text() == broken for p in tmp_path.glob("gpu.unread-*"))


def test_the_least_that_identifies_sources(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gpulayers").mkdir()
    kernel = tmp_path / "gpulayers" / "a.cu"
    kernel.write_text("1")
    monkeypatch.setattr(bench.machine, "_ROOT", tmp_path)
    first = bench.machine.source()
    kernel.write_text("2")
    assert bench.machine.source() != first
    assert bench.machine.commit() is None, "no checkout"
    monkeypatch.setenv("GPULAYERS_WARPGROUPS", "1")
    monkeypatch.setenv("GPULAYERS_TUNE_DIR", "/some/where")
    assert bench.machine.variables().get("GPULAYERS_WARPGROUPS") == "1"
    assert "GPULAYERS_TUNE_DIR" not in bench.machine.variables()


# --------------------------------------------------------------------------------- installations


def test_each_side_has_what_it_requires(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What an extra installs belongs to ours, what another extra would does not."""
    pytest.importorskip("packaging")
    packages: dict[str, list[str]] = {
        "gpulayers": [
            "numpy",
            'cupy-cuda13x; extra == "cuda13"',
            'nvidia-cuda-nvrtc; extra == "cuda13"',
            'nvidia-cublas; extra == "cublas13"',
        ],
        "numpy": [],
        "cupy-cuda13x": ["numpy", 'scipy; extra == "all"'],
        "nvidia-cublas": [],
        "nvidia-cuda-nvrtc": [],
        "scipy": ["numpy"],
        "jax": ["scipy", 'jax-cuda13-plugin[with_cuda]; extra == "cuda13"'],
        "jax-cuda13-plugin": ['nvidia-cudnn-cu13; extra == "with-cuda"', "absent"],
        "nvidia-cudnn-cu13": [],
        "torch": ['nvidia-cudnn-cu13; platform_system == "Linux"', 'pywin; os_name == "nt"'],
    }

    def requires(name: str) -> list[str]:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    monkeypatch.setattr(importlib.metadata, "distribution", requires)
    monkeypatch.setattr(bench.sizes, "bytes_of", lambda name: 2**20)
    found = bench.sizes.installed()
    assert found["gpulayers"] == {
        "of": "gpulayers[cuda13]",
        "MiB": 4.0,
        "packages": ["cupy-cuda13x", "gpulayers", "numpy", "nvidia-cuda-nvrtc"],
    }
    assert found["jax"]["packages"] == [
        *("jax", "jax-cuda13-plugin", "numpy", "nvidia-cudnn-cu13", "scipy")
    ]
    assert found["jax"]["missing"] == ["absent"]
    assert found["torch"]["packages"] == ["nvidia-cudnn-cu13", "torch"]
    del packages["gpulayers"]  # a clone that is not installed: as pyproject.toml has it
    assert "nvidia-cuda-nvrtc" in bench.sizes.installed()["gpulayers"]["packages"]
    assert "nvidia-cuda-runtime" in bench.sizes.installed()["gpulayers"]["missing"]
    assert "cublas" not in str(bench.sizes.installed()["gpulayers"])


def test_bytes_are_those_of_files(bench: SimpleNamespace) -> None:
    numpy = bench.sizes.bytes_of("numpy")
    assert 5 * 2**20 < numpy < 300 * 2**20
    assert 2**20 / 4 < bench.sizes.bytes_of("gpulayers") < 300 * 2**20
