"""The file that a run writes after each item: runs, each with what it found and where.

    {"runs": [{"date", "source", "commit", "device", "versions", "settings", "clocks",
               "micro", "kernels", "ways", "steps", "floors", "startup"}, ...]}

A section holds items, an item values by name; a value that is a dict with "error" failed, one with
"not measured" was cut off by the end of the time, one with "refused" is not for this network.
Figures of different runs are never divided by one another.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["LEFT_OUT", "REFUSED", "Record", "alike", "newest", "state"]

LEFT_OUT, REFUSED = "not measured", "refused"
_FACTS = ("source", "device", "versions", "settings")  # what figures depend on
_STEADY = ("name", "driver_version", "memory.total")  # of what nvidia-smi tells

Run = dict[str, Any]


def state(value: Any) -> str:
    """ "measured", "failed" or "left out"."""
    if isinstance(value, dict) and "error" in value:
        return "failed"
    return "left out" if isinstance(value, dict) and LEFT_OUT in value else "measured"


def _circumstances(run: Run) -> str:
    facts = {name: run.get(name) for name in _FACTS}
    facts["device"] = {name: (run.get("device") or {}).get(name) for name in _STEADY}
    return json.dumps(facts, sort_keys=True, default=str)


def alike(run: Run, other: Run) -> bool:
    """Whether two runs are of the same sources, device, driver, versions and settings."""
    return _circumstances(run) == _circumstances(other)


def newest(runs: list[Run], section: str) -> dict[str, dict[str, Any]]:
    """The newest value of each item's names; one that was left out replaces none."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for item, entry in run.get(section, {}).items():
            for what, value in entry.items():
                old = found.setdefault(item, {})
                if state(value) != "left out" or what not in old:
                    old[what] = value
    return found


class Record:
    """What was measured, as JSON on disk at every moment.

    Parameters
    ----------
    path : Path
        The runs in a file that is there stay; one that cannot be read is put aside.
    former : Path, optional
        Where the former runs are, if not there.
    """

    def __init__(self, path: Path, former: Path | None = None) -> None:
        self.path = path
        self.runs: list[Run] = []
        self.run: Run = {}
        source = path if path.exists() or former is None else former
        if source.exists():
            try:
                self.runs = _runs(json.loads(source.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                print(f"{source} cannot be taken up: {error}", flush=True)
                if source == path:
                    os.replace(path, path.with_suffix(f".unread-{time.time_ns()}"))

    def begin(self, facts: dict[str, Any]) -> None:
        """Begin a run; what is put from now on belongs to it."""
        self.run = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **facts}
        self.runs.append(self.run)
        self.write()

    def put(self, section: str, item: str, what: str, value: Any) -> None:
        """Note one figure, or one error, and write the file."""
        self.run.setdefault(section, {}).setdefault(item, {})[what] = value
        self.write()

    def note(self, name: str, value: Any) -> None:
        """Add to a list of facts of this run."""
        self.run.setdefault(name, []).append(value)
        self.write()

    def known(self, section: str) -> dict[str, dict[str, Any]]:
        """The newest values of this run and of those like it."""
        return newest([run for run in self.runs if alike(run, self.run)], section)

    def write(self) -> None:
        """Replace the file at once, so that a run that is killed leaves a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        text = json.dumps({"runs": self.runs}, indent=1, default=str)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def numbered(self) -> Iterator[tuple[int, Run]]:
        """The runs with their numbers, from the newest on."""
        yield from reversed(list(enumerate(self.runs, 1)))


def _runs(found: Any) -> list[Run]:
    if not isinstance(found, dict) or not isinstance(found.get("runs"), list):
        raise ValueError("it has no list of runs")
    return [run for run in found["runs"] if isinstance(run, dict)]
