"""benchmarks/gpu.py without a GPU: all sides take the same steps, faults end nothing."""

from __future__ import annotations

import importlib
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.conftest import Backend, no_gpu_reason

CHAINS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "images": (
        (8, 8, 2),
        (
            *(("conv", 3, 3, 1), ("relu",), ("pool", 2), ("conv", 3, 3, 1), ("bn",), ("relu",)),
            *(("skip", (("conv", 3, 3, 1), ("relu",))), ("flatten",), ("dense", 10)),
        ),
    ),
    "lstm": ((3, 5), (("lstm", 4), ("dense", 10))),
    "rnn": ((3, 5), (("rnn", 4), ("dense", 10))),
    "waves": (
        (12, 1),
        (
            ("conv1d", 3, 1, 1),
            ("skip", (("conv1d", 6, 2, 4), ("gate",), ("conv1d", 3, 1, 1))),
            *(("relu",), ("conv1d", 3, 1, 1), ("relu",), ("flatten",), ("dense", 10)),
        ),
    ),
    "dense": ((2, 2, 1), (("conv", 2, 1, 0), ("flatten",), ("dense", 10))),
}


@pytest.fixture
def tiny(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark with small networks of every kind of layer."""
    nets = {k: bench.nets.Net(k, shape, chain) for k, (shape, chain) in CHAINS.items()}
    monkeypatch.setattr(bench.nets, "NETS", nets)
    return bench


# ------------------------------------------------------------------------------ the same steps


@pytest.mark.parametrize("name", [k for k in CHAINS if k != "dense"])
def test_all_sides_take_the_same_steps(
    name: str, tiny: SimpleNamespace, numpy_backend: Backend
) -> None:
    """The referees agree to rounding; layers, plan and PyTorch pass, a wrong weight does not."""
    pytest.importorskip("torch")
    torch_side = importlib.import_module("_gpu.torch_side")
    item = tiny.nets.Item(name, 3, "fp32")
    wanted, facts = tiny.referee.measure(item, "cpu")
    assert facts["NumPy float64 agrees within"] < 1e-11
    subjects = [tiny.ours.Ours(item, "layers"), tiny.ours.Ours(item, "fused")]
    for subject in [*subjects, torch_side.Torch(item, "torch eager", "cpu")]:
        losses, weights = subject.checked()
        assert tiny.referee.judge((losses, weights), wanted, item) < 1e-3
        subject.run(2)
        subject.wait()
    start = tiny.nets.start(tiny.nets.NETS[name])
    key = max(weights, key=lambda k: float(np.abs(weights[k] - start[k]).sum()))
    moved = weights[key] - start[key]
    with pytest.raises(ArithmeticError, match=r"off by .* not timed"):
        tiny.referee.judge((losses, {**weights, key: weights[key] + 0.1 * moved}), wanted, item)
    with pytest.raises(ArithmeticError):
        tiny.referee.judge(([math.nan, *losses[1:]], weights), wanted, item)


def test_a_step_on_a_knife_edge_passes(
    bench: SimpleNamespace, numpy_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeNet's batch of 64 has two pixels in a window that differ by less than float32's rounding.
    What that does is allowed; what a fault does is not, nor anything where there is no such pair.
    """
    monkeypatch.setattr(bench.referee.importlib.util, "find_spec", lambda name: None)
    item = bench.nets.Item("lenet", 64, "fp32")
    wanted = bench.referee.numpy_steps(item)
    by_noise = bench.referee.slack(item, wanted, "cpu")
    assert 5e-3 < by_noise < 5e-2
    assert bench.referee.slack(item, wanted, "cpu") == by_noise
    begin = bench.nets.start(bench.nets.NETS["lenet"])
    other_way, far = wanted, 0.0
    for seed in range(20, 30):
        with bench.nets.shaken(seed, 2.0**-20):
            found = bench.referee.numpy_steps(item)
        if bench.referee.error(found, wanted, begin) > far:
            other_way, far = found, bench.referee.error(found, wanted, begin)
    with pytest.raises(ArithmeticError, match="not timed"):
        bench.referee.judge(other_way, wanted, item)
    bench.referee.judge(other_way, wanted, item, by_noise)
    losses, weights = wanted
    for factor in (0.9, 0.0, -1.0):  # updates a tenth too small, missing, the other way
        wrong = {k: begin[k] + factor * (weights[k] - begin[k]) for k in weights}
        with pytest.raises(ArithmeticError, match="not timed"):
            bench.referee.judge((losses, wrong), wanted, item, by_noise)
    with pytest.raises(ArithmeticError, match="not timed"):  # however much noise does
        bench.referee.judge((losses, begin), wanted, item, 1.0)


def test_referees_that_differ_judge_nothing(
    tiny: SimpleNamespace, numpy_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    losses, weights = tiny.referee.numpy_steps(item := tiny.nets.Item("dense", 3, "fp32"))
    off = [losses[0] * (1 + 1e-6), *losses[1:]], weights
    monkeypatch.setattr(tiny.referee, "torch_steps", lambda *_: off)
    with pytest.raises(ArithmeticError, match="PyTorch and NumPy in float64 differ"):
        tiny.referee.measure(item, "cpu")


@pytest.mark.emulated
def test_graphs_and_resident_data_take_the_same_steps(
    tiny: SimpleNamespace, emulated: Backend
) -> None:
    item = tiny.nets.Item("dense", 3, "fp32")
    results = []
    for way in ("layers", "fused", "resident"):
        subject = tiny.ours.Ours(item, way)
        results.append(subject.checked())
        subject.run(7)  # across the end of the eight batches
        subject.wait()
    start = tiny.nets.start(tiny.nets.NETS["dense"])
    for found in results[1:]:
        assert tiny.referee.error(found, results[0], start) < 1e-4
    assert "captured" in subject.facts()["plan"]


def test_jax_takes_the_same_steps(tiny: SimpleNamespace, numpy_backend: Backend) -> None:
    pytest.importorskip("jax")
    jax_side = importlib.import_module("_gpu.jax_side")
    for name in ("images", "lstm", "rnn", "waves"):
        item = tiny.nets.Item(name, 3, "fp32")
        wanted = tiny.referee.numpy_steps(item)
        for way in jax_side.WAYS:
            tiny.referee.judge(jax_side.Jax(item, way).checked(), wanted, item)


# ------------------------------------------------------------------------------ work and floors


def test_the_work_is_counted_by_hand(bench: SimpleNamespace) -> None:
    """LeNet's weights and products; the bytes that tests/rules/test_graph.py takes, too."""
    flops, moved, parameters = bench.nets.work(bench.nets.NETS["lenet"], 64)
    assert parameters == 61706
    first, rest = 28 * 28 * 6 * 25, 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert flops == 64 * 2 * (2 * first + 3 * rest)
    kept = 14 * 14 * 6 + 5 * 5 * 16 + 120 + 84 + 10
    assert moved == 4 * (64 * (5 * kept + 2 * 28 * 28 - 3 * 10) + 6 * 61706)


@pytest.mark.skipif(no_gpu_reason() is None, reason="a GPU is there")
def test_without_a_gpu_the_floors_are_printed(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.gpu.main(["--parts", "lenet,vgg", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "no GPU: nothing was measured" in told
    lines = {line.split("  ")[0]: line.split() for line in told.splitlines()}
    assert lines["lenet b64 fp32"][5] == "14", "launches"
    assert lines["vgg b512 bf16"][-1] != lines["vgg b512 tf32"][-1]
    assert not list(tmp_path.iterdir())


def test_words_that_are_unknown(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.gpu.main(["--parts", "lenet,vgh"])
    assert "unknown 'vgh'" in capsys.readouterr().err


def test_every_goal_belongs_to_a_step(bench: SimpleNamespace) -> None:
    names = {item.name for part in bench.nets.PARTS.values() for item in part}
    assert set(bench.nets.REACH) <= names


# ------------------------------------------------------------------------- processes, the record

SCRIPT = """
import json, sys, time
print('RESULT {{"what": "first", "value": {{"median_us": 2.0}}}}', flush=True)
job = json.loads(sys.argv[2])
if job["end"] == "late":
    time.sleep(60)
if job["end"] == "fault":
    raise RuntimeError("an illegal memory access was encountered")
sys.path.insert(0, {folder!r})
from _gpu import child
child.put("second", {{"median_us": 3.0}})
"""


@pytest.mark.parametrize("end", ["well", "late", "fault"])
def test_what_a_process_put_out_is_kept(end: str, bench: SimpleNamespace, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(BENCHMARKS)))
    begin = time.monotonic()
    found = bench.child.call({"end": end}, 2.0 if end == "late" else 60.0, script)
    assert time.monotonic() - begin < 50
    assert found["first"] == {"median_us": 2.0}
    error = found.get("error", "")
    assert ("second" in found) == (end == "well")
    assert error.startswith({"well": "", "late": "stopped after", "fault": "exit code 1"}[end])
    assert ("illegal memory access" in error) == (end == "fault")


def test_a_way_that_fails_leaves_the_others_their_turn(
    tiny: SimpleNamespace,
    numpy_backend: Backend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    item = tiny.nets.Item("dense", 3, "fp32")
    tiny.referee.write(tmp_path / "r.npz", tiny.referee.numpy_steps(item))
    job = {
        "kind": "ours",
        "item": ["dense", 3, "fp32"],
        "ways": ["resident", "layers"],  # NumPy has no resident data
        "twice": ["layers"],
        "device": "cpu",
        "file": str(tmp_path / "r.npz"),
        **{"warm_up": 1, "steps": 2, "repeats": 3},
    }
    tiny.child.work(job)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
    found = {e["what"]: e["value"] for e in (json.loads(line[7:]) for line in lines)}
    assert list(found) == ["resident", "layers", "layers again"]
    assert "error" in found["resident"]
    assert found["layers"]["steps"] == 2
    assert 0 <= found["layers"]["off by"] < 1e-3
    assert found["layers"]["min_us"] <= found["layers"]["median_us"] <= found["layers"]["max_us"]


def arguments(bench: SimpleNamespace, *more: str) -> Any:
    return bench.gpu.parser().parse_args(["--parts", "lenet", "--sides", "ours,torch", *more])


def test_a_run_writes_after_each_item_and_goes_on(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A referee that fails takes its item out; a process that dies takes its ways out."""
    seen: list[int] = []
    file = tmp_path / "gpu.json"

    def call(job: Any, seconds: float, script: Path, *more: Any) -> Any:
        seen.append(len(json.loads(file.read_text())["steps"]) if file.exists() else 0)
        if job["kind"] == "referee":
            return {"error": "no agreement"} if job["item"][1] == 128 else {"facts": {}}
        if job["kind"] == "torch":
            again = {"torch eager again": {"median_us": 25.0}}  # for the noise, no peer
            return {way: {"median_us": 30.0} for way in job["ways"]} | again
        if "mega" in job["ways"]:
            return {"error": "exit code -11: "}
        again = {f"{w} again": {"median_us": 11.0} for w in job["ways"] if w in job["twice"]}
        return {way: {"median_us": 10.0} for way in job["ways"]} | again

    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.gpu, "installed", lambda side: True)
    run = bench.gpu.Run(arguments(bench), file, "cpu")
    items = list(bench.nets.PARTS["lenet"])
    run.steps(items)
    run.show()
    steps = json.loads(file.read_text())["steps"]
    assert steps["lenet b128 fp32"] == {"referee": {"error": "no agreement"}}
    assert steps["lenet b64 fp32"]["mega"] == {"error": "exit code -11: "}
    assert seen[:4] == [0, 1, 2, 3]
    told = capsys.readouterr().out
    table = told[told.index("torch eager / ours") :].splitlines()
    b64 = next(line for line in table if line.startswith("lenet b64"))
    assert b64.split()[3:] == [
        *("10.0", "(fused)", "3.00", "(NOT", "met:", "10)", "3.00", "(met:", "3)"),
        *("torch", "eager", "17", "%", "1"),
    ]


def test_the_whole_command(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a device, where the processes answer at once."""
    answers = {"micro": {"copy": {"TB/s": 4.0}, "error": "exit code 1: "}, "referee": {"facts": {}}}

    def call(job: Any, *rest: Any) -> Any:
        times = {way: {"median_us": 7.0} for way in job.get("ways", ())}
        found = dict(answers.get(job["kind"], times))
        if job["kind"] == "micro":
            rest[-2]("copy", found["copy"])  # who hears of it
            answers["micro"].pop("error", None)  # another process goes on
        return found

    monkeypatch.setattr(bench.gpu, "gpu_error", lambda: None)
    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.gpu.startup, "items", lambda *_: [("import x", lambda: 1 / 0)])
    monkeypatch.setattr(bench.gpu.machine, "device", lambda: {"name": "NVIDIA H200"})
    parts = ["--parts", "micro,vgg,startup", "--batches", "512", "--precisions", "tf32"]
    assert bench.gpu.main([*parts, "--out", str(tmp_path)]) == 0
    values = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())
    assert values["run"]["device"] == {"name": "NVIDIA H200"}
    assert values["micro"]["copy"]["measured"] == {"TB/s": 4.0}
    assert list(values["steps"]) == ["vgg b512 tf32"]
    assert "ZeroDivisionError" in values["startup"]["import x"]["measured"]["error"]
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("vgg b512 tf32")
    assert last[1].startswith("written to")


def test_a_budget_that_is_used_up(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bench.gpu.Run(arguments(bench, "--budget", "1"), tmp_path / "gpu.json", "cpu")
    run.steps(list(bench.nets.PARTS["lenet"]))
    run.startup()
    run.show()
    told = capsys.readouterr().out
    assert "left out for want of time: lenet b64 fp32; lenet b128 fp32; lenet b1024 fp32" in told
    assert "import gpulayers" in told


def test_a_record_is_taken_up(bench: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    first = bench.record.Record(file)
    first.put("steps", "a", "fused", {"median_us": 1.0})
    second = bench.record.Record(file)
    second.put("steps", "a", "torch eager", {"median_us": 5.0})
    entry = json.loads(file.read_text())["steps"]["a"]
    assert bench.record.ratios(entry)["against eager"] == 5.0
    file.write_text("{broken")
    assert bench.record.Record(file).values == {}
    assert bench.record.ratios({"torch eager": {"error": "x"}}) == {"ours": None}


def test_the_clock_counts_its_steps(bench: SimpleNamespace) -> None:
    steps: list[int] = []
    waits: list[int] = []
    found = bench.clock.wall(steps.append, lambda: waits.append(len(steps)), 5, 40, 3)
    assert steps == [5, 3, 40, 40, 40]
    assert waits == [1, 2, 3, 4, 5], "before and after each repeat"
    assert (found["steps"], found["repeats"]) == (40, 3)
    steps.clear()
    bench.clock.wall(steps.append, lambda: None, 0, 20, 1, multiple=8)
    assert steps == [0, 8, 24]
    slow = bench.clock.wall(lambda n: time.sleep(0.06 * n), lambda: None, 0, 40, 1)
    assert slow["steps"] == 10
    assert slow["median_us"] > 5e4


def test_seconds_from_the_start_of_a_process(bench: SimpleNamespace, tmp_path: Path) -> None:
    startup = importlib.import_module("_gpu.startup")
    script = BENCHMARKS / "gpu.py"
    found = startup.first_step("gpulayers", "cpu", script, str(tmp_path))
    assert 0 < found["seconds"] < 300, found
    trained = startup.training("cpu", script, str(tmp_path), examples=128, epochs=1)
    assert 0 <= trained["accuracy"] <= 1, trained
    assert "error" in startup.import_seconds("no_such_module_at_all", script)
