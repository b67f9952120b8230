"""One run of ``benchmarks/gpu.py``: the parts in turn, each measurement in another process."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gpu import child, clock, decide, floors, machine, order, record, startup, tables
from _gpu.nets import Item

_PATIENCE = 60.0  # seconds without a word from micro, kernels or ways
_SPARE = 8.0  # seconds that a turn must be able to take, or it is left out
_CURVE = 200  # steps whose losses are compared
#: parts whose numbers are held against one another, and take no time: measured as a whole
_WHOLE = ("micro",)


class Run:
    """What is asked for, what is left of the time, where results go.

    Parameters
    ----------
    args : the command's
    script : Path
        What other processes run.
    kept : Record
        With this run begun.
    device : "cuda" or "cpu"
    budget : Budget
    """

    def __init__(
        self,
        args: argparse.Namespace,
        script: Path,
        kept: record.Record,
        device: str,
        budget: clock.Budget,
    ) -> None:
        self.args, self.script, self.device = args, script, device
        self.record, self.budget = kept, budget
        self.folder = Path(tempfile.mkdtemp(prefix="gpulayers-bench-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.left_out: list[str] = []
        self._judged: dict[str, bool] = {}

    def call(
        self,
        job: dict[str, Any],
        most: float = math.inf,
        heard: Callable[[str, Any], object] | None = None,
        patience: float = math.inf,
    ) -> dict[str, Any]:
        """Have a job done in what is left of the time; an error if it took `most` of it."""
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        seconds = min(most, self.budget.left)
        found = child.call(job, seconds, self.script, environment, heard, patience)
        if seconds == most and record.LEFT_OUT in found:
            found["error"] = f"no result within {most:.0f} s"
            del found[record.LEFT_OUT]
        return found

    def clock(self, after: str) -> None:
        """Note the clock rates, which are lower where the device is too hot or takes too much."""
        if self.device == "cuda":
            self.record.note("clocks", {"after": after, **machine.clock()})

    # --------------------------------------------------------------------- micro, kernels, ways

    def device_part(self, part: str) -> None:
        """Measurements one after the other; a fault of the device ends the process and costs the
        one that made it, another process goes on with the next one."""
        known = {} if part in _WHOLE or self.args.anew else self.record.known(part)
        if part == "kernels" and installed("torch") and self.budget.left > _SPARE and not known:
            self.formulas(part)
        states = {name: record.state(entry["measured"]) for name, entry in known.items()}
        done = [name for name, found in states.items() if found == "measured"]
        failed = [name for name, found in states.items() if found == "failed"]
        if done:
            print(f"{part}: {len(done)} were measured by a former run", flush=True)

        def heard(name: str, value: Any) -> None:
            done.append(name)
            self.record.put(part, name, "measured", value)
            print(f"{part}: {name}: {_short(value)}", flush=True)

        while self.budget.left > _SPARE:
            before = len(done)
            job = {"kind": part, "batch": self.args.batch, "skip": list(done), "last": failed}
            found = self.call(job, math.inf, heard, _PATIENCE)
            if "error" not in found and record.LEFT_OUT not in found:
                self.clock(part)
                return
            if "error" in found and len(done) == before:  # it does not even begin
                self.record.put(part, "process", "measured", {"error": found["error"]})
                print(f"{part}: {found['error']}", flush=True)
                return
        self.clock(part)
        self.left_out.append(f"the rest of {part}")

    def formulas(self, part: str) -> None:
        """The formulas that kernels are held against, held against PyTorch; no GPU is needed."""
        found = self.call({"kind": "formulas"}, 120.0)
        for name, value in found.items():
            if isinstance(value, str):
                name, value = "formulas against PyTorch", {name: value}
            self.record.put(part, name, "measured", value)
            print(f"{part}: {name}: {_short(value)}", flush=True)

    # -------------------------------------------------------------------------------- the steps

    def steps(self, items: list[Item]) -> None:
        """The ways in turn, each for all items."""
        sides = [side for side in self.args.sides if installed(side)]
        for item in items:
            self.record.put("floors", item.name, "floor", floors.floor(item))
        known = self.record.known("steps")
        took: set[str] = set()
        for turn in order.turns(items, known, sides, self.args.anew):
            took.add(turn.item.name)
            name = f"{turn.item.name}: {turn.way}"
            if self.budget.left >= _SPARE and self.referee(turn.item):
                self.turn(turn)
            elif self.budget.left < _SPARE:
                self.left_out.append(name)
        for item in items:
            if item.name not in took:
                print(f"{item.name}: measured by a former run", flush=True)
        if took:
            self.clock("steps")

    def referee(self, item: Item) -> bool:
        """What the first steps must give, once for each item; False if that is not known."""
        if item.name not in self._judged:
            job = {"kind": "referee", "item": _told(item), "device": self.device}
            found = self.call({**job, "file": str(self.file(item))}, 180.0)
            self.record.put("steps", item.name, "referee", found)
            self._judged[item.name] = record.state(found) == "measured"
            if not self._judged[item.name]:
                print(f"{item.name}: no referee: {found}", flush=True)
        return self._judged[item.name]

    def turn(self, turn: order.Turn) -> None:
        item, way = turn.item, turn.way
        job = {
            "kind": turn.side,
            "item": _told(item),
            "ways": [way],
            "twice": order.TWICE,
            "device": self.device,
            "file": str(self.file(item)),
            "curve": _CURVE,
            "warm_up": self.args.warm_up,
            "steps": self.args.steps,
            "repeats": self.args.repeats,
        }
        found = self.call(job, turn.most)
        why = {name: found.pop(name) for name in ("error", record.LEFT_OUT) if name in found}
        if way not in found:
            found[way] = why or {"error": "the process gave no result"}
        for name, value in found.items():
            self.record.put("steps", item.name, name, value)
        print(
            f"{item.name}: " + "; ".join(f"{name} {_short(v)}" for name, v in found.items()),
            flush=True,
        )

    def file(self, item: Item) -> Path:
        return self.folder / f"{item.name.replace(' ', '-')}.npz"

    # ------------------------------------------------------------------------------ the start-up

    def startup(self) -> None:
        mnist = startup.find_mnist(self.args.mnist, self.script.parent.parent)
        known = {} if self.args.anew else self.record.known("startup")
        for name, run in startup.items(self.device, self.script, mnist):
            pair = name.replace("cold cache", "warm cache")  # which belong together
            before = known.get(pair, {}).get("measured", {record.LEFT_OUT: ""})
            if record.state(before) == "measured":
                continue
            if self.budget.left < _SPARE:
                self.left_out.append(name)
                continue
            try:
                value = run(self.budget.left)
            except Exception as error:
                value = {"error": f"{type(error).__name__}: {error}"}
            self.record.put("startup", name, "measured", value)
            print(f"{name}: {value}", flush=True)
        self.clock("startup")

    # -------------------------------------------------------------------------------- the tables

    def show(self) -> None:
        """The tables, that of the ratios last."""
        runs = self.record.runs
        for name, entry in record.newest(runs, "startup").items():
            print(f"startup: {name}: {entry['measured']}")
        if self.left_out:
            print("left out for want of time: " + "; ".join(self.left_out))
        if self.record.run.get("steps"):
            print(tables.time_table(self.record.run))
            print()
        self.record.run["decisions"] = [d._asdict() for d in decide.decisions(runs)]
        self.record.write()
        print(decide.printed(runs))
        print()
        if any(run.get("steps") for run in runs):
            for text in (tables.curve_table(runs), tables.ratio_table(runs)):
                print(f"{text}\n" if text else "")
        print(tables.run_lines(runs))


def _told(item: Item) -> list[Any]:
    return [item.net, item.batch, item.precision]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "median_us" in value:
        least, most = (value.get(k, value["median_us"]) for k in ("min_us", "max_us"))
        return f"{value['median_us']:.1f} us ({least:.1f} to {most:.1f})"
    return str(value)[:160]


def installed(side: str) -> bool:
    """Whether a side can take part."""
    return side == "ours" or importlib.util.find_spec(side) is not None
