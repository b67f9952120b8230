"""benchmarks/cpu.py: ratios, verdicts, numeric checks, and the two sides agreeing on each case."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers.errors import DataError, ParameterError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, importable as its own processes have them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cpu
        from _cpu import cases, duel, ours, report, subject, worker

        yield SimpleNamespace(
            cpu=cpu,
            cases=cases,
            duel=duel,
            ours=ours,
            report=report,
            subject=subject,
            worker=worker,
        )
    finally:
        sys.path.remove(str(BENCHMARKS))


ROUNDS = [
    {"torch": 4.0, "torch again": 4.0, "torch other": 3.0, "numpy": 2.0, "numpy plan": 1.0},
    {"torch": 8.0, "torch again": 10.0, "torch other": 6.0, "numpy": 4.0, "numpy plan": 2.0},
    {"torch": 4.0, "torch again": 5.0, "torch other": 9.0, "numpy": 1.0, "numpy plan": 3.0},
]
RATES = {"GEMM GFLOP/s": 100.0, "copy GB/s": 10.0}


def recorded(bench: SimpleNamespace, rounds: list[dict[str, float]] = ROUNDS) -> dict[str, Any]:
    least = {label: min(row[label] for row in rounds) for label in rounds[0]}
    bout = bench.duel.Bout(rounds, len(rounds), 2, 0.05, {}, {"numpy-ml": 400.0}, least)
    return bench.report.record(bench.cases.CASES["lenet"], bout, RATES)


def test_ratios_are_paired_and_against_the_fastest_peer(bench: SimpleNamespace) -> None:
    # torch other / numpy: 1.5, 1.5, 9; / plan: 3, 3, 3. torch / numpy: 2, 2, 4; / plan: 4, 4, 1.33
    numpy = recorded(bench)["engines"]["numpy"]
    assert numpy["ways"] == {"numpy": pytest.approx(1.5), "numpy plan": pytest.approx(3.0)}
    assert (numpy["ratio"], numpy["way"]) == (pytest.approx(3.0), "plan")
    assert numpy["numpy-ml"] == pytest.approx(200.0)  # 400 s over the plan's median 2 s
    assert numpy["ratio of fastest calls"] == pytest.approx(3.0)  # 3 over 1
    assert recorded(bench)["noise"] == pytest.approx(0.25)  # 1, 1.25, 1.25


def test_the_share_of_the_roofline_takes_the_tighter_bound(bench: SimpleNamespace) -> None:
    case = bench.cases.CASES["sgd"]
    flops, moved = bench.cases.work(case)
    assert (flops, moved) == (0.0, 4.0 * 5 * 2**20)
    rounds = [{"torch": 1.0, "numpy": 2e-3 * moved / 1e7}]
    bout = bench.duel.Bout(rounds, 1, 1, None, {}, {}, rounds[0])
    row = bench.report.record(case, bout, RATES)
    assert row["engines"]["numpy"]["share of roofline"] == pytest.approx(0.5)


def test_work_of_a_convolution(bench: SimpleNamespace) -> None:
    conv = bench.cases.CASES["conv3x3"]
    flops, moved = bench.cases.work(conv)
    assert flops == 3 * 2 * 32 * 32 * 32 * 64 * 9 * 32
    assert moved == 4 * 3 * (32 * 32 * 32 * 32 + 32 * 32 * 32 * 64 + 9 * 32 * 64)
    assert [bench.cases.CASES[n].out_hw for n in ("conv3x3-stride2", "conv3x3-dilation2")] == [
        16,
        32,
    ]


def test_geometric_mean_and_worst_case(bench: SimpleNamespace) -> None:
    cases = {n: {"engines": {"numpy": {"ratio": r}}} for n, r in (("a", 4.0), ("b", 0.25))}
    found = bench.report.summary(cases)
    assert found["numpy"]["geometric mean"] == pytest.approx(1.0)
    assert (found["numpy"]["worst"], found["numpy"]["worst case"]) == (0.25, "b")
    assert "compiled" not in found


def test_tables_say_what_is_met(bench: SimpleNamespace) -> None:
    row = recorded(bench)
    text = bench.report.ratio_table({"lenet": row})
    assert "3.00 (met: 1.4) [layers 1.50]" in text
    row["engines"]["numpy"]["ratio"] = 1.39
    assert "1.39 (NOT met: 1.4)" in bench.report.ratio_table({"lenet": row})
    result = {"cases": {"lenet": row}, "summary": bench.report.summary({"lenet": row})}
    assert "| LeNet step against numpy-ml | 200.00 (NOT met: 300) | - |" in (
        bench.report.reach_table(result)
    )


def test_noisy_rounds_are_dropped_if_enough_remain(bench: SimpleNamespace) -> None:
    rounds = [(0.5, {"a": 1.0}), (0.0, {"a": 2.0}), (0.05, {"a": 3.0}), (0.3, {"a": 4.0})]
    assert bench.duel.keep(rounds, 2) == ([{"a": 2.0}, {"a": 3.0}], 2)
    assert bench.duel.keep(rounds, 3) == ([{"a": 2.0}, {"a": 3.0}, {"a": 4.0}], 2)


@pytest.mark.parametrize("spinning, waits", [(0, 1), (12, 13), (1000, 100)])
def test_a_turn_ends_when_no_thread_runs_any_more(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, spinning: int, waits: int
) -> None:
    """Workers that spin after a call would slow down the next contestant, and look like others;
    one that never rests is not waited for longer than `AT_MOST`."""
    slept: list[float] = []
    clock = SimpleNamespace(
        perf_counter=lambda: sum(slept),
        process_time=lambda: 0.5 + 0.01 * min(len(slept), spinning),
        sleep=slept.append,
    )
    monkeypatch.setattr(bench.worker, "time", clock)
    answer = bench.worker.timed(bench.subject.Subject(lambda: None, dict), 2, 0)
    assert answer["seconds"] == 0.0  # what is waited is no part of the time
    assert len(slept) == pytest.approx(waits, abs=1)


# ------------------------------------------------------------------------------------------ --check


def planted(bench: SimpleNamespace, tmp_path: Path, old: float, new: float, name: str) -> int:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"cases": {"lenet": {"engines": {"numpy": {"ratio": old}}}}}))
    return bench.cpu.verdict({"cases": {name: {"engines": {"numpy": {"ratio": new}}}}}, path)


def test_a_slow_median_alone_is_a_busy_machine(bench: SimpleNamespace) -> None:
    fastest = "ratio of fastest calls"

    def fallen(median: float, best: float) -> list[str]:
        record = {"lenet": {"engines": {"numpy": {"ratio": 2.0, fastest: 2.0}}}}
        new = {"lenet": {"engines": {"numpy": {"ratio": median, fastest: best}}}}
        return bench.report.compare(new, record)[0]

    assert fallen(0.9, 1.1) == []
    assert fallen(1.1, 0.9) == []
    assert len(fallen(0.9, 0.9)) == 1


def test_a_ratio_below_half_of_the_record_fails(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planted(bench, tmp_path, 2.0, 1.01, "lenet") == 0
    assert planted(bench, tmp_path, 2.0, 0.99, "lenet") == 1
    assert "lenet (numpy): 2.00 -> 0.99" in capsys.readouterr().err


def test_a_check_that_compares_nothing_is_an_error(bench: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no case and engine in common"):
        planted(bench, tmp_path, 2.0, 2.0, "mlp")
    with pytest.raises(DataError, match="no record"):
        bench.cpu.verdict({"cases": {}}, tmp_path / "missing.json")


# --------------------------------------------------------------------------------- numeric checks


@pytest.mark.parametrize("fault", ["off", "nan", "missing", "shape"])
def test_a_wrong_result_is_noticed(bench: SimpleNamespace, fault: str) -> None:
    case = bench.cases.CASES["conv3x3"]
    gold = {"Y": np.linspace(-2, 2, 12).reshape(3, 4), "dX": np.ones(3)}
    found = {name: array.copy() for name, array in gold.items()}
    assert bench.duel.check(found, gold, case, "numpy") == 0.0
    if fault == "missing":
        del found["dX"]
    elif fault == "shape":
        found["dX"] = np.ones(4)
    else:
        found["Y"][1, 2] += 4 * case.tolerance if fault == "off" else np.nan
    with pytest.raises(bench.duel.CheckError, match=r"conv3x3: numpy"):
        bench.duel.check(found, gold, case, "numpy")


@pytest.mark.parametrize("wrong, code", [(0.0, 0), (0.5, 1)])
def test_a_wrong_result_fails_the_run(
    bench: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: float,
    code: int,
) -> None:
    """The two sides say what they computed; the second says something else."""

    class Fake:
        missing = None

        def __init__(self, entry: Any, threads: int) -> None:
            self.entry = entry

        def ask(self, **order: Any) -> dict[str, Any]:
            if "save" in order:
                np.savez(order["save"], Y=np.ones(3) + wrong * (self.entry.side == "ours"))
            if "rates" in order:
                return RATES
            return {"seconds": 1e-3, "least": 1e-3, "cpu": 0.0}

        def close(self) -> None: ...

    monkeypatch.setattr(bench.cpu, "Contestant", Fake)
    monkeypatch.setattr(bench.cpu.machine, "engines", lambda: (["numpy"], "numpy"))
    monkeypatch.setattr(bench.cpu.importlib.util, "find_spec", lambda name: object())
    assert bench.cpu.main(["--cases", "dense", "--rounds", "1", "--threads", "1"]) == code
    assert ("WRONG: dense: numpy differs" in capsys.readouterr().err) == bool(code)


def test_a_change_without_gradient_is_compared_with_the_others(bench: SimpleNamespace) -> None:
    case = bench.cases.CASES["vgg"]
    gold = {"change 0": np.ones(2), "change 1": np.full(2, 1e-9)}
    assert bench.duel.check({**gold, "change 1": -gold["change 1"]}, gold, case, "numpy") < 1e-5
    with pytest.raises(bench.duel.CheckError, match="change 1"):
        bench.duel.check({**gold, "change 1": np.full(2, 1e-4)}, gold, case, "numpy")


def test_an_unknown_case_is_named(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ParameterError, match=r"unknown case 'lenett'.*did you mean 'lenet'"):
        bench.cases.choose(["lenett"], short=False)
    with pytest.raises(ParameterError, match="no case named"):
        bench.cases.choose([""], short=False)
    assert bench.cpu.main(["--cases", "lenett", "--threads", "1"]) == 2
    assert "unknown case 'lenett'" in capsys.readouterr().err


def test_short_is_a_part_of_all_and_keeps_the_order(bench: SimpleNamespace) -> None:
    every, short = bench.cases.choose(None, False), bench.cases.choose(None, True)
    assert 5 <= len(short) < len(every)
    assert [case for case in every if case.short] == short
    assert [case.name for case in bench.cases.choose(["mlp", "lenet"], True)] == ["lenet", "mlp"]


def test_a_record_is_written_whole(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cpu.json"
    bench.cpu.write(path, {"cases": {}})
    assert json.loads(path.read_text()) == {"cases": {}}
    assert [file.name for file in path.parent.iterdir()] == ["cpu.json"]


def test_defaults_of_the_command_line(bench: SimpleNamespace) -> None:
    args: argparse.Namespace = bench.cpu.parse(["--save"])
    assert args.out == BENCHMARKS / "results" / "cpu.json"
    assert args.threads >= 1 and args.rounds == 7
    assert bench.cpu.parse(["--short"]).rounds == 3 and bench.cpu.parse(["--short"]).out is None


# ------------------------------------------------------------------------------- the sides agree


def small(case: Any) -> Any:
    """The case on two examples (or a few parameters)."""
    return dataclasses.replace(case, size={**case.size, "n": 999 if case.kind == "update" else 2})


def test_the_sides_agree_on_every_case(bench: SimpleNamespace) -> None:
    pytest.importorskip("torch")
    from _cpu import pytorch

    compared = 0
    for whole in bench.cases.CASES.values():
        case = small(whole)
        gold = pytorch.make(case).result()
        assert len(gold) >= 1
        for side, variant in ((bench.ours, ""), (bench.ours, "plan"), (pytorch, "other")):
            try:
                subject = side.make(case, variant)
            except bench.subject.UnsupportedError:
                continue
            bench.duel.check(subject.result(), gold, case, side.__name__)
            subject.run()
            compared += 1
    assert compared > len(bench.cases.CASES)


def test_every_case_runs_without_torch(bench: SimpleNamespace) -> None:
    for whole in bench.cases.CASES.values():
        case = small(whole)
        subject = bench.ours.make(case)
        assert all(np.isfinite(array).all() for array in subject.result().values())
        assert min(bench.cases.work(case)) >= 0 < max(bench.cases.work(case))


def test_what_does_not_exist_is_said(bench: SimpleNamespace) -> None:
    with pytest.raises(bench.subject.UnsupportedError):
        bench.ours.make(small(bench.cases.CASES["relu"]), "plan")
