"""Kernels compiled side by side, and their machine code on disk: for the candidates of `tune`.

Two files a kernel: ``<digest of the job>.json`` says what the machine code is of and how the kernel
is called in it, ``<digest of the machine code>.cubin`` is that. Each is put into its place at once,
and what does not fit together (cut off, changed, of another program) counts as missing.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gpulayers.cuda import tune_worker
from gpulayers.cuda.tune_table import folder, write
from gpulayers.threads import physical_cores

__all__ = ["Cubin", "Job", "Store", "compile_all", "nvrtc_path", "processors"]

_log = logging.getLogger("gpulayers")

FORMAT = 1
MOST_PROCESSES = 8


class Job(NamedTuple):
    """A kernel to be compiled.

    Attributes
    ----------
    code, file : str
        The whole source, and its name for messages.
    expression : str
        The instance of its template.
    options : tuple of str
        Of the compiler.
    architecture : str
        ``"sm_90"``.
    nvrtc : str
        Version of the compiler.
    """

    code: str
    file: str
    expression: str
    options: tuple[str, ...]
    architecture: str
    nvrtc: str

    @property
    def facts(self) -> dict[str, Any]:
        """All that the machine code depends on."""
        facts = self._asdict()
        facts["code"] = hashlib.sha256(self.code.encode()).hexdigest()
        return {**facts, "options": list(self.options), "format": FORMAT}


class Cubin(NamedTuple):
    """Machine code on disk, and the kernel's name in it."""

    path: Path
    symbol: str


class Store:
    """Machine code in a folder. Several processes may use it at once."""

    def __init__(self, place: Path | None = None) -> None:
        self.folder = place or folder() / "kernels"

    def _head(self, job: Job) -> Path:
        text = json.dumps(job.facts, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def find(self, job: Job) -> Cubin | None:
        """The machine code of `job`, if it is there and sound."""
        try:
            head: Any = json.loads(self._head(job).read_text(encoding="utf-8"))
            if head["facts"] != job.facts:
                return None
            path, symbol = self._body(head["digest"]), str(head["symbol"])
            content = path.read_bytes()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        sound = hashlib.sha256(content).hexdigest() == head["digest"]
        return Cubin(path, symbol) if sound else None

    def _body(self, digest: str) -> Path:
        return self.folder / f"{digest}.cubin"

    def put(self, job: Job, content: bytes, symbol: str) -> None:
        """Keep the machine code of `job`.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256(content).hexdigest()
        write(self._body(digest), content)
        head = {"facts": job.facts, "digest": digest, "symbol": symbol}
        write(self._head(job), json.dumps(head).encode())

    def forget(self, job: Job) -> None:
        """Machine code that the driver refuses is not offered again."""
        with contextlib.suppress(OSError):
            self._head(job).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files of the store."""
        for ending in ("*.json", "*.cubin"):
            for path in self.folder.glob(ending):
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.json")))


def _found(what: str, name: str) -> Any:
    """What CuPy's helper for finding CUDA finds by its function `what`, or None."""
    try:
        return getattr(importlib.import_module("cuda.pathfinder"), what)(name)
    except Exception as error:  # no CUDA here: each version of the package has errors of its own
        _log.debug("%s(%r): %s", what, name, error)
        return None


@functools.cache
def nvrtc_path() -> str | None:
    """The NVRTC library that CuPy loads, or None if it is not found by itself."""
    return getattr(_found("load_nvidia_dynamic_lib", "nvrtc"), "abs_path", None)


@functools.cache
def include_options() -> tuple[str, ...]:
    """Where the headers of half precision are."""
    folder = _found("find_nvidia_header_directory", "cudart")
    return (f"-I{folder}",) if folder else ()


def compile_all(jobs: Sequence[Job], store: Store, processes: int | None = None) -> list[str]:
    """Compile what the store does not have yet, in several processes; return what went wrong.

    A job that fails is left to CuPy, whose error then says why.

    Parameters
    ----------
    processes : int, optional
        At most so many; None: as many as there are processors for.
    """
    library = nvrtc_path()
    missing = [job for job in dict.fromkeys(jobs) if store.find(job) is None]
    if library is None or not missing:
        return []
    count = max(1, min(processes or processors(), len(missing)))
    shares = [missing[i::count] for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(functools.partial(_run, library), shares))
    failed: list[str] = []
    for share, found in zip(shares, answers, strict=True):
        for job, answer in zip(share, found, strict=False):
            if "cubin" in answer:
                try:
                    store.put(job, base64.b64decode(answer["cubin"]), answer["symbol"])
                except OSError as error:
                    failed.append(f"{store.folder}: {error}")
            else:
                failed.append(f"{job.expression}: {answer.get('error')}")
        failed += [f"{job.expression}: no answer" for job in share[len(found) :]]
    for text in failed:
        _log.debug("not compiled ahead: %s", text)
    return failed


def processors() -> int:
    """How many processes compile at most."""
    return min(physical_cores(), MOST_PROCESSES)


def _run(library: str, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The answers of a process to which these jobs were given; fewer if it broke off."""
    rows = [
        {
            "code": job.code,
            "file": job.file,
            "expression": job.expression,
            "options": [f"-arch={job.architecture}", *job.options, *include_options()],
        }
        for job in jobs
    ]
    try:
        ended = subprocess.run(
            [sys.executable, "-I", tune_worker.__file__],
            input=json.dumps({"library": library, "jobs": rows}),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:  # no interpreter to start, as in a program frozen into one file
        _log.debug("no process to compile in: %s", error)
        return []
    answers: list[dict[str, Any]] = []
    for line in ended.stdout.splitlines():
        try:
            answers.append(json.loads(line))
        except ValueError:
            break
    return answers
