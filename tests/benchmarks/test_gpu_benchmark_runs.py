"""The runs of benchmarks/gpu.py: processes that fail or are cut off, runs that go on from others.
No GPU is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks.conftest import BENCHMARKS, a_run

Entry = dict[str, Any]

# ------------------------------------------------------------------------------------- processes

SCRIPT = """
import json, subprocess, sys, time
print('RESULT {{"what": "first", "value": {{"median_us": 2.0}}}}', flush=True)
job = json.loads(sys.argv[2])
if job["end"] == "late":
    print("BEGUN slow", flush=True)
    time.sleep(60)
if job["end"] == "fault":
    raise RuntimeError("an illegal memory access was encountered")
sys.path.insert(0, {folder!r})
from _gpu import child
child.put("second", {{"median_us": 3.0}})
if job["end"] == "orphan":  # in a session of its own, with our output open
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], start_new_session=True)
"""


@pytest.mark.parametrize("end", ["well", "late", "fault", "orphan"])
def test_what_a_process_put_out_is_kept(end: str, bench: SimpleNamespace, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(BENCHMARKS)))
    begin = time.monotonic()
    found = bench.child.call({"end": end}, 2.0 if end == "late" else 60.0, script)
    assert time.monotonic() - begin < 18
    assert found["first"] == {"median_us": 2.0}
    assert ("second" in found) == (end in ("well", "orphan"))
    assert found.get("error", "").startswith("exit code 1" if end == "fault" else "")
    assert ("illegal memory access" in found.get("error", "")) == (end == "fault")
    assert ("error" in found) == (end == "fault")
    late = {"not measured": "stopped after 2 s"}
    assert found.get("slow") == (late if end == "late" else None)
    assert found.get("not measured") == (late["not measured"] if end == "late" else None)


def answers(
    monkeypatch: pytest.MonkeyPatch, bench: SimpleNamespace, answer: Callable[[Entry], Entry]
) -> list[Entry]:
    """Has jobs answered without processes; the jobs."""
    jobs: list[Entry] = []

    def call(job: Entry, *_: Any) -> Entry:
        jobs.append(job)
        return answer(job)

    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.run, "installed", lambda side: True)
    return jobs


def ways(jobs: list[Entry], batch: int = 64) -> list[str]:
    wanted = [job for job in jobs if "ways" in job and job["item"][1] == batch]
    return [way for job in wanted for way in job["ways"]]


def read(folder: Path) -> list[Entry]:
    return json.loads((folder / "gpu.json").read_text())["runs"]


LENET = "--parts", "lenet", "--sides", "ours,torch", "--budget", "100"


def test_a_run_writes_after_each_item_and_goes_on(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A referee that fails takes its item out; a process that dies takes its way out."""
    seen: list[int] = []

    def answer(job: Entry) -> Entry:
        seen.append(len(read(tmp_path)[-1].get("steps", ())))
        if job["kind"] == "referee":
            return {"error": "no agreement"} if job["item"][1] == 128 else {"facts": {}}
        (way,) = job["ways"]
        if way in ("layers", "torch graph"):
            return {"not measured": "stopped after 3 s"}
        if job["kind"] == "torch":
            again = {"torch eager again": {"median_us": 25.0}} if way == "torch eager" else {}
            return {way: {"median_us": 30.0}} | again  # for the noise, no peer
        if way == "mega":
            return {"error": "exit code -11: "}
        again = {f"{way} again": {"median_us": 11.0}} if way in job["twice"] else {}
        return {way: {"median_us": 10.0}} | again

    jobs = answers(monkeypatch, bench, answer)
    run = a_run(bench, tmp_path, *LENET)
    run.steps(list(bench.nets.PARTS["lenet"]))
    run.show()
    steps = read(tmp_path)[-1]["steps"]
    assert steps["lenet b128 fp32"] == {"referee": {"error": "no agreement"}}
    assert steps["lenet b64 fp32"]["mega"] == {"error": "exit code -11: "}
    assert steps["lenet b64 fp32"]["layers"] == {"not measured": "stopped after 3 s"}
    assert seen[:4] == [0, 1, 1, 2], "referee and turn of the first item, then of the second"
    assert ways(jobs)[:3] == ["fused", "resident", "torch eager"]
    assert all(len(job["ways"]) == 1 for job in jobs if "ways" in job), "each its own peak"
    told = capsys.readouterr().out
    table = told[told.index("torch eager / ours") :].splitlines()
    b64 = next(line for line in table if line.startswith("lenet b64"))
    assert b64.split()[3:] == [
        *("10.0", "(fused)", "3.00", "(NOT", "met:", "10)", "3.00", "(met:", "3)"),
        *("torch", "eager", "17", "%", "1", "2", "1"),
    ]
    assert "each ratio: two times from the same run" in told
    wrong = [d for d in read(tmp_path)[-1]["decisions"] if d["therefore"].startswith("mend")]
    names = "lenet b64 fp32, mega", "lenet b128 fp32, referee", "lenet b1024 fp32, mega"
    assert tuple(d["what"] for d in wrong) == names


def test_the_whole_command(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a device, where the processes answer at once."""
    found = {"micro": {"copy": {"TB/s": 4.0}, "error": "exit code 1: "}, "referee": {"facts": {}}}

    def call(job: Any, *rest: Any) -> Any:
        times = {way: {"median_us": 7.0} for way in job.get("ways", ())}
        told = dict(found.get(job["kind"], times))
        if job["kind"] == "micro":
            rest[-2]("copy", told["copy"])  # who hears of it
            found["micro"].pop("error", None)  # another process goes on
        return told

    monkeypatch.setattr(bench.gpu, "gpu_error", lambda: None)
    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.startup, "items", lambda *_: [("import x", lambda left: 1 / 0)])
    device = {"name": "NVIDIA H200", "driver_version": "570.1"}
    clocks = iter(range(1980, 0, -15))
    monkeypatch.setattr(bench.machine, "device", lambda: device)
    monkeypatch.setattr(bench.machine, "clock", lambda: {"SM MHz": next(clocks)})
    parts = ["--parts", "micro,vgg,startup", "--batches", "512", "--precisions", "tf32"]
    assert bench.gpu.main([*parts, "--out", str(tmp_path)]) == 0
    (run,) = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["runs"]
    assert run["device"] == device
    assert run["source"] == bench.machine.source()
    assert run["settings"]["steps"] == 200
    after = [clock["after"] for clock in run["clocks"]]
    assert after == ["start", "micro", "steps", "startup"]
    assert run["micro"]["copy"]["measured"] == {"TB/s": 4.0}
    assert list(run["steps"]) == ["vgg b512 tf32"]
    assert "ZeroDivisionError" in run["startup"]["import x"]["measured"]["error"]
    last = capsys.readouterr().out.splitlines()[-6:]
    assert last[0].startswith("step ")
    assert last[1].startswith("vgg b512 tf32")
    assert "driver 570.1" in last[4]
    assert "SM clock 1980, 1965, 1950, 1935 MHz" in last[4]
    assert last[5].startswith("written to")


def test_a_budget_that_is_used_up(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(bench, tmp_path, *LENET, "--budget", "1")
    run.steps(list(bench.nets.PARTS["lenet"]))
    run.startup()
    run.show()
    told = capsys.readouterr().out
    assert "left out for want of time: lenet b64 fp32: fused; lenet b128 fp32: fused" in told
    assert "import gpulayers" in told


def test_every_process_ends_with_the_budget(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def call(job: Any, seconds: float, *_: Any) -> Entry:
        given.append(seconds)
        return {"not measured": "stopped"}

    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.run, "installed", lambda side: True)
    monkeypatch.setattr(bench.startup, "_seconds", lambda *_, seconds=0.0: call(0, seconds))
    monkeypatch.setattr(bench.startup, "first_step", lambda *a: call(0, a[-1]))
    monkeypatch.setattr(bench.sizes, "installed", dict)
    run = a_run(bench, tmp_path, *LENET, "--budget", "20")
    run.steps(list(bench.nets.PARTS["lenet"]))
    run.device_part("kernels")
    run.budget = bench.clock.Budget(15)
    run.startup()
    assert len(given) > 10
    assert max(given) <= 15
    assert run.call({}, 3.0) == {"error": "no result within 3 s"}, "of its own limit: a failure"


def test_what_is_cut_off_has_not_failed(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is measured by the next run, before what failed."""

    def call(job: Entry, seconds: float, script: Path, env: Any, heard: Any, _: float) -> Entry:
        run.budget = bench.clock.Budget(0)
        jobs.append(job)
        if job["kind"] == "formulas":
            return {"x": {"apart": 0.0}}
        heard("a", {"ms": 1.0})
        heard("b", {"error": "off by 1"})
        heard("c", {"not measured": "stopped after 5 s"})
        return {"not measured": "stopped after 5 s"}

    jobs: list[Entry] = []
    monkeypatch.setattr(bench.child, "call", call)
    monkeypatch.setattr(bench.run, "installed", lambda side: False)
    run = a_run(bench, tmp_path)
    run.device_part("kernels")
    run.show()
    assert run.left_out == ["the rest of kernels"]
    assert [d["what"] for d in read(tmp_path)[-1]["decisions"]] == ["b"]
    run = a_run(bench, tmp_path)
    run.device_part("kernels")
    assert (jobs[0]["skip"], jobs[1]["skip"]) == ([], ["a"])
    assert jobs[1]["last"] == ["b"]
    for words, facts in ((("--anew",), {}), ((), {"source": "changed"})):
        run = a_run(bench, tmp_path, *words, facts=facts)
        run.device_part("kernels")
        assert jobs[-1]["skip"] == []
    run = a_run(bench, tmp_path)
    run.device_part("micro")
    run.budget = bench.clock.Budget(100)
    run.device_part("micro")
    assert jobs[-1]["skip"] == [], "its numbers are held against one another"


# -------------------------------------------------------------------------- a run that is repeated


def test_a_repeated_run_takes_what_is_missing(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our fastest way once more, so that there is a ratio; what failed comes last."""
    slow: set[str] = {"torch compiled graph", "torch max-autotune"}

    def answer(job: Entry) -> Entry:
        if job["kind"] == "referee":
            return {"facts": {}}
        (way,) = job["ways"]
        if way in slow:
            return {"not measured": "stopped after 3 s"}
        if way == "torch graph":
            return {way: {"error": "it failed"}}
        return {way: {"median_us": {"resident": 5.0, "mega": 9.0}.get(way, 10.0)}}

    jobs = answers(monkeypatch, bench, answer)
    item = bench.nets.PARTS["lenet"][:1]
    a_run(bench, tmp_path, *LENET).steps(list(item))
    first = ways(jobs)
    assert len(first) == 9
    jobs.clear()
    slow.remove("torch max-autotune")
    a_run(bench, tmp_path, *LENET).steps(list(item))
    assert ways(jobs) == ["resident", "torch compiled graph", "torch max-autotune", "torch graph"]
    entries = [(n, run["steps"]["lenet b64 fp32"]) for n, run in enumerate(read(tmp_path), 1)]
    found = bench.tables.ratios(entries[::-1])
    assert found["against eager"] == 2.0
    assert (found["ours"], found["runs"]) == ("resident", [1, 2])
    slow.clear()
    jobs.clear()
    a_run(bench, tmp_path, *LENET).steps(list(item))
    assert ways(jobs) == ["resident", "torch compiled graph", "torch graph"]
    jobs.clear()
    a_run(bench, tmp_path, *LENET, "--anew").steps(list(item))
    assert ways(jobs) == first


def test_what_is_missing_of_ours_is_held_against_peers(bench: SimpleNamespace) -> None:
    item = bench.nets.PARTS["lenet"][0]
    times = {"fused": 5.0, "torch eager": 50.0, "torch graph": 9.0, "torch max-autotune": 8.0}
    entry = {way: {"median_us": time} for way, time in times.items()}
    entry |= {"resident": {"not measured": "x"}, "mega": {"refused": "x"}, "layers": {"error": "x"}}
    turns = bench.order.turns([item], {item.name: entry}, ["ours", "torch"])
    found = [turn.way for turn in turns]
    anchors = ["fused", "torch eager", "torch max-autotune"]
    missing = ["resident", "torch reduce-overhead", "torch compiled graph", "layers"]
    assert found == anchors + missing
    done = {way: {"median_us": 1.0} for _, way, _ in bench.order.TURNS}
    assert not list(bench.order.turns([item], {item.name: done}, ["ours", "torch", "jax"]))


def test_every_way_has_its_turn_and_each_side_a_second_timing(bench: SimpleNamespace) -> None:
    ways = [way for _, way, _ in bench.order.TURNS]
    assert set(bench.ours.WAYS) <= set(ways)
    assert len(set(ways)) == len(ways) == 11
    sides = {side for side, way, _ in bench.order.TURNS if way in bench.order.TWICE}
    assert sides == {"ours", "torch", "jax"}
    assert {"fused", "resident", "mega"} <= set(bench.order.TWICE) <= set(ways)
