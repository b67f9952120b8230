"""The file that a run writes after each item, and the tables that are printed at its end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from _gpu.nets import REACH

OURS = ("fused", "resident", "mega")
EAGER = "torch eager"


class Record:
    """What was measured, as JSON on disk at every moment.

    Parameters
    ----------
    path : Path
        A file of a former run is taken up: its items stay unless they are measured again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.values = found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            pass

    def put(self, section: str, item: str, what: str, value: Any) -> None:
        """Note one figure, or one error, and write the file."""
        entry = self.values.setdefault(section, {}).setdefault(item, {})
        entry[what] = value
        self.write()

    def write(self) -> None:
        """Replace the file at once, so that a run that is killed leaves a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def started(record: Record, facts: dict[str, Any]) -> None:
    """Note when and where a run takes place."""
    record.values["run"] = {"date": time.strftime("%Y-%m-%d %H:%M"), **facts}
    record.write()


def _us(entry: dict[str, Any], way: str) -> float | None:
    value = entry.get(way)
    return value["median_us"] if isinstance(value, dict) and "median_us" in value else None


def ratios(entry: dict[str, Any]) -> dict[str, Any]:
    """Return our best way, and the peers' times over its time; None where there is no time."""
    times = {way: _us(entry, way) for way in entry}
    known = {way: t for way, t in times.items() if t is not None}
    ours = {way: t for way, t in known.items() if way in (*OURS, "layers")}
    peers = {way: t for way, t in known.items() if way.startswith(("torch", "jax"))}
    peers = {way: t for way, t in peers.items() if not way.endswith("again")}
    if not ours:
        return {"ours": None}
    best = min(ours, key=lambda way: ours[way])
    fastest = min(peers, key=lambda way: peers[way]) if peers else None
    return {
        "ours": best,
        "us": ours[best],
        "against eager": peers[EAGER] / ours[best] if EAGER in peers else None,
        "peer": fastest,
        "against best": peers[fastest] / ours[best] if fastest else None,
    }


def noise(entry: dict[str, Any]) -> float | None:
    """How far two timings of the same thing are apart, the worse of the two sides."""
    found = []
    for way in entry:
        once, again = _us(entry, way), _us(entry, f"{way} again")
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


def ratio_table(steps: dict[str, Any]) -> str:
    """The main table: peers' times over ours, with what is to be reached."""
    rows = []
    for item, entry in steps.items():
        found = ratios(entry)
        eager, best = REACH.get(item, (None, None))
        spread = noise(entry)
        rows.append(
            [
                item,
                "-" if found["ours"] is None else f"{found['us']:.1f} ({found['ours']})",
                _reached(found.get("against eager"), eager),
                _reached(found.get("against best"), best),
                str(found.get("peer") or "-"),
                "-" if spread is None else f"{100 * spread:.0f} %",
                str(sum(1 for v in entry.values() if isinstance(v, dict) and "error" in v)),
            ]
        )
    header = ["step", "ours, us", "torch eager / ours", "best peer / ours", "which", "noise"]
    return table([*header, "failed"], rows)


def time_table(steps: dict[str, Any]) -> str:
    """Microseconds of every way, and why the others have none."""
    rows = []
    for item, entry in steps.items():
        for way, value in entry.items():
            if not isinstance(value, dict):
                continue
            time_us = _us(entry, way)
            why = "" if time_us is not None else str(value.get("error", ""))[:90]
            told = "" if time_us is None else f"{time_us:.1f}"
            off = value.get("off by")
            rows.append([item, way, told, "" if off is None else f"{off:.0e}", why])
    return table(["step", "way", "us", "off by", ""], rows)
