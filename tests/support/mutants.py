"""Mutants of the CUDA sources: small faults, each of which the tests of the kernels must notice.

A mutant (`tests.support.mutations`) runs through the cases of its source (`tests.kernels.cases`)
under the checker. One that no case notices is alive: a case is missing, or
the mutant is equivalent and is listed in ``tests/meta/equivalent_mutants.toml`` with the reason::

    python -m tests.support.mutants                # all sources
    python -m tests.support.mutants pool.cu        # one
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source
from tests.kernels.cases import CASES
from tests.kernels.launchers import EmulatedLauncher
from tests.support.cuda_on_cpu import CompileError, KernelError, LaunchError
from tests.support.mutations import Mutant, files, mutants, read

EQUIVALENT_FILE = Path(__file__).parents[1] / "meta" / "equivalent_mutants.toml"
TIME_LIMIT = 2.0  # seconds of processor time a launch: a mutant may loop for ever
USUAL = ("float32", "int32")


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: "caught", "alive", "equivalent" or "does not compile"."""

    mutant: Mutant
    outcome: str
    detail: str = ""


class _Recorder:
    """Notes what a case launches, and runs nothing; so a case ends at its first comparison."""

    def __init__(self) -> None:
        self.launched: set[tuple[str, str, str]] = set()

    def launch(self, name: str, dtype: str, index: str, *_: object, **__: object) -> None:
        self.launched.add((name, dtype, index))


@functools.cache
def _launches(case: Callable[[_Recorder], None]) -> set[tuple[str, str, str]]:
    recorder = _Recorder()
    with contextlib.suppress(AssertionError):  # nothing was computed
        case(recorder)
    return recorder.launched


def sources_with(mutant: Mutant) -> dict[str, str]:
    """The translation units that hold the mutant's line, changed."""
    original, changed = read(mutant.file), mutant.source()
    assert original != changed, f"{mutant} changes nothing"
    units = {unit: load_source(unit) for unit in table.FILES}
    if mutant.file in units:
        body = original.split('.cuh"\n')[-1]  # what follows the inlined headers
        return {mutant.file: units[mutant.file].replace(body, changed.split('.cuh"\n')[-1])}
    holding = {unit: text for unit, text in units.items() if original in text}
    return {unit: text.replace(original, changed) for unit, text in holding.items()}


def relevant_cases(mutant: Mutant) -> tuple[list[Callable], list[Callable]]:
    """Cases that may reach the mutant's line: the usual types, and the others."""
    units = sources_with(mutant)
    kernels = {
        spec.name
        for spec in table.KERNELS.values()
        if spec.file in units and spec.template.split("<")[0] == mutant.function
    } or {spec.name for spec in table.KERNELS.values() if spec.file in units}
    usual, others = [], []
    for unit in units:
        for case in CASES[unit]:
            launched = _launches(case)
            if any(name in kernels for name, _, _ in launched):
                is_usual = all((dtype, index) == USUAL for _, dtype, index in launched)
                (usual if is_usual else others).append(case)
    return usual, others


def judge(mutant: Mutant, thorough: bool = True) -> Verdict:
    """Runs the cases until one notices the mutant.

    Args:
        mutant: the change.
        thorough: try all data types, not only float32 with 32-bit indices, before giving up.
    """
    launcher = EmulatedLauncher(sources_with(mutant), time_limit=TIME_LIMIT)
    usual, others = relevant_cases(mutant)
    try:
        for case in [*usual, *(others if thorough or not usual else [])]:
            case(launcher)
    except KernelError as error:
        return Verdict(mutant, "caught", ", ".join(sorted(error.kinds)))
    except LaunchError:
        return Verdict(mutant, "caught", "launch refused")
    except AssertionError:
        return Verdict(mutant, "caught", "values")
    except CompileError as error:
        return Verdict(mutant, "does not compile", _first_error(str(error)))
    finally:
        for (file, *_), kernel in launcher._kernels.items():
            if file in launcher.sources:  # nobody will compile this again
                kernel.module.path.unlink(missing_ok=True)
    return Verdict(mutant, "alive")


def _first_error(log: str) -> str:
    return next((line for line in log.split("\n") if "error:" in line), log[:200])


def judge_all(
    chosen: Sequence[Mutant], processes: int = 2, thorough: bool = True
) -> Iterator[Verdict]:
    """Judges mutants in several processes, in order; one that crashes its process is caught."""
    known = {entry.key for entry in equivalent_mutants()}
    jobs = [_pool(processes).submit(judge, m, thorough and m.key not in known) for m in chosen]
    for mutant, job in zip(chosen, jobs, strict=True):
        try:
            verdict = job.result()
        except BrokenProcessPool:  # by this mutant or another one: try it alone
            _pool.cache_clear()
            verdict = _judge_alone(mutant)
        if verdict.outcome == "alive" and mutant.key in known:
            verdict = Verdict(mutant, "equivalent")
        yield verdict


@functools.cache
def _pool(processes: int) -> ProcessPoolExecutor:
    """The processes, the same for all sources: to start one takes as long as a few mutants."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _judge_alone(mutant: Mutant) -> Verdict:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(judge, mutant).result()
        except BrokenProcessPool:
            return Verdict(mutant, "caught", "crash")


# ---------------------------------------------------------------------------- equivalent mutants


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can notice, and why."""

    file: str
    function: str
    line: str
    mutation: str
    becomes: str
    reason: str

    @property
    def key(self) -> tuple[str, ...]:
        """The same as `Mutant.key`."""
        return (self.file, self.function, self.line, self.mutation, self.becomes)


def equivalent_mutants() -> list[Equivalent]:
    """The committed list."""
    entries = tomllib.loads(EQUIVALENT_FILE.read_text(encoding="utf-8")).get("mutant", [])
    return [Equivalent(**entry) for entry in entries]


def stale_entries(
    made: Iterable[Mutant], verdicts: Iterable[Verdict] = (), file: str | None = None
) -> list[str]:
    """Entries (of one file, or all) for mutants that are no longer made, or that a case catches."""
    made_keys = {mutant.key for mutant in made}
    outcomes: dict[tuple[str, ...], set[str]] = {}
    for verdict in verdicts:
        outcomes.setdefault(verdict.mutant.key, set()).add(verdict.outcome)
    found = []
    for entry in equivalent_mutants():
        if file is not None and entry.file != file:
            continue
        text = f"{entry.file}, {entry.function}, {entry.mutation}: {entry.line}"
        if entry.key not in made_keys:
            found.append(f"no such mutant any more: {text}")
        elif "equivalent" not in outcomes.get(entry.key, {"equivalent"}):
            found.append(f"caught, so not equivalent: {text}")
    return found


def count(verdicts: Iterable[Verdict]) -> str:
    """Such as "40 mutants: 38 caught (30 by the checker, 8 by values), 2 equivalent, 0 alive"."""
    outcomes = [verdict.outcome for verdict in verdicts]
    by_value = sum(verdict.detail == "values" for verdict in verdicts)
    caught = outcomes.count("caught")
    return (
        f"{len(outcomes)} mutants: {caught} caught ({caught - by_value} by the checker, "
        f"{by_value} by values), {outcomes.count('equivalent')} equivalent, "
        f"{outcomes.count('alive')} alive, {outcomes.count('does not compile')} do not compile"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges all mutants of the named files; lists those alive."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutants", description=__doc__)
    parser.add_argument("file", nargs="*", help="sources or headers of gpulayers/cuda; default all")
    parser.add_argument("--verbose", action="store_true", help="list the caught ones too")
    chosen = parser.parse_args(arguments)
    alive = 0
    for file in chosen.file or files():
        verdicts = []
        for verdict in judge_all(mutants(file)):
            verdicts.append(verdict)
            if chosen.verbose or verdict.outcome in ("alive", "does not compile"):
                print(f"{verdict.outcome} {verdict.detail}: {verdict.mutant}", flush=True)
        print(f"{file}: {count(verdicts)}", flush=True)
        alive += sum(verdict.outcome == "alive" for verdict in verdicts)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
