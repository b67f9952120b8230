"""Time training steps on one GPU against PyTorch and JAX, and what they are made of.

    python benchmarks/gpu.py --parts micro,kernels,ways --out results
    python benchmarks/gpu.py --parts lenet,vgg --budget 540 --out results
    python benchmarks/gpu.py --parts resnet9,rnn,lstm,wavenet,startup --out results

Parts: micro, kernels, ways, lenet, vgg, resnet9, rnn, lstm, wavenet, startup. ``--out`` is a folder
(default: the variable OUT, else ``benchmarks/results``); ``gpu-<device>.json`` there is written
after every item, and taken up by the next run, so that parts can be measured one after the other.
A run ends when ``--budget`` seconds are over: what comes last is left out and said.

What follows from the numbers is printed as a table of decisions, each with its bound. The parts
micro, kernels and ways go on in another process with the next item where one loses the device or
hangs.

Each way of taking a step has a process of its own. Its first three steps must give the losses and
weights that PyTorch gives in float64, and our layers in float64 NumPy, before it is timed: wall
clock over 200 steps (fewer if they take long) between two waits for the device, after 20 steps of
warm-up; the median of seven. Inputs are random numbers on the device, eight batches in turn. The
fastest settings on both sides: channels_last, cudnn.benchmark, fused optimizers, TF32 where the
item says so on both sides or on none; CUDA graphs by hand, reduce-overhead, max-autotune; a jitted
step and a scan. One way of each side is timed twice: their difference is the noise.

Without a GPU nothing is measured, and the floors are printed.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gpu import child, clock, decide, floors, machine, record, startup
from _gpu.nets import PARTS, Item

SCRIPT = Path(__file__).resolve()
ALL_PARTS = (*child.DEVICE_PARTS, *PARTS, "startup")
#: (side, its ways that share a process, seconds that it is given at most), in the order of turns
TURNS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("ours", ("fused",), 120),
    ("ours", ("resident",), 120),
    ("torch", ("torch eager", "torch graph"), 120),
    ("ours", ("mega",), 120),
    ("ours", ("layers",), 120),
    ("jax", ("jax jit", "jax scan"), 150),
    ("torch", ("torch reduce-overhead",), 200),
    ("torch", ("torch compiled graph",), 300),
    ("torch", ("torch max-autotune",), 300),
)
TWICE = ("resident", "torch eager", "torch graph")
_PATIENCE = 60.0  # seconds for one item of micro, kernels or ways
_SPARE = 8.0  # seconds that a turn must be able to take, or it is left out
_END = 5.0  # seconds for the tables


class Run:
    """One run of the script: what is asked for, what is left of its time, where results go."""

    def __init__(self, args: argparse.Namespace, file: Path, device: str) -> None:
        self.args, self.device = args, device
        self.budget = clock.Budget(args.budget - _END)
        self.record = record.Record(file)
        self.folder = Path(tempfile.mkdtemp(prefix="gpulayers-bench-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.left_out: list[str] = []

    def call(
        self,
        job: dict[str, Any],
        most: float,
        heard: Callable[[str, Any], object] | None = None,
        patience: float = math.inf,
    ) -> dict[str, Any]:
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        seconds = min(most, self.budget.left)
        return child.call(job, seconds, SCRIPT, environment, heard, patience)

    def device_part(self, part: str) -> None:
        """Measurements one after the other; a fault of the device ends the process and costs the
        one that made it, another process goes on with the next one."""
        done: list[str] = []

        def heard(name: str, value: Any) -> None:
            done.append(name)
            self.record.put(part, name, "measured", value)
            print(f"{part}: {name}: {_short(value)}", flush=True)

        while self.budget.left > _SPARE:
            before = len(done)
            job = {"kind": part, "batch": self.args.batch, "skip": done}
            found = self.call(job, math.inf, heard, _PATIENCE)
            if "error" not in found:
                return
            if len(done) == before:  # it does not even begin
                self.record.put(part, "process", "measured", {"error": found["error"]})
                print(f"{part}: {found['error']}", flush=True)
                return
        self.left_out.append(f"the rest of {part}")

    def steps(self, items: list[Item]) -> None:
        """The ways in turn, each for all items, the slow compilers last."""
        known = [item for item in items if self.referee(item)]
        for side, ways, most in TURNS:
            if side not in self.args.sides or not installed(side):
                continue
            for item in known:
                if self.budget.left < _SPARE:
                    self.left_out.append(f"{item.name}: {', '.join(ways)}")
                    continue
                self.turn(item, side, ways, most)

    def referee(self, item: Item) -> bool:
        job = {"kind": "referee", "item": _told(item), "device": self.device}
        if self.budget.left < _SPARE:
            self.left_out.append(item.name)
            return False
        found = self.call({**job, "file": str(self.file(item))}, 180)
        self.record.put("steps", item.name, "referee", found)
        self.record.put("floors", item.name, "floor", floors.floor(item))
        return "error" not in found

    def turn(self, item: Item, side: str, ways: tuple[str, ...], most: float) -> None:
        job = {
            "kind": side,
            "item": _told(item),
            "ways": ways,
            "twice": TWICE,
            "device": self.device,
            "file": str(self.file(item)),
            "warm_up": self.args.warm_up,
            "steps": self.args.steps,
            "repeats": self.args.repeats,
        }
        found = self.call(job, most)
        error = found.pop("error", None)
        for way, value in found.items():
            self.record.put("steps", item.name, way, value)
        if error is not None:
            for way in ways:
                if way not in found:
                    self.record.put("steps", item.name, way, {"error": error})
        said = (f"{way} {_short(v)}" for way, v in found.items())
        print(f"{item.name}: {'; '.join(said)}{f' {error}' if error else ''}", flush=True)

    def file(self, item: Item) -> Path:
        return self.folder / f"{item.name.replace(' ', '-')}.npz"

    def startup(self) -> None:
        for name, run in startup.items(self.device, SCRIPT):
            if self.budget.left < _SPARE:
                self.left_out.append(name)
                continue
            try:
                value = run()
            except Exception as error:
                value = {"error": f"{type(error).__name__}: {error}"}
            self.record.put("startup", name, "measured", value)
            print(f"{name}: {value}", flush=True)

    def show(self) -> None:
        """The tables, that of the ratios last."""
        values = self.record.values
        for name, entry in values.get("startup", {}).items():
            print(f"startup: {name}: {entry['measured']}")
        steps = values.get("steps", {})
        if self.left_out:
            print("left out for want of time: " + "; ".join(self.left_out))
        if steps:
            print(record.time_table(steps))
            print()
        self.record.values["decisions"] = [d._asdict() for d in decide.decisions(values)]
        self.record.write()
        print(decide.printed(values))
        print()
        if steps:
            print(record.ratio_table(steps))


def _told(item: Item) -> list[Any]:
    return [item.net, item.batch, item.precision]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "median_us" in value:
        return f"{value['median_us']:.1f} us"
    return str(value)[:120]


def installed(side: str) -> bool:
    """Whether a side can take part."""
    return side == "ours" or importlib.util.find_spec(side) is not None


def chosen(args: argparse.Namespace) -> list[Item]:
    """The steps of the parts that are asked for."""
    items = [item for part in args.parts for item in PARTS.get(part, ())]
    if args.batches:
        items = [item for item in items if item.batch in args.batches]
    if args.precisions:
        names = dict.fromkeys((i.net, i.batch) for i in items)
        items = [Item(net, n, p) for net, n in names for p in args.precisions]
    return items


def _words(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {word!r}, expected some of {', '.join(known)}"
                )
        return words

    return parse


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Time training steps on one GPU against its peers.")
    default = "micro,kernels,lenet"
    p.add_argument("--parts", type=_words(ALL_PARTS), default=default, help=f"default: {default}")
    p.add_argument("--out", type=Path, default=None, help="folder of the JSON file")
    p.add_argument("--budget", type=float, default=530.0, help="seconds for all of it")
    p.add_argument("--batches", type=lambda t: [int(n) for n in t.split(",")], default=[])
    p.add_argument("--precisions", type=_words(tuple(floors.RATES)), default=[])
    p.add_argument("--sides", type=_words(("ours", "torch", "jax")), default="ours,torch,jax")
    p.add_argument("--batch", type=int, default=512, help="images, of the part kernels")
    p.add_argument("--steps", type=int, default=clock.STEPS)
    p.add_argument("--warm-up", type=int, default=clock.WARM_UP)
    p.add_argument("--repeats", type=int, default=clock.REPEATS)
    p.add_argument("--child", help=argparse.SUPPRESS)
    return p


def gpu_error() -> str | None:
    """Why no GPU can be used, or None."""
    from gpulayers import backend
    from gpulayers.errors import BackendError

    try:
        backend.use_backend("cupy")
    except BackendError as error:
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.child:
        child.work(json.loads(args.child))
        return 0
    missing = gpu_error()
    if missing is not None:
        print(floors.printed(chosen(args) or [i for part in PARTS.values() for i in part]))
        print(f"no GPU: nothing was measured ({missing.splitlines()[0]})")
        return 0
    facts = machine.facts()
    name = re.sub(r"[^A-Za-z0-9]+", "-", facts["device"].get("name", "unknown")).strip("-").lower()
    folder = args.out or Path(os.environ.get("OUT") or SCRIPT.parent / "results")
    run = Run(args, folder / f"gpu-{name}.json", "cuda")
    record.started(run.record, facts)
    for part in child.DEVICE_PARTS:
        if part in args.parts:
            run.device_part(part)
    run.steps(chosen(args))
    if "startup" in args.parts:
        run.startup()
    run.show()
    print(f"written to {run.record.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
