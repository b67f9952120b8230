"""The parts of benchmarks/gpu.py that measure the device, item by item, on the stand-in, and what
follows from the numbers."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.conftest import a_run
from tests.conftest import Backend
from tests.support import fake_cupy


@pytest.fixture
def with_cublas(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there, to be timed."""
    monkeypatch.setattr(fake_cupy.state, "lacks_cublas", lambda: False)


def test_a_lost_device_costs_one_item(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends or hangs at an item; another one goes on behind it."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import json, sys, time
skip = json.loads(sys.argv[2])["skip"]
for name in ("a", "b", "c", "d"):
    if name in skip:
        continue
    print("BEGUN " + name, flush=True)
    if name == "b":
        sys.exit("an illegal memory access was encountered")
    if name == "c":
        time.sleep(60)
    print("RESULT " + json.dumps({"what": name, "value": {"us": 1.0}}), flush=True)
"""
    )
    monkeypatch.setattr(bench.run, "_PATIENCE", 2.0)
    run = a_run(bench, tmp_path, script=script)
    run.device_part("micro")
    found = json.loads((tmp_path / "gpu.json").read_text())["runs"][-1]["micro"]
    told = {name: entry["measured"] for name, entry in found.items()}
    assert list(told) == ["a", "b", "c", "d"]
    assert told["a"] == told["d"] == {"us": 1.0}
    assert told["b"]["error"].endswith("an illegal memory access was encountered")
    assert told["c"] == {"error": "no word for 2 s"}


def test_decisions_follow_from_numbers(bench: SimpleNamespace) -> None:
    assert bench.decide.decisions([]) == bench.decide.decisions([{}]) == []

    def told(**numbers: float) -> dict[str, str]:
        us, rate = numbers.get("us", 0.5), numbers.get("rate", 700.0)
        values = {
            "micro": {
                "graph node, 132 blocks": {"measured": {"us": us}},
                "barrier of all blocks": {"measured": {"us": 2 * us}},
                "tensor cores, bf16": {"measured": {"TFLOP/s": rate}},
                "product 4096, bf16": {"measured": {"TFLOP/s": 350.0}},
                "ldmatrix": {"measured": {"error": "lost"}},
            },
            "ways": {
                "p": {"measured": {"rule": "a", "best": "b", "us": {"a": us, "b": 0.5}}},
                "p bf16, warpgroups too": {
                    "measured": {
                        "rule": "a",
                        "best": "a",
                        "us": {"a": us, "a_warpgroup": 0.5, "a_warpgroup_large": "spills"},
                    }
                },
                "q bf16, warpgroups too": {"measured": {"error": "lost"}},
            },
            "steps": {"lenet": {"fused": {"median_us": 9.0}, "mega": {"median_us": 10 * us}}},
        }
        return {d.what: d.therefore for d in bench.decide.decisions([values])}

    fast, slow = told(), told(us=2.0, rate=400.0)
    lost = {"ldmatrix", "q bf16, warpgroups too"}
    for what in lost:
        assert fast[what] == slow[what] == "mend this before all else"
    changed = {what for what in fast if fast[what] != slow[what]}
    assert changed == set(fast) - lost
    assert slow["mma.sync in bf16"].startswith("warpgroups")
    assert slow["products by warps over those by warpgroups"].startswith("try")
    assert fast["products by warps over those by warpgroups"].startswith("leave")
    assert fast["product of the instruction's speed, bf16"].startswith("the pipeline")
    assert slow["rule against the fastest candidate"].startswith("ship")
    assert (fast["lenet"], slow["lenet"]) == ("Trainer takes mega", "Trainer takes fused")


@pytest.fixture
def quick(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Small arrays, and a clock that says half a millisecond."""
    half = bench.clock.Times(0.5, 0.4, 0.6)
    clock = lambda xp, run, **_: (run(), half)[1]  # noqa: E731
    monkeypatch.setattr(bench.kernels, "alone", lambda xp, runs: [run() for run in runs] and half)
    monkeypatch.setattr(bench.micro, "milliseconds", clock)
    small = {"_SIZE": 4, "_CHANNELS": 4, "_SIDE": 8, "_STEPS": 2, "_INPUTS": 3}
    for name, value in small.items():
        monkeypatch.setattr(bench.kernels, name, value)
    for name, value in {
        **{"_PRODUCT": 64, "_COPY": 1, "_CHAIN": 2, "_ROUNDS": 2},
        **{"_LEAST_READ": 8, "_MOST_READ": 1 << 12, "_READ_ROUNDS": 3},
    }.items():
        monkeypatch.setattr(bench.micro, name, value)
    return bench


@pytest.mark.usefixtures("with_cublas")
@pytest.mark.emulated
def test_every_kernel_is_checked_and_timed(quick: SimpleNamespace, emulated: Backend) -> None:
    cases = list(quick.kernels.cases(emulated.xp, 1, "fp32"))
    assert len({case.name for case in cases}) == len(cases) == 24
    for case in cases:
        if "512x32" in case.name:
            continue
        found = quick.kernels.measure_case(emulated.xp, case, 1e9)
        assert math.isfinite(found["share of copy"])
        assert found["share of copy"] > 0
        assert 0 <= found["error"] < 1e-5
        assert found["ms, least"] <= found["ms"] <= found["ms, most"]
        assert ("TFLOP/s" in found) == case.name.startswith(("product", "conv2d", "lstm"))
        assert ("cublas ms" in found) == case.name.startswith("product")
    one = emulated.xp.ones(1)
    wrong = lambda e, _: quick.kernels.Work((1,), 8, lambda: one * len(type(e).__name__))  # noqa: E731
    with pytest.raises(ArithmeticError, match="off by"):
        quick.kernels.measure_case(emulated.xp, quick.kernels.Case("x", "fp32", wrong), 1e9)


@pytest.mark.usefixtures("with_cublas")
@pytest.mark.emulated
@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_kernels_are_within_their_precision(
    precision: str, quick: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are those of rounding: above the next finer precision's bound, or no bound is needed;
    below a half of its own."""
    pytest.importorskip("ml_dtypes")
    worst = 0.0
    for case in quick.kernels.cases(emulated.xp, 1, precision):
        if "512x32" not in case.name and not case.name.startswith("lstm"):
            worst = max(worst, quick.kernels.measure_case(emulated.xp, case, 1e9)["error"])
    assert quick.correct.TOLERANCE["fp32"][0] < worst < quick.correct.TOLERANCE[precision][0] / 2


@pytest.mark.emulated
def test_a_wrong_kernel_is_not_timed(quick: SimpleNamespace, emulated: Backend) -> None:
    """One that leaves out a number, is off by a little, does nothing, or is too short."""
    xp, reference = emulated.xp, quick.kernels.Reference

    def case(own: Callable[[Any], Any]) -> Any:
        def make(e: Any, numbers: Any) -> Any:
            x = numbers(64)
            assert x.dtype == ("float64" if type(e) is reference else "float32")
            run = (lambda: x + 1) if type(e) is reference else lambda: own(x)
            return quick.kernels.Work((64,), 256, run)

        return quick.kernels.Case("sum fp32", "fp32", make)

    def left_out(x: Any) -> Any:
        found = xp.empty_like(x)
        found[1:] = x[1:] + 1
        return found

    def off(by: float) -> Callable[[Any], Any]:
        return lambda x: (x + 1) * (1 + by)

    quick.kernels.measure_case(xp, case(off(1e-6)), 1e9)
    for own in (left_out, off(2e-5), lambda x: x, lambda x: (x + 1)[:-1]):
        with pytest.raises(ArithmeticError, match=r"is off by|of shape"):
            quick.kernels.measure_case(xp, case(own), 1e9)


@pytest.mark.parametrize("fault", ["", "lstm_forward", "col2im", "adam_update"])
def test_the_formulas_agree_with_pytorch(
    fault: str, quick: SimpleNamespace, numpy_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the kernels are held against; and one that is off does not."""
    pytest.importorskip("torch")
    formulas = importlib.import_module("_gpu.formulas")
    found: dict[str, float] = {}
    if fault:
        right = getattr(formulas.Reference, fault)

        def off(self: Any, first: Any, *rest: Any) -> Any:
            return right(self, first * (1 + 1e-6), *rest)

        monkeypatch.setattr(formulas.Reference, fault, off)
    for name, compare in formulas.items():
        if fault and name.startswith(fault):
            with pytest.raises(ArithmeticError, match=r"off by .* from PyTorch's"):
                compare()
        elif not fault and "512x32" not in name:
            found[name] = compare()["apart"]
    assert len(found) == (0 if fault else 24 - 2 - 1), "less two large ones, and random numbers"


def test_results_lie_where_everything_was_nan(
    bench: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    pointer = importlib.import_module("tests.support.fake_cupy.memory").MemoryPointer
    fill = pointer.memset_async

    def noted(self: Any, value: int, size: int, stream: Any = None) -> None:
        taken.append((value, size))
        fill(self, value, size, stream)

    monkeypatch.setattr(pointer, "memset_async", noted)
    poison = bench.correct.Poison(emulated.xp)
    found = poison(lambda: emulated.xp.zeros(3, "float16"))
    assert taken == [(0xFF, 6)]
    assert emulated.asnumpy(found).tolist() == [0, 0, 0]
    emulated.xp.zeros(3, "float16")
    assert len(taken) == 1
    poison.free()


@pytest.mark.usefixtures("with_cublas")
@pytest.mark.emulated
def test_libraries_are_timed_where_they_are_right(
    quick: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(c for c in quick.kernels.cases(emulated.xp, 1, "fp32") if "nn" in c.name)
    right = quick.kernels.measure_case(emulated.xp, case, 1e9)
    assert right["cublas ms"] == 0.5
    xp = importlib.import_module("tests.support.fake_cupy").cupy
    matmul = xp.matmul
    monkeypatch.setattr(quick.kernels, "Reference", _with_own_product(quick.kernels.Reference))
    monkeypatch.setattr(xp, "matmul", lambda *a, **k: 2 * matmul(*a, **k))
    wrong = quick.kernels.measure_case(emulated.xp, case, 1e9)
    assert wrong["cublas ms"].startswith("ArithmeticError: product 8 nn fp32 is off by 1")
    (told,) = quick.decide.decisions([{"kernels": {case.name: {"measured": wrong}}}])
    assert told.therefore == "mend this before all else"


def _with_own_product(reference: type) -> type:
    """The formulas with a product that is not the array library's."""

    class Own(reference):  # type: ignore[misc]
        def matmul(self, a: Any, b: Any, a_t: bool = False, b_t: bool = False) -> Any:
            a, b = (x.T if turned else x for x, turned in ((a, a_t), (b, b_t)))
            return (a[:, :, None] * b[None]).sum(axis=1)

    return Own


@pytest.mark.usefixtures("with_cublas")
@pytest.mark.emulated
def test_kernels_are_timed_without_the_host(
    bench: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one graph, each set of arrays in its turn; what refuses to be captured, behind others."""
    monkeypatch.setattr(bench.clock, "_BYTES", 1 << 10)
    events = fake_cupy.count
    xp, calls = emulated.xp, list[int]()
    y, a = xp.zeros(4, "float32"), xp.ones((4, 4), "float32")

    def by_kernel(i: int) -> None:
        calls.append(i)
        xp.add(y, 1, out=y)

    runs = [lambda i=i: by_kernel(i) for i in range(3)]
    with events() as seen:
        assert bench.clock.alone(xp, runs, launches=7).least > 0
    assert calls == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert seen["graph_launch"] == 3 + 7
    assert emulated.asnumpy(y).tolist() == [3 + 7 * 10] * 4
    with events() as seen:
        assert bench.clock.alone(xp, [lambda: xp.matmul(a, a)], launches=7).least > 0
    assert seen["graph_launch"] == 7, "of copies, before each measurement"


@pytest.mark.emulated
def test_the_device_is_measured(quick: SimpleNamespace, emulated: Backend) -> None:
    emulated_options = importlib.import_module("tests.support.fake_cupy").state.launch_options
    measured = {}
    for name, run in quick.micro.items(emulated.xp, 1):
        if "4" in name.partition("node")[2] or name.endswith(("tf32", "bf16")):
            continue
        if "barrier" in name:  # fewer blocks than a device has, which wait for one another
            measured[name] = quick.micro._barrier(emulated.xp, 2)
            continue
        if "cache" in name or "multiply" in name:  # what all blocks have done is checked
            by = quick.micro._cache if "cache" in name else quick.micro._multiply_add
            measured[name] = by(emulated.xp, 2)
            continue
        emulated_options["only_blocks"] = 1
        try:
            measured[name] = run()
        finally:
            emulated_options.clear()
    assert all(np.isfinite(v) for found in measured.values() for v in found.values()), measured
    assert {"barrier of all blocks", "ldmatrix", "tensor cores, fp16"} <= set(measured)
    assert {"second-level cache", "multiply-add, fp32", "copy"} <= set(measured)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("source", "line", "fault"),
    [
        ("_READS", "read.z + read.w", "read.z"),
        ("_READS", "k < rounds", "k < rounds - 1"),
        ("_FMA", "factor, term)", "factor, factor)"),
        ("_FMA", "i < rounds", "i < rounds / 2"),
    ],
)
def test_what_measures_the_device_is_checked(
    source: str,
    line: str,
    fault: str,
    quick: SimpleNamespace,
    emulated: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = quick.micro._cache if source == "_READS" else quick.micro._multiply_add
    measure(emulated.xp, 2)
    code = getattr(quick.micro, source)
    assert code.count(line) == 1
    monkeypatch.setattr(quick.micro, source, code.replace(line, fault))
    with pytest.raises(ArithmeticError, match=r"what was read|the sums"):
        measure(emulated.xp, 2)


def test_a_copy_that_differs_is_no_speed(
    quick: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick.micro.copy_speed(emulated.xp, 1) > 0
    monkeypatch.setattr(
        quick.micro, "milliseconds", lambda *_, **__: quick.clock.Times(1.0, 1.0, 1.0)
    )
    with pytest.raises(ArithmeticError, match="the copy differs"):
        quick.micro.copy_speed(emulated.xp, 1)


@pytest.mark.emulated
def test_the_ways_of_a_product_are_told(
    quick: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = importlib.import_module("gpulayers.cuda.tune_measure")
    times = iter(range(9, 0, -1))
    monkeypatch.setattr(
        measure, "_times", lambda key, work, inputs, found: {c: float(next(times)) for c in found}
    )
    monkeypatch.setattr(quick.ways, "_DENSE", (256, 3, 5))
    before = os.environ["GPULAYERS_TUNE_DIR"]
    items = dict(quick.ways.items(emulated.xp, 1))
    assert len(items) == 5 * 4 + 5 * 2 + len(list(quick.pairs.items(emulated.xp)))
    found = items["dense_backward fp32"]()
    assert os.environ["GPULAYERS_TUNE_DIR"] == before
    assert found["shape"] == [256, 3, 5]
    assert found["us"][found["best"]] <= found["us"][found["rule"]]
    monkeypatch.setattr(quick.ways, "_DENSE", (64, 8, 8))
    for ending, tried in (("", False), (", warpgroups too", True)):
        times = iter(range(99, 0, -1))
        found = items[f"dense_backward fp16{ending}"]()
        assert any("warpgroup" in way for way in found["us"]) == tried
    assert "GPULAYERS_WARPGROUPS" not in os.environ
