"""One side's part of an item, in a process of its own: a fault there ends nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gpu import referee
from _gpu.clock import wall
from _gpu.nets import Item

_MARK = "RESULT "
_LONGEST_ERROR = 600
Job = dict[str, Any]


# -------------------------------------------------------------------------------- from outside


def call(job: Job, seconds: float, script: Path, more: dict[str, str] | None = None) -> Job:
    """Have a process do a job; return what it put out, by name, and an "error" if it failed.

    What it had put out when it failed, or when its time was up, is returned too.
    """
    process = subprocess.Popen(
        [sys.executable, str(script), "--child", json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(more or {})},
        start_new_session=True,  # so that what it starts ends with it
    )
    late = False
    try:
        out, told = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, told = process.communicate()
    found: Job = {}
    for line in out.splitlines():
        if line.startswith(_MARK):
            entry = json.loads(line.removeprefix(_MARK))
            found[entry["what"]] = entry["value"]
    if late:
        found["error"] = f"stopped after {seconds:.0f} s"
    elif process.returncode:
        found["error"] = f"exit code {process.returncode}: {told.strip()[-_LONGEST_ERROR:]}"
    return found


# --------------------------------------------------------------------------------- from inside


def put(what: str, value: Any) -> None:
    """Hand a result to the process that waits for it."""
    print(_MARK + json.dumps({"what": what, "value": value}, default=str), flush=True)


def work(job: Job) -> None:
    """Do a job. What fails is told as the result, so that the next way has its turn."""
    kind = job["kind"]
    if kind == "referee":
        result, facts = referee.measure(Item(*job["item"]), job["device"])
        referee.write(Path(job["file"]), result)
        put("facts", facts)
        return
    if kind in ("micro", "kernels"):
        _device_items(job)
        return
    item, wanted = Item(*job["item"]), referee.read(Path(job["file"]))
    clocks = {name: job[name] for name in ("warm_up", "steps", "repeats")}
    for way in job["ways"]:
        try:
            put(way, _timed(kind, item, way, job["device"], wanted, clocks))
            if way in job["twice"]:
                put(f"{way} again", _timed(kind, item, way, job["device"], wanted, clocks))
        except Exception as error:
            put(way, {"error": _told(error)})


def _timed(
    kind: str, item: Item, way: str, device: str, wanted: Any, clocks: dict[str, int]
) -> dict[str, Any]:
    """Check a way's first steps, then time it."""
    subject = _subject(kind, item, way, device)
    wrong = referee.judge(subject.checked(), wanted, item)
    found = wall(subject.run, subject.wait, **clocks, multiple=subject.multiple)
    return {**found, "off by": wrong, "peak bytes": subject.peak_bytes(), **subject.facts()}


def _subject(kind: str, item: Item, way: str, device: str) -> Any:
    if kind == "torch":
        from _gpu.torch_side import Torch

        return Torch(item, way, device)
    if kind == "jax":
        from _gpu.jax_side import Jax

        return Jax(item, way)
    from _gpu.ours import Ours
    from gpulayers import backend

    backend.use_backend("cupy" if device == "cuda" else "numpy")
    return Ours(item, way)


def _device_items(job: Job) -> None:
    from _gpu import kernels, micro
    from gpulayers import backend

    backend.use_backend("cupy")
    xp: Any = backend.module("cupy")
    measures: list[tuple[str, Callable[[], Any]]] = []
    if job["kind"] == "micro":
        measures = list(micro.items(xp))
    else:
        peak = micro.copy_speed(xp, 256)
        put("copy", {"GB/s": peak / 1e9})
        for dtype in ("float32", "float16"):
            for case in kernels.cases(xp, job["batch"], dtype):
                name = f"{case.name} {dtype}"
                measures.append((name, lambda c=case: kernels.measure_case(xp, c, peak)))
    for name, run in measures:
        try:
            put(name, run())
        except Exception as error:
            put(name, {"error": _told(error)})


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR] + f" ({last.name}, {last.lineno})"
