"""The tables that are printed at a run's end. A ratio is of two times from the same run."""

from __future__ import annotations

import math
from typing import Any

from _gpu import record
from _gpu.nets import REACH

__all__ = ["curve_table", "noise", "ratio_table", "ratios", "run_lines", "time_table"]

OURS = ("fused", "resident", "mega", "layers")
EAGER = "torch eager"
AGAIN = " again"
#: how far the losses of 200 steps may be from PyTorch's: the largest difference between the means
#: of 20 steps, relative to the first of PyTorch's; and how many times as far as PyTorch's own go
#: apart when its inputs are off by the precision's rounding (`referee.slack` says why they do)
CURVES, _LENIENT = {"fp32": 0.01, "tf32": 0.03, "bf16": 0.1, "fp16": 0.1}, 3.0

Run = dict[str, Any]
Entry = dict[str, Any]


def us(entry: Entry, way: str) -> float | None:
    value = entry.get(way)
    return value["median_us"] if isinstance(value, dict) and "median_us" in value else None


def fastest(entry: Entry, ways: tuple[str, ...] | None = None) -> str | None:
    """The way of the least time, among `ways` or, without them, the peers'."""
    found: dict[str, float] = {}
    for way in entry:
        theirs = way.startswith(("torch", "jax")) and not way.endswith(AGAIN)
        time = us(entry, way)
        if time is not None and (theirs if ways is None else way in ways):
            found[way] = time
    return min(found, key=lambda way: found[way]) if found else None


def ratios(entries: list[tuple[int, Entry]]) -> dict[str, Any]:
    """Return our best way, and the peers' times over its time; None where there is no time.

    Parameters
    ----------
    entries : list of (number of the run, the item's entry), the newest first
        Of runs that are alike. A peer's ratio is of one run, the newest that has both times; that
        against the best is the least ratio there is.
    """
    found: dict[str, Any] = {"ours": None}
    of_peers: dict[str, tuple[float, int]] = {}
    for number, entry in entries:
        own = fastest(entry, OURS)
        if own is None:
            continue
        time = us(entry, own) or 0.0
        if found["ours"] is None:
            found = {"ours": own, "us": time, "run": number}
        for way in entry:
            theirs = us(entry, way)
            if way.startswith(("torch", "jax")) and not way.endswith(AGAIN) and theirs is not None:
                of_peers.setdefault(way, (theirs / time, number))
    if found["ours"] is None:
        return found
    best = min(of_peers, key=lambda way: of_peers[way][0]) if of_peers else None
    eager = of_peers.get(EAGER)
    used = {found.pop("run"), *(of_peers[way][1] for way in (EAGER, best) if way in of_peers)}
    return {
        **found,
        "against eager": None if eager is None else eager[0],
        "peer": best,
        "against best": None if best is None else of_peers[best][0],
        "runs": sorted(used),
    }


def noise(entries: list[tuple[int, Entry]]) -> float | None:
    """How far two timings of the same thing in one run are apart, the worst there is."""
    found = []
    for _, entry in entries:
        for way in entry:
            once, again = us(entry, way), us(entry, way + AGAIN)
            if once and again:
                found.append(abs(again / once - 1))
    return max(found, default=None)


def _reached(value: float | None, goal: float | None) -> str:
    if value is None:
        return "-"
    if goal is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({'met' if value >= goal else 'NOT met'}: {goal:g})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lines with columns of one width."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in [header, *rows])
    return "\n".join(line.rstrip() for line in lines)


def _items(runs: list[Run]) -> dict[str, list[tuple[int, Entry]]]:
    """Each item's entries of the newest run that has it and of the runs like that, with the
    numbers of these, the newest first."""
    found: dict[str, list[tuple[int, Entry]]] = {}
    first: dict[str, Run] = {}
    for number, run in reversed(list(enumerate(runs, 1))):
        for item, entry in run.get("steps", {}).items():
            if record.alike(first.setdefault(item, run), run):
                found.setdefault(item, []).append((number, entry))
    return found


def _count(entry: Entry, wanted: str) -> str:
    return str(sum(record.state(value) == wanted for value in entry.values()))


def ratio_table(runs: list[Run]) -> str:
    """The main table: peers' times over ours, with what is to be reached."""
    rows = []
    for item, entries in _items(runs).items():
        found, spread = ratios(entries), noise(entries)
        eager, best = REACH.get(item, (None, None))
        last = record.newest([{"steps": {item: e}} for _, e in reversed(entries)], "steps")[item]
        rows.append(
            [
                item,
                "-" if found["ours"] is None else f"{found['us']:.1f} ({found['ours']})",
                _reached(found.get("against eager"), eager),
                _reached(found.get("against best"), best),
                str(found.get("peer") or "-"),
                "-" if spread is None else f"{100 * spread:.0f} %",
                *(_count(last, wanted) for wanted in ("failed", "left out")),
                ", ".join(map(str, found.get("runs", [n for n, _ in entries]))),
            ]
        )
    header = ["step", "ours, us", "torch eager / ours", "best peer / ours", "which", "noise"]
    told = "each ratio: two times from the same run, and for each step runs of the same kind alone"
    return table([*header, "failed", "left out", "run"], rows) + f"\n({told})"


def run_lines(runs: list[Run]) -> str:
    """What the numbers of the runs stand for."""
    lines = []
    for number, run in enumerate(runs, 1):
        device = run.get("device") or {}
        clocks = [str(c["SM MHz"]) for c in run.get("clocks", []) if "SM MHz" in c]
        lines.append(
            f"run {number}: {run.get('date')}, {device.get('name')}, driver "
            f"{device.get('driver_version')}, commit {run.get('commit') or 'unknown'}, sources "
            f"{run.get('source')}, SM clock {', '.join(clocks) or 'unknown'} MHz"
        )
    return "\n".join(lines)


def time_table(run: Run) -> str:
    """Microseconds of every way of a run, and why the others have none."""
    rows = []
    for item, entry in run.get("steps", {}).items():
        for way, value in entry.items():
            if not isinstance(value, dict) or (way == "referee" and "error" not in value):
                continue
            time = us(entry, way)
            why = next((str(value[k]) for k in ("error", "refused") if k in value), "")
            if record.LEFT_OUT in value:
                why = f"not measured: {value[record.LEFT_OUT]}"
            told = ["", "", ""]
            if time is not None:
                told = [f"{value.get(k, time):.1f}" for k in ("median_us", "min_us", "max_us")]
            off, peak = value.get("off by"), value.get("peak bytes")
            rows.append(
                [
                    *(item, way, *told),
                    "" if off is None else f"{off:.0e}",
                    "" if peak is None else f"{peak / 2**20:.0f}",
                    str(value.get("clock", {}).get("SM MHz", "")),
                    why[:90],
                ]
            )
    return table(["step", "way", "us", "min", "max", "off by", "peak MiB", "SM MHz", ""], rows)


def apart(own: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves, relative to where the second begins."""
    far = [abs(a - b) / max(abs(theirs[0]), 1e-30) for a, b in zip(own, theirs, strict=True)]
    return max(far) if all(map(math.isfinite, far)) else math.inf


def curve_table(runs: list[Run]) -> str:
    """The losses of 200 steps by each of our ways, held against PyTorch's from the same run."""
    rows = []
    for item, entries in _items(runs).items():
        for number, entry in entries:
            eager = entry.get(EAGER) or {}
            theirs = eager.get("curve")
            noise = [apart(shaken, theirs) for shaken in eager.get("shaken curves", ())]
            most = CURVES[item.rpartition(" ")[2]] + _LENIENT * max(noise, default=0.0)
            for way in OURS:
                own = (entry.get(way) or {}).get("curve")
                if own and theirs:
                    far = apart(own, theirs)
                    said = "agree" if far <= most else "APART"
                    last = f"{own[-1]:.3f}", f"{theirs[-1]:.3f}"
                    rows.append([item, way, *last, f"{far:.3f}", f"{most:.3f}", said, str(number)])
    header = ["loss curve of", "ours", "last, ours", "last, torch eager", "apart", "bound", ""]
    return table([*header, "run"], rows) if rows else ""
