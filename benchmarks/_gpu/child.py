"""One side's part of an item, in a process of its own: a fault there ends nothing else."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from _gpu import referee
from _gpu.clock import wall
from _gpu.nets import Item

_MARK, _BEGUN = "RESULT ", "BEGUN "
_LONGEST_ERROR = 600
#: each a file here, with the `items` that one process measures
DEVICE_PARTS = ("micro", "kernels", "ways")
Job = dict[str, Any]


# -------------------------------------------------------------------------------- from outside


def call(
    job: Job,
    seconds: float,
    script: Path,
    more: dict[str, str] | None = None,
    heard: Callable[[str, Any], object] | None = None,
    patience: float = math.inf,
) -> Job:
    """Have a process do a job; return what it put out, by name, and an "error" if it failed.

    What it had put out when it failed, or when its time was up, is returned too; what it was at
    then, if it had said so, with the error.

    Parameters
    ----------
    heard : function, optional
        Called with each name and value as soon as it is put out.
    patience : float
        Seconds without a word after which a process is taken to hang.
    """
    process = subprocess.Popen(
        [sys.executable, str(script), "--child", json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(more or {})},
        start_new_session=True,  # so that what it starts ends with it
    )
    lines: queue.Queue[str | None] = queue.Queue()
    told: list[str] = []
    readers = [
        threading.Thread(target=_pass_on, args=(process.stdout, lines.put)),
        threading.Thread(target=_pass_on, args=(process.stderr, told.append)),
    ]
    for reader in readers:
        reader.start()
    found: Job = {}
    begun, late = "", ""
    end = time.monotonic() + max(seconds, 1.0)
    while not late:
        left = end - time.monotonic()
        try:
            line = lines.get(timeout=max(0.0, min(left, patience)))
        except queue.Empty:
            late = f"stopped after {seconds if left <= patience else patience:.0f} s"
            continue
        if line is None:
            break
        if line.startswith(_BEGUN):
            begun = line.removeprefix(_BEGUN).strip()
        elif line.startswith(_MARK):
            entry = json.loads(line.removeprefix(_MARK))
            found[entry["what"]] = entry["value"]
            if heard is not None:
                heard(entry["what"], entry["value"])
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for reader in readers:
        reader.join()
    if late:
        found["error"] = late
    elif process.returncode:
        text = "".join(line for line in told if line is not None).strip()
        found["error"] = f"exit code {process.returncode}: {text[-_LONGEST_ERROR:]}"
    if "error" in found and begun and begun not in found:
        found[begun] = {"error": found["error"]}
        if heard is not None:
            heard(begun, found[begun])
    return found


def _pass_on(source: IO[str] | None, to: Callable[[str | None], object]) -> None:
    """Each line as it comes, None at last."""
    with contextlib.closing(source) if source else contextlib.nullcontext():
        for line in source or ():
            to(line)
    to(None)


# --------------------------------------------------------------------------------- from inside


def put(what: str, value: Any) -> None:
    """Hand a result to the process that waits for it."""
    print(_MARK + json.dumps({"what": what, "value": value}, default=str), flush=True)


def begin(what: str) -> None:
    """Say what comes now, in case it is the end of the process."""
    print(_BEGUN + what, flush=True)


def work(job: Job) -> None:
    """Do a job. What fails is told as the result, so that the next way has its turn."""
    kind = job["kind"]
    if kind == "referee":
        result, facts = referee.measure(Item(*job["item"]), job["device"])
        by_noise = referee.slack(Item(*job["item"]), result, job["device"])
        referee.write(Path(job["file"]), result, by_noise)
        put("facts", {**facts, "off by noise alone": by_noise})
        return
    if kind in DEVICE_PARTS:
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
    result, by_noise = wanted
    wrong = referee.judge(subject.checked(), result, item, by_noise)
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
    """One after the other, those that are not to be skipped, as long as the device answers."""
    from gpulayers import backend

    items = importlib.import_module(f"_gpu.{job['kind']}").items

    backend.use_backend("cupy")
    xp: Any = backend.module("cupy")
    for name, run in items(xp, job["batch"]):
        if name in job["skip"]:
            continue
        begin(name)
        try:
            value = run()
        except Exception as error:
            value = {"error": _told(error)}
        put(name, value)
        xp.cuda.Device().synchronize()  # where a fault ends the process, if it was one


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR] + f" ({last.name}, {last.lineno})"
