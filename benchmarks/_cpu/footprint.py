"""Memory, import time, first step, installed size; allocations and page faults of a step."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _cpu.duel import ContestantError, environment

_TRAIN = """
from _cpu.cases import CASES
import {module} as side
subject = side.make(CASES["lenet"], "")
for _ in range({steps}):
    subject.run()
"""
_PEAK = """
import resource, sys
if sys.platform == "linux":  # ru_maxrss would tell the peak of the process that started this one
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(line.split()[1]) / 2**10)
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (2**20 if sys.platform == "darwin" else 2**10))
"""
_ALLOCATIONS = """
import json, resource, sys, threading, tracemalloc
from _cpu.cases import CASES
from _cpu import ours
subject = ours.make(CASES["lenet"], "{variant}")
for _ in range(12):
    subject.run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    subject.run()
faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
large = current = 0
def line(frame, event, argument):
    # the peak since the last line tells of arrays that are gone again too
    global large, current
    now, peak = tracemalloc.get_traced_memory()
    large += peak - current > 65536
    current = now
    tracemalloc.reset_peak()
    return line
tracemalloc.start()
subject.run()
subject.run()
current = tracemalloc.get_traced_memory()[0]
tracemalloc.reset_peak()
sys.settrace(line)
subject.run()
sys.settrace(None)
print(json.dumps({{"large allocations": large, "page faults": faults}}))
"""
SIDES = {"ours": "_cpu.ours", "torch": "_cpu.pytorch"}
IMPORTS = {"ours": "gpulayers.models, gpulayers.losses", "torch": "torch"}


def physical_cores() -> int:
    """Cores of this process, as gpulayers counts them."""
    from gpulayers import threads

    return min(threads.physical_cores(), len(_affinity()))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _run(code: str, threads: int, engine: str = "") -> tuple[str, float]:
    """Output of a fresh process, and its wall-clock seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(threads, engine),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ContestantError(f"a fresh process failed:\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - start


def _seconds(code: str, threads: int, engine: str, times: int) -> float:
    """Median wall-clock seconds of fresh processes that run `code`, after one untimed."""
    _run(code, threads, engine)
    return statistics.median(_run(code, threads, engine)[1] for _ in range(times))


def _entry(ours: float, torch: float, unit: str) -> dict[str, Any]:
    return {"ours": ours, "torch": torch, "ratio": torch / ours, "unit": unit}


def measure(engines: list[str], threads: int) -> dict[str, Any]:
    """Return everything, each figure for every engine and for PyTorch.

    Raises
    ------
    ContestantError
        If a process breaks off.
    """
    import json

    empty = _seconds("pass", threads, "", 5)
    figures: dict[str, dict[str, float]] = {}
    for name, side, engine in [("torch", "torch", ""), *((e, "ours", e) for e in engines)]:
        train = _TRAIN.format(module=SIDES[side], steps=20)
        one = _TRAIN.format(module=SIDES[side], steps=1)
        imported = _seconds(f"import {IMPORTS[side]}", threads, engine, 5)
        figures[name] = {
            "import": imported - empty,
            "first step": _seconds(one, threads, engine, 3),
            "memory": float(_run(train + _PEAK, threads, engine)[0]),
        }
    units = {"import": "s", "first step": "s", "memory": "MB"}
    found: dict[str, Any] = {
        what: {e: _entry(figures[e][what], figures["torch"][what], unit) for e in engines}
        for what, unit in units.items()
    }
    found["per step"] = {
        f"LeNet, {engine}, {way}": json.loads(
            _run(_ALLOCATIONS.format(variant=variant), threads, engine)[0]
        )
        for engine in engines
        for way, variant in (("layers", ""), ("plan", "plan"))
    }
    found["installed MB"] = {
        "gpulayers": _package_megabytes(),
        "gpulayers and NumPy": _package_megabytes() + installed("numpy"),
        "torch and what it needs": installed("torch"),
    }
    return found


def _package_megabytes() -> float:
    spec = importlib.util.find_spec("gpulayers")
    root = Path(spec.origin).parent if spec and spec.origin else Path()
    files = [f for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return sum(f.stat().st_size for f in files) / 2**20


def installed(name: str) -> float:
    """Return the megabytes of a distribution and of all it requires (without extras)."""
    seen: set[str] = set()
    waiting, total = [name], 0
    while waiting:
        one = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if one in seen:
            continue
        seen.add(one)
        try:
            distribution = importlib.metadata.distribution(one)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on another platform
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            total += path.stat().st_size if path.is_file() else 0
        for requirement in distribution.requires or ():
            wanted, _, condition = requirement.partition(";")
            found = re.match(r"[A-Za-z0-9._-]+", wanted)
            if found and "extra" not in condition:
                waiting.append(found.group())
    return total / 2**20
