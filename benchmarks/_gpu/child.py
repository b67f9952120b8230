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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from _gpu import machine, nets, referee
from _gpu.clock import wall
from _gpu.nets import Item
from _gpu.record import LEFT_OUT, REFUSED
from _gpu.tables import EAGER
from gpulayers.errors import GPULayersError

_MARK, _BEGUN = "RESULT ", "BEGUN "
_LONGEST_ERROR = 600
_LOOK, _SHORTEST, _ENDING = 0.2, 1.0, 10.0  # seconds
_WINDOW = 20  # steps whose losses have one mean
_SHAKES = 2
_OF_MEGA = 'engine "mega"'
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
    """Have a process do a job; return what it put out, by name, and why it did not end well.

    That is an "error" if it failed or hung, "not measured" (`record.LEFT_OUT`) if `seconds` were
    over. What it had put out by then is returned too, and what it was at, if it had said so, has
    the same told of it.

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
    told: list[str | None] = []
    readers = [
        threading.Thread(target=_pass_on, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_pass_on, args=(process.stderr, told.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    found: Job = {}
    begun, over = "", dict[str, str]()

    def take(line: str) -> None:
        nonlocal begun
        if line.startswith(_BEGUN):
            begun = line.removeprefix(_BEGUN).strip()
        elif line.startswith(_MARK):
            entry = json.loads(line.removeprefix(_MARK))
            found[entry["what"]] = entry["value"]
            if heard is not None:
                heard(entry["what"], entry["value"])

    end, spoken = time.monotonic() + max(seconds, _SHORTEST), time.monotonic()
    while not over:
        try:
            line = lines.get(timeout=_LOOK)
            spoken = time.monotonic()
            if line is None:
                break
            take(line)
        except queue.Empty:
            if process.poll() is not None:
                break  # something that it started keeps its output open
        if time.monotonic() >= end:
            over = {LEFT_OUT: f"stopped after {seconds:.0f} s"}
        elif time.monotonic() - spoken > patience:
            over = {"error": f"no word for {patience:.0f} s"}
    if not over:  # its output is closed: it ends, or is not worth waiting for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(_SHORTEST, min(_ENDING, end - time.monotonic())))
    code = process.poll()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for reader in readers:
        reader.join(_SHORTEST)
    while not lines.empty():  # what it said at last
        take(lines.get() or "")
    if not over and code:
        text = "".join(line for line in told if line is not None).strip()
        over = {"error": f"exit code {code}: {text[-_LONGEST_ERROR:]}"}
    if over and begun and begun not in found:
        found[begun] = dict(over)
        if heard is not None:
            heard(begun, found[begun])
    return {**found, **over}


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
    if kind == "formulas":
        from _gpu import formulas

        for name, run in formulas.items():
            put(name, _tried(run))
        return
    if kind in DEVICE_PARTS:
        _device_items(job)
        return
    item, wanted = Item(*job["item"]), referee.read(Path(job["file"]))
    clocks = {name: job[name] for name in ("warm_up", "steps", "repeats")}
    for way in job["ways"]:
        found = _tried(lambda w=way: _timed(kind, item, w, job, wanted, clocks))
        put(way, found)
        if way in job["twice"] and "median_us" in found:  # for the noise
            again = _tried(lambda w=way: _timed(kind, item, w, {**job, "curve": 0}, wanted, clocks))
            again.pop("peak bytes", None)  # it would be that of both
            put(f"{way} again", again)


def _tried(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, or its error; or that this network is not for it, in its own words."""
    try:
        return run()
    except Exception as error:
        known = isinstance(error, GPULayersError) and _OF_MEGA in str(error)
        return {REFUSED if known else "error": _told(error)}


def _timed(
    kind: str, item: Item, way: str, job: Job, wanted: Any, clocks: dict[str, int]
) -> dict[str, Any]:
    """Check a way's first steps, follow its losses for some more, then time it."""
    subject = _subject(kind, item, way, job["device"])
    result, by_noise = wanted
    wrong = referee.judge(subject.checked(), result, item, by_noise)
    losses = subject.losses(job["curve"]) if job["curve"] else []
    found = wall(subject.run, subject.wait, **clocks, multiple=subject.multiple)
    at = {"clock": machine.clock()} if job["device"] == "cuda" else {}
    found = {**found, "off by": wrong, "peak bytes": subject.peak_bytes(), **subject.facts(), **at}
    if losses:
        found["curve"] = curve(losses)
    if losses and way == EAGER:
        del subject
        found["shaken curves"] = list(_shaken(kind, item, way, job))
    return found


def _shaken(kind: str, item: Item, way: str, job: Job) -> Iterator[list[float]]:
    """The losses where the inputs are off by the precision's rounding: how far they go apart from
    the others for that reason alone."""
    for seed in range(_SHAKES):
        with nets.shaken(seed, nets.ROUNDING[item.precision]):
            subject = _subject(kind, item, way, job["device"])
        subject.checked()
        yield curve(subject.losses(job["curve"]))


def curve(losses: list[float]) -> list[float]:
    """Means of `_WINDOW` losses one after the other."""
    starts = range(0, len(losses) - _WINDOW + 1, _WINDOW)
    return [sum(losses[i : i + _WINDOW]) / _WINDOW for i in starts]


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
    wanted = [(name, run) for name, run in items(xp, job["batch"]) if name not in job["skip"]]
    for name, run in sorted(wanted, key=lambda item: item[0] in job["last"]):
        begin(name)
        value = _tried(run)
        put(name, value)
        xp.cuda.Device().synchronize()  # where a fault ends the process, if it was one


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR] + f" ({last.name}, {last.lineno})"
