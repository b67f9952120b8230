"""Contestants against each other: one process each, one running at a time, round by round.

In one process the worker threads of one library go on spinning after a call and take the cores
from the next contestant; here every contestant sleeps in its own process while another is timed.
That it sleeps is waited for after each turn, and a turn begins with calls that are not timed: the
first ones find cold caches and cores that have to wake, for every contestant alike.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _cpu.cases import Case
from gpulayers.errors import GPULayersError

HERE = Path(__file__).resolve().parents[1]
LOUD = 0.10  # share of the CPU that other processes may use in a round
WARM = 1.0  # as long as a turn, before it: threads at rest may come back to one processor, and stay
# there together for 20 to 70 ms


class CheckError(GPULayersError):
    """A contestant computes something else than PyTorch."""


class ContestantError(GPULayersError):
    """A contestant's process broke off, or raised."""


@dataclass(frozen=True)
class Entry:
    """Who takes part: a label, a side and its variant, an engine of gpulayers."""

    label: str
    side: str
    variant: str = ""
    engine: str = ""


def environment(threads: int, engine: str = "") -> dict[str, str]:
    """Return the environment of a contestant."""
    wanted = {"OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"}
    env = dict(os.environ) | {f"{name}_NUM_THREADS": str(threads) for name in wanted}
    env["GPULAYERS_THREADS"] = str(threads)
    env["GPULAYERS_BACKEND"] = "numpy"  # no time for looking for a GPU
    paths = [str(HERE), *(p for p in (os.environ.get("PYTHONPATH"),) if p)]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    # BLAS as it is by itself: a machine may pin it to the kernels of an older processor
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_ENABLE_INSTRUCTIONS"):
        env.pop(name, None)
    # an installed package has its byte code; in a checkout the first process writes it
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if engine:
        env["GPULAYERS_ENGINE"] = engine
    return env


class Contestant:
    """A worker process."""

    def __init__(self, entry: Entry, threads: int) -> None:
        self.entry = entry
        command = [sys.executable, "-m", "_cpu.worker", entry.side, entry.variant, str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads, entry.engine),
        )
        first = self._read()
        self.missing: str | None = first.get("missing")

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise ContestantError(
                f"the process of {self.entry.label} ended with code {self._process.wait()}"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def busy_seconds() -> float | None:
    """CPU time used on the machine by all processes, or None where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def check(found: dict[str, np.ndarray], gold: dict[str, np.ndarray], case: Case, who: str) -> float:
    """Return the largest error of results by name, relative to the largest number of each.

    The change of a parameter is compared with that of all parameters, if its own is below a
    thousandth of it: a bias in front of batch normalisation has no gradient but rounding errors.

    Raises
    ------
    CheckError
        If a result is missing, has another size, is not finite, or is off by more than
        ``case.tolerance``.
    """
    floor = max((abs(a).max() for k, a in gold.items() if k.startswith("change")), default=0.0)
    worst = 0.0
    for name, wanted in gold.items():
        if name not in found or found[name].size != wanted.size:
            shape = found[name].shape if name in found else "nothing"
            raise CheckError(f"{case.name}: {who}: {name}: expected {wanted.shape}, got {shape}")
        scale = max(float(abs(wanted).max()), 1e-3 * float(floor), 1e-30)
        off = float(abs(found[name].reshape(wanted.shape) - wanted.astype(float)).max()) / scale
        if not off <= case.tolerance:  # NaN too
            raise CheckError(
                f"{case.name}: {who} differs from PyTorch in {name}: relative error {off:.2g}, "
                f"allowed {case.tolerance:.2g}"
            )
        worst = max(worst, off)
    return worst


def calls(seconds: float, slot: float) -> int:
    """How many calls fill a part of a turn."""
    if seconds > 0.3:
        return 1
    return max(2, min(3000, int(slot / max(seconds, 1e-7))))


@dataclass
class Bout:
    """The rounds of one case: medians of each contestant by label, in seconds."""

    rounds: list[dict[str, float]]
    kept: int
    quiet: int
    others: float | None
    errors: dict[str, float]
    once: dict[str, float]  # numpy-ml, timed once
    least: dict[str, float]  # the fastest call of all rounds

    def median(self, label: str) -> float:
        return statistics.median(r[label] for r in self.rounds)

    def ratios(self, peer: str, label: str) -> list[float]:
        """Time of `peer` over that of `label`, in each round."""
        return [r[peer] / r[label] for r in self.rounds]


def keep(
    rounds: list[tuple[float, dict[str, float]]], enough: int
) -> tuple[list[dict[str, float]], int]:
    """Return the quiet rounds if there are `enough`, else as many of the quietest; and how many
    were quiet."""
    ordered = sorted(rounds, key=lambda row: row[0])
    quiet = sum(others <= LOUD for others, _ in ordered)
    return [row for _, row in ordered[: max(quiet, enough)]], quiet


def fight(
    case: Case, contestants: list[Contestant], folder: Path, rounds: int, slot: float
) -> Bout:
    """Check every contestant against PyTorch, then time them in turns.

    Raises
    ------
    CheckError, ContestantError
    """
    entered: list[tuple[Contestant, float]] = []
    errors: dict[str, float] = {}
    once: dict[str, float] = {}
    gold: dict[str, np.ndarray] | None = None
    for contestant in contestants:
        label = contestant.entry.label
        file = folder / "result.npz"
        answer = contestant.ask(make=case.name, save=str(file))
        if "error" in answer:
            raise ContestantError(f"{case.name}: {label}: {answer['error']}")
        if "unsupported" in answer:
            continue
        with np.load(file) as archive:
            found = {name: archive[name] for name in archive.files}
        if gold is None:
            gold = found  # PyTorch comes first
        errors[label] = check(found, gold, case, label)
        if contestant.entry.side == "numpy-ml":
            once[label] = answer["seconds"]
        else:
            entered.append((contestant, answer["seconds"]))
    rows: list[tuple[float, dict[str, float]]] = []
    least: dict[str, float] = {}
    others_known = busy_seconds() is not None
    enough = (rounds + 1) // 2
    for i in range(2 * rounds):
        if i >= rounds and sum(row[0] <= LOUD for row in rows) >= enough:
            break
        rows.append(_round(entered, i, slot, least))
    kept, quiet = keep(rows, enough)
    others = statistics.median(row[0] for row in rows) if others_known else None
    for contestant in contestants:
        contestant.ask(drop=True)
    return Bout(kept, len(kept), quiet, others, errors, once, least)


def _round(
    entered: list[tuple[Contestant, float]], i: int, slot: float, least: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """One turn each, the first another every time; and what share of the CPU others used."""
    first = (i * 3) % len(entered)
    row: dict[str, float] = {}
    busy, start, own = busy_seconds(), time.perf_counter(), -_parent_seconds()
    for contestant, seconds in entered[first:] + entered[:first]:
        answer = contestant.ask(run=calls(seconds, slot), warm=calls(seconds, WARM * slot))
        label = contestant.entry.label
        row[label] = answer["seconds"]
        least[label] = min(answer["least"], least.get(label, answer["least"]))
        own += answer["cpu"]
    own += _parent_seconds()
    after, took = busy_seconds(), time.perf_counter() - start
    if busy is None or after is None:
        return 0.0, row
    return max(0.0, (after - busy - own) / (took * (os.cpu_count() or 1))), row


def _parent_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
