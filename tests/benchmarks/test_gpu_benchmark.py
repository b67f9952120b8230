"""benchmarks/gpu.py without a GPU: all sides take the same steps, faults end nothing."""

from __future__ import annotations

import importlib
import importlib.util
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
    results, curves = [], list[list[float]]()
    for way in ("layers", "fused", "resident"):
        subject = tiny.ours.Ours(item, way)
        results.append(subject.checked())
        curves.append(subject.losses(7))  # across the end of the eight batches
        subject.wait()
    start = tiny.nets.start(tiny.nets.NETS["dense"])
    for found in results[1:]:
        assert tiny.referee.error(found, results[0], start) < 1e-4
    assert len(curves[0]) == 7
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)
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
    assert lines["vgg b128 tf32"][5] == "20", "not that of float32"
    assert "not counted" in told.split("vgg b512 bf16")[1].splitlines()[0]
    assert lines["vgg b512 bf16"][-1] != lines["vgg b512 tf32"][-1]
    assert not list(tmp_path.iterdir())


def test_words_that_are_unknown(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.gpu.main(["--parts", "lenet,vgh"])
    assert "unknown 'vgh'" in capsys.readouterr().err


def test_every_goal_belongs_to_a_step(bench: SimpleNamespace) -> None:
    names = {item.name for part in bench.nets.PARTS.values() for item in part}
    assert set(bench.nets.REACH) <= names
    recurrent = {
        f"{kind}{h} b{n} tf32" for kind in ("rnn", "lstm") for h in (128, 512) for n in (32, 256)
    }
    assert recurrent <= names


# ------------------------------------------------------------------------------ a way's process


def works(bench: SimpleNamespace, folder: Path, capsys: Any, **more: Any) -> dict[str, Any]:
    """What a process puts out for the net "dense"."""
    item = bench.nets.Item("dense", 3, "fp32")
    bench.referee.write(folder / "r.npz", bench.referee.numpy_steps(item))
    job = {
        "kind": "ours",
        "item": ["dense", 3, "fp32"],
        "ways": ["layers"],
        "twice": ["layers"],
        "device": "cpu",
        "file": str(folder / "r.npz"),
        **{"warm_up": 1, "steps": 2, "repeats": 3, "curve": 40},
        **more,
    }
    bench.child.work(job)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
    return {e["what"]: e["value"] for e in (json.loads(line[7:]) for line in lines)}


def test_a_way_that_fails_leaves_the_others_their_turn(
    tiny: SimpleNamespace,
    numpy_backend: Backend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["resident", "layers"]  # NumPy has no resident data
    found = works(tiny, tmp_path, capsys, ways=both, twice=both)
    assert list(found) == ["resident", "layers", "layers again"]
    assert "error" in found["resident"]
    assert found["layers"]["steps"] == 2
    assert 0 <= found["layers"]["off by"] < 1e-3
    assert found["layers"]["min_us"] <= found["layers"]["median_us"] <= found["layers"]["max_us"]
    assert "peak bytes" in found["layers"]
    assert "peak bytes" not in found["layers again"], "it would be that of both"


def test_a_second_timing_that_fails_keeps_the_first(
    tiny: SimpleNamespace,
    numpy_backend: Backend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([{"median_us": 1.0}])
    monkeypatch.setattr(tiny.child, "wall", lambda *_, **__: next(times))
    found = works(tiny, tmp_path, capsys)
    assert found["layers"]["median_us"] == 1.0
    assert "StopIteration" in found["layers again"]["error"]


def test_what_a_network_is_not_for_is_no_failure(tiny: SimpleNamespace) -> None:
    errors = importlib.import_module("gpulayers.errors")

    def tried(error: Exception) -> dict[str, Any]:
        def run() -> dict[str, Any]:
            raise error

        return tiny.child._tried(run)

    words = 'VGG.compile: engine "mega" cannot have conv'
    refused = tried(errors.ParameterError(words))
    assert refused["refused"].startswith(f"ParameterError: {words}")
    assert tiny.record.state(refused) == "measured", "it is not tried once more"
    for error in (errors.ParameterError("something else"), RuntimeError(words)):
        assert tiny.record.state(tried(error)) == "failed"


@pytest.mark.parametrize("name", ["images", "lstm"])
def test_losses_of_both_sides_stay_together(
    name: str, tiny: SimpleNamespace, numpy_backend: Backend
) -> None:
    """And losses that are a twentieth larger do not."""
    pytest.importorskip("torch")
    torch_side = importlib.import_module("_gpu.torch_side")
    item = tiny.nets.Item(name, 3, "fp32")
    sides = [
        *(tiny.ours.Ours(item, "layers"), tiny.ours.Ours(item, "fused")),
        torch_side.Torch(item, "torch eager", "cpu"),
    ]
    curves = []
    for subject in sides:
        subject.checked()
        curves.append(tiny.child.curve(subject.losses(60)))
    assert [len(curve) for curve in curves] == [3, 3, 3]
    assert max(tiny.tables.apart(curve, curves[2]) for curve in curves[:2]) < 1e-3
    assert curves[2][-1] < curves[2][0], "it learns"
    still = [1.05 * loss for loss in curves[2]]
    assert tiny.tables.apart(still, curves[2]) > tiny.tables.CURVES["fp32"]
    assert tiny.tables.apart([math.nan, *still[1:]], curves[2]) == math.inf


def test_the_table_of_losses(bench: SimpleNamespace) -> None:
    """What PyTorch's own losses do for the inputs' rounding is allowed three times."""
    entry = {
        "torch eager": {"curve": [2.0, 1.0], "shaken curves": [[2.0, 1.02], [2.0, 0.96]]},
        "fused": {"curve": [2.0, 1.13]},
        "mega": {"curve": [2.0, 1.15]},
    }
    lines = bench.tables.curve_table([{"steps": {"lenet b64 fp32": entry}}]).splitlines()
    assert [line.split()[-2:] for line in lines[1:]] == [["agree", "1"], ["APART", "1"]]
    del entry["torch eager"]["shaken curves"]
    table = bench.tables.curve_table([{"steps": {"lenet b64 fp32": entry}}])
    assert table.count("APART") == 2
    assert bench.tables.curve_table([{"steps": {"lenet b64 fp32": {}}}]) == ""


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
    for side in ("gpulayers", "torch"):
        if side == "gpulayers" or importlib.util.find_spec(side):
            found = startup.first_step(side, "cpu", script, str(tmp_path))
            assert 0 < found["seconds"] < 300, found
    trained = startup.training("cpu", script, str(tmp_path), examples=128, epochs=1)
    assert 0 <= trained["accuracy"] <= 1, trained
    assert "error" in startup.import_seconds("no_such_module_at_all", script)


def test_processes_of_the_start_end_with_the_budget(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off is not measured; what takes longer than anything may has failed. What such a
    process has started ends too."""
    file = tmp_path / "still there"
    sleep = f"import time; time.sleep(4); open({str(file)!r}, 'w'); time.sleep(50)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {sleep!r}])"
    begin = time.monotonic()
    assert "longer than 1 s" in bench.startup._seconds(code, seconds=1.0)["not measured"]
    monkeypatch.setattr(bench.startup, "_MOST", 1.0)
    assert "longer than 1 s" in bench.startup._seconds(code, seconds=9.0)["error"]
    assert time.monotonic() - begin < 30
    time.sleep(max(0.0, begin + 6 - time.monotonic()))
    assert not file.exists()


def test_caches_of_all_sides_lie_in_the_folder(bench: SimpleNamespace, tmp_path: Path) -> None:
    """JAX keeps nothing unless it is told where, and short compilations not even then."""
    code = "import os\nnames = [k for k in os.environ if k.startswith('JAX_')]\n"
    code += "print('ACCURACY', len([k for k in names if os.environ[k]]))\nprint('SECONDS 0')"
    assert bench.startup._seconds(code, str(tmp_path))["accuracy"] >= 3
    found = bench.startup.caches("F")
    folders = {k for k, v in found.items() if v.startswith("F/")}
    assert {"CUPY_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR", "CUDA_CACHE_PATH"} <= folders
    assert found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert found["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] == "-1"


def test_full_mnist_is_taken_where_it_is_and_named(bench: SimpleNamespace, tmp_path: Path) -> None:
    near = tmp_path / "checkout"
    near.mkdir()
    assert bench.startup.find_mnist(None, near) is None
    with pytest.raises(FileNotFoundError, match="train-images"):
        bench.startup.find_mnist(near, near)
    folder = tmp_path / "shared" / "data" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").touch()
    assert bench.startup.find_mnist(None, near) == folder
    names = [
        [name for name, _ in bench.startup.items("cpu", BENCHMARKS / "gpu.py", place)]
        for place in (folder, None)
    ]
    assert "training on full MNIST, warm cache" in names[0]
    assert [name for name in names[1] if "not full MNIST" in name]
