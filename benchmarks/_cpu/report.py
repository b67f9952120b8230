"""From times to ratios, tables and verdicts."""

from __future__ import annotations

import math
import statistics
from typing import Any

from _cpu.cases import CASES, Case, work
from _cpu.duel import Bout

Record = dict[str, Any]
ENGINES = ("numpy", "compiled")
PEERS = ("torch", "torch other")
GEOMETRIC_MEAN, WORST = (0.9, 1.8), (0.3, 1.0)
PEER_STEP = (300.0, 500.0)  # LeNet's step against numpy-ml
FOOTPRINT = {"import": 10.0, "first step": 10.0, "memory": 5.0}


def ratio(bout: Bout, peers: list[str], label: str) -> tuple[float, float, float]:
    """Return the median ratio of the fastest peer's time to that of `label`, with its quartiles."""
    best = min((bout.ratios(peer, label) for peer in peers), key=statistics.median)
    middle = statistics.median(best)
    if len(best) < 2:
        return middle, middle, middle
    low, _, high = statistics.quantiles(best, n=4, method="inclusive")
    return middle, low, high


def record(case: Case, bout: Bout, rates: dict[str, float]) -> Record:
    """Return what is written down for one case."""
    labels = list(bout.rounds[0])
    peers = [label for label in PEERS if label in labels]
    engines: Record = {}
    flops, moved = work(case)
    least = max(flops / rates["GEMM GFLOP/s"], moved / rates["copy GB/s"]) / 1e9
    for engine in ENGINES:
        ways = {label: ratio(bout, peers, label) for label in labels if label.split()[0] == engine}
        if not ways:
            continue
        best = max(ways, key=lambda label: ways[label][0])
        engines[engine] = {
            "ratio": ways[best][0],
            "quartiles": ways[best][1:],
            "ratio of fastest calls": min(bout.least[peer] for peer in peers)
            / min(bout.least[label] for label in ways),
            "way": "plan" if best.endswith("plan") else "layers",
            "ways": {label: values[0] for label, values in ways.items()},
            "share of roofline": least / bout.median(best),
        }
        if bout.once:
            engines[engine]["numpy-ml"] = bout.once["numpy-ml"] / bout.median(best)
    twin = bout.ratios("torch again", "torch") if "torch again" in labels else [1.0]
    fastest = min(peers, key=bout.median)
    return {
        "title": case.title,
        "ms": {label: 1e3 * bout.median(label) for label in labels}
        | {label: 1e3 * seconds for label, seconds in bout.once.items()},
        "fastest call, ms": {label: 1e3 * seconds for label, seconds in bout.least.items()},
        "fastest torch": case.other if fastest == "torch other" else "default",
        "engines": engines,
        "noise": statistics.median(abs(r - 1) for r in twin),
        "torch against itself": statistics.median(twin),
        "rounds": bout.kept,
        "quiet rounds": bout.quiet,
        "others' CPU": bout.others,
        "largest error": bout.errors,
        "MFLOP": flops / 1e6,
        "MB": moved / 1e6,
    }


def geometric_mean(values: list[float]) -> float:
    """Return the n-th root of the product of n positive values."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def summary(cases: dict[str, Record]) -> dict[str, Record]:
    """Return the geometric mean and the worst case of each engine that took part."""
    found = {}
    for engine in ENGINES:
        ratios = {
            n: c["engines"][engine]["ratio"] for n, c in cases.items() if engine in c["engines"]
        }
        if ratios:
            worst = min(ratios, key=lambda name: ratios[name])
            found[engine] = {
                "geometric mean": geometric_mean(list(ratios.values())),
                "worst": ratios[worst],
                "worst case": worst,
                "cases": len(ratios),
            }
    return found


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _reached(value: float | None, goal: float | None) -> str:
    if value is None:
        return "-"
    if goal is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({'met' if value >= goal else 'NOT met'}: {goal:g})"


def ratio_table(cases: dict[str, Record]) -> str:
    """Return the main table: PyTorch's best time over ours, a goal behind it where there is one."""
    rows = []
    for name, c in cases.items():
        reach = CASES[name].reach
        cells = []
        for k, engine in enumerate(ENGINES):
            e = c["engines"].get(engine)
            cells.append(_reached(e and e["ratio"], reach and reach[k]))
            ways = (e or {}).get("ways", {})
            cells[-1] += f" [layers {ways[engine]:.2f}]" if e and e["way"] == "plan" else ""
        peer = [e["numpy-ml"] for e in c["engines"].values() if "numpy-ml" in e]
        fastest = [
            f"{c['engines'][e]['ratio of fastest calls']:.2f}" if e in c["engines"] else "-"
            for e in ENGINES
        ]
        torch_ms = min(ms for label, ms in c["ms"].items() if label in PEERS)
        rows.append(
            [
                c["title"],
                f"{torch_ms:.3f} ({c['fastest torch']})",
                *cells,
                f"{max(peer):.0f}" if peer else "",
                " / ".join(fastest),
                f"{100 * c['noise']:.0f} %",
                f"{c['quiet rounds']}/{c['rounds']}",
            ]
        )
    header = ["forward + backward, or step", "torch best, ms", "NumPy", "compiled"]
    return _table([*header, "numpy-ml / ours", "of fastest calls", "noise", "quiet rounds"], rows)


def roofline_table(cases: dict[str, Record], rates: dict[str, float]) -> str:
    """Return each case's work, and the share of the machine's copy or GEMM rate reached."""
    rows = []
    for c in cases.values():
        gemm = c["MFLOP"] / rates["GEMM GFLOP/s"] > c["MB"] / rates["copy GB/s"]
        shares = [c["engines"].get(engine, {}).get("share of roofline") for engine in ENGINES]
        cells = ["-" if share is None else f"{100 * share:.0f} %" for share in shares]
        bound = "GEMM" if gemm else "copy"
        rows.append([c["title"], f"{c['MFLOP']:.1f}", f"{c['MB']:.2f}", bound, *cells])
    return _table(["case", "MFLOP", "MB", "bound", "NumPy", "compiled"], rows)


def reach_table(result: Record) -> str:
    """Return what each engine shall reach beyond single cases, and whether it does."""
    rows = []
    found = result.get("summary", {})
    peer = {
        engine: result["cases"].get("lenet", {}).get("engines", {}).get(engine, {}).get("numpy-ml")
        for engine in ENGINES
    }
    lines: list[tuple[str, dict[str, float | None], tuple[float, float]]] = [
        ("geometric mean", {e: s["geometric mean"] for e, s in found.items()}, GEOMETRIC_MEAN),
        ("worst case", {e: s["worst"] for e, s in found.items()}, WORST),
    ]
    if any(peer.values()):
        lines.append(("LeNet step against numpy-ml", peer, PEER_STEP))
    for what, goal in FOOTPRINT.items():
        ratios = {e: f["ratio"] for e, f in result.get("footprint", {}).get(what, {}).items()}
        if ratios:
            lines.append((f"{what}, torch / ours", ratios, (goal, goal)))
    for what, values, goals in lines:
        cells = [_reached(values.get(e), goal) for e, goal in zip(ENGINES, goals, strict=True)]
        rows.append([what, *cells])
    return _table(["", "NumPy", "compiled"], rows)


def footprint_table(footprint: Record) -> str:
    """Return memory, import, first step, sizes, allocations and page faults."""
    rows = []
    for what in FOOTPRINT:
        for engine, values in footprint.get(what, {}).items():
            unit = values["unit"]
            ours, peer = f"{values['ours']:.3g} {unit}", f"{values['torch']:.3g} {unit}"
            rows.append([f"{what} ({engine})", ours, peer, f"{values['ratio']:.1f}"])
    for what, megabytes in footprint.get("installed MB", {}).items():
        rows.append([f"installed: {what}", f"{megabytes:.1f} MB", "", ""])
    for what, values in footprint.get("per step", {}).items():
        text = (
            f"{values['large allocations']:g} allocations > 64 KB, "
            f"{values['page faults']:.0f} page faults"
        )
        rows.append([f"per step: {what}", text, "", ""])
    return _table(["", "gpulayers", "torch", "torch / ours"], rows)


def compare(new: dict[str, Record], old: dict[str, Record]) -> tuple[list[str], list[str]]:
    """Compare ratios with a record: return what fell to less than half, and what was compared.

    Times of two machines mean nothing to each other; a ratio of ours to PyTorch's does. On a busy
    machine a median may be far off, so the ratio of the fastest calls has to have fallen as well.
    """
    fastest = "ratio of fastest calls"
    fallen, compared = [], []
    for name, case in new.items():
        for engine, values in case["engines"].items():
            before = old.get(name, {}).get("engines", {}).get(engine)
            if before is None:
                continue
            said = f"{name} ({engine}): {before['ratio']:.2f} -> {values['ratio']:.2f}"
            compared.append(said)
            ratios = ("ratio", fastest) if fastest in values and fastest in before else ("ratio",)
            if all(values[key] < before[key] / 2 for key in ratios):
                fallen.append(said)
    return fallen, compared
