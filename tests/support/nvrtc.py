"""Compiles every kernel of gpulayers for every architecture with NVRTC; needs no GPU and no driver.

NVRTC is the compiler that CuPy uses, so what passes here compiles there. Its log gives registers,
spills and shared memory of each kernel, its PTX shows what the code does. A budget file holds the
figures that were looked at and accepted::

    python -m tests.support.nvrtc                   # a table of all figures
    python -m tests.support.nvrtc --write-budget    # accept them: writes tests/static/budget.json
    python -m tests.support.occupancy --write       # and the tables that are made of them
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import getpass
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source
from tests.support import sample
from tests.support.cuda_on_cpu.toolchain import cuda_headers, locked

#: the last one is for the kernels that run on it alone
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "sm_90a")
BUDGET_FILE = Path(__file__).parents[1] / "static" / "budget.json"
CACHE_VARIABLE = "GPULAYERS_NVRTC_CACHE"
#: what CuPy 14 adds to the options of every RawModule (cupy/cuda/compiler.py)
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
REGISTER_STEP = 8  # registers are handed out to threads in eights


@dataclass(frozen=True)
class Resources:
    """What one kernel instance takes on one architecture, and what its PTX holds."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    barriers: int
    atomics: int
    double_instructions: int
    local_accesses: int
    tensor_products: int = 0  # of a warp
    group_products: int = 0  # of a warpgroup
    wide_loads: int = 0  # of 16 bytes from global memory
    wide_copies: int = 0  # of 16 bytes from there to shared memory


@dataclass(frozen=True)
class Compiled:
    """One source for one architecture: either the kernels, by name expression, or NVRTC's log."""

    kernels: dict[str, Resources]
    log: str


def unavailable_reason() -> str | None:
    """Why kernels cannot be compiled here, or None if they can."""
    if not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")):
        return "compiling kernels needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc"
    try:
        nvrtc_version()
        cuda_headers()
    except RuntimeError as error:
        return f"compiling kernels needs NVRTC and the CUDA headers: {error}"
    return None


@functools.cache
def nvrtc_version() -> str:
    """Version of the NVRTC library, such as "13.1"."""
    from cuda.bindings import nvrtc

    return ".".join(str(part) for part in _checked(nvrtc.nvrtcVersion()))


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of an NVRTC call, whose first item is its status."""
    status, *values = result
    if status.value != 0:
        raise RuntimeError(str(status))
    return values[0] if len(values) == 1 else values


def _buffer(size: int) -> bytes:
    """Bytes that NVRTC writes to. At least two: of one (an empty log) Python has a single object of
    each value, which everyone shares."""
    return bytes(size + 1)


class Program:
    """What NVRTC has made of a source: its log, whether it `failed`, and if not the names of the
    kernels in its output, by name expression."""

    def __init__(self, handle: Any, arguments: Sequence[str], expressions: Sequence[str]) -> None:
        from cuda.bindings import nvrtc

        self._handle = handle
        encoded = [argument.encode() for argument in (*arguments, f"-I{cuda_headers()}")]
        (status,) = nvrtc.nvrtcCompileProgram(handle, len(encoded), encoded)
        buffer = _buffer(_checked(nvrtc.nvrtcGetProgramLogSize(handle)))
        nvrtc.nvrtcGetProgramLog(handle, buffer)
        self.failed = status.value != 0
        self.log = buffer.decode(errors="replace").rstrip("\0 \n")
        self.log = self.log or (str(status) if self.failed else "")
        self.lowered = {} if self.failed else {name: self._lowered(name) for name in expressions}

    def _lowered(self, expression: str) -> str:
        from cuda.bindings import nvrtc

        return _checked(nvrtc.nvrtcGetLoweredName(self._handle, expression.encode())).decode()

    def ptx(self) -> str:
        """The PTX."""
        from cuda.bindings import nvrtc

        text = _buffer(_checked(nvrtc.nvrtcGetPTXSize(self._handle)))
        nvrtc.nvrtcGetPTX(self._handle, text)
        return text.decode().rstrip("\0")


@contextlib.contextmanager
def program(
    code: str, expressions: Sequence[str], arguments: Sequence[str], file: str
) -> Iterator[Program]:
    """A source compiled with these arguments."""
    from cuda.bindings import nvrtc

    handle = _checked(nvrtc.nvrtcCreateProgram(code.encode(), file.encode(), 0, [], []))
    try:
        for expression in expressions:
            _checked(nvrtc.nvrtcAddNameExpression(handle, expression.encode()))
        yield Program(handle, arguments, expressions)
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


def compile_source(
    code: str,
    name_expressions: Sequence[str],
    architecture: str,
    options: Sequence[str] = ("-std=c++17",),
    file_name: str = "kernel.cu",
) -> Compiled:
    """Compiles one source with the options that CuPy would use."""
    arguments = [f"-arch={architecture}", *options, *CUPY_OPTIONS, "--ptxas-options=-v"]
    with program(code, name_expressions, arguments, file_name) as compiled:
        if compiled.failed:
            return Compiled({}, compiled.log)
        log, ptx, lowered = compiled.log, compiled.ptx(), compiled.lowered
    usage, bodies = parse_log(log), ptx_bodies(ptx)
    kernels = {
        expression: Resources(**usage[symbol], **inspect_ptx(bodies[symbol]))
        for expression, symbol in lowered.items()
    }
    return Compiled(kernels, "")


def parse_log(log: str) -> dict[str, dict[str, int]]:
    """Symbol -> registers, shared memory, stack and spills, from the log of ptxas -v."""
    entry = re.compile(r"entry function '(\S+)' for '\w+'(.*?)(?=entry function|\Z)", re.DOTALL)

    def number(pattern: str, text: str, default: int | None = 0) -> int:
        found = re.search(pattern, text)
        if found is None and default is None:
            raise RuntimeError(f"no {pattern!r} in NVRTC's log:\n{text}")
        return int(found[1]) if found else default or 0

    return {
        symbol: {
            "registers": number(r"Used (\d+) registers", text, None),
            "shared_bytes": number(r"(\d+) bytes smem", text),
            "stack_bytes": number(r"(\d+) bytes stack frame", text, None),
            "spill_bytes": number(r"(\d+) bytes spill stores", text, None)
            + number(r"(\d+) bytes spill loads", text, None),
        }
        for symbol, text in entry.findall(log)
    }


def ptx_bodies(ptx: str) -> dict[str, str]:
    """Symbol -> text of each kernel, and of the functions before it that it may call."""
    kernel = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\n\}", re.DOTALL)
    return {symbol: text for symbol, text in kernel.findall(ptx)}


def inspect_ptx(body: str) -> dict[str, int]:
    """Counts of what the lint looks at."""

    def count(pattern: str) -> int:
        return len(re.findall(pattern, body, re.MULTILINE))

    return {
        "barriers": count(r"^\s*(?:@!?%\w+\s+)?bar(?:rier)?\.(?:cta\.)?(?:sync|red)"),
        "atomics": count(r"\b(?:atom|red)\.\w"),
        "double_instructions": count(r"\.f64\s+%"),
        "tensor_products": count(r"\bmma\.sync"),
        "group_products": count(r"\bwgmma\.mma_async"),
        "wide_loads": count(r"\bld\.global(?:\.nc)?\.v4\.[a-z]32"),
        "wide_copies": count(r"\bcp\.async\.cg\.shared\.global\b"),
        "local_accesses": count(r"\b(?:ld|st)\.local\b|^\s*\.local\b"),
    }


# ------------------------------------------------------------------------------ the whole library


@dataclass(frozen=True)
class Job:
    """One source of gpulayers/cuda for one architecture."""

    file: str
    architecture: str

    @property
    def instances(self) -> tuple[str, ...]:
        """The kernels that the architecture can run and the tests meet."""
        return sample.compiled(self.file, self.architecture)

    def run(self) -> Compiled:
        """Compiles, or finds the result of an earlier run in the cache."""
        code, expressions = load_source(self.file), self.instances
        options = table.options(*table.C_TYPES)
        key = "\0".join([code, *expressions, *options, self.architecture, nvrtc_version()])
        key += Path(__file__).read_text(encoding="utf-8") + str(cuda_headers())
        path = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:24]
        with locked(path.with_suffix(".lock")):  # pytest-xdist workers want the same results
            if not path.exists():
                compiled = compile_source(code, expressions, self.architecture, options, self.file)
                text = json.dumps(dataclasses.asdict(compiled))
                path.with_suffix(".new").write_text(text)
                path.with_suffix(".new").rename(path)
        stored = json.loads(path.read_text())
        kernels = {name: Resources(**values) for name, values in stored["kernels"].items()}
        return Compiled(kernels, stored["log"])


def tested() -> list[Job]:
    """What the tests compile: a source for the oldest or the newest architecture in turn, those
    with tensor cores for the newest; with every case each source for all of them."""
    *usual, own = ARCHITECTURES
    alone = [Job(file, own) for file in table.FILES if sample.compiled(file, own)]
    if sample.ALL:
        return [*(Job(file, each) for each in usual for file in table.FILES), *alone]
    newer = {spec.file for spec in table.KERNELS.values() if spec.oldest}
    return [
        *(
            Job(file, usual[-1 if file in newer or k % 2 else 0])
            for k, file in enumerate(table.FILES)
        ),
        *alone,
    ]


def cache_folder() -> Path:
    default = Path(tempfile.gettempdir()) / f"gpulayers-nvrtc-{getpass.getuser()}"
    folder = Path(os.environ.get(CACHE_VARIABLE, default))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _run(job: Job) -> Compiled:
    return job.run()


def _take(every_case: bool) -> None:
    """A new process has read the environment alone."""
    sample.ALL = every_case


def compile_all(processes: int = 2, backwards: bool = False) -> dict[Job, Compiled]:
    """All that the tests meet. NVRTC is serial in a process, hence several.

    Two callers, one going backwards, share the work: each finds the other's results in the cache.
    """
    jobs = tested()
    if backwards:
        jobs.reverse()
    if processes == 1:
        return {job: job.run() for job in jobs}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _take, (sample.ALL,)) as pool:
        return dict(zip(jobs, pool.map(_run, jobs), strict=True))


# ----------------------------------------------------------------------------------------- budget


def make_budget(compiled: dict[Job, Compiled]) -> dict[str, Any]:
    """Figures of all kernels in the form of the budget file, registers rounded up to eights."""
    kernels: dict[str, Any] = {}
    for job, result in compiled.items():
        if result.log:
            raise RuntimeError(f"{job.file} does not compile for {job.architecture}:\n{result.log}")
        for name, resources in result.kernels.items():
            entry = kernels.setdefault(name, {"shared_bytes": {}, "registers": {}})
            entry["shared_bytes"][job.architecture] = resources.shared_bytes
            rounded = -(-resources.registers // REGISTER_STEP) * REGISTER_STEP
            entry["registers"][job.architecture] = rounded
    return {"nvrtc": nvrtc_version(), "kernels": kernels}


def format_budget(budget: dict[str, Any]) -> str:
    """JSON with one line a kernel, so that changes are easy to read."""
    entries = budget["kernels"].items()
    body = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries)
    return f'{{\n  "nvrtc": {json.dumps(budget["nvrtc"])},\n  "kernels": {{\n{body}\n  }}\n}}\n'


def over_budget(
    compiled: dict[Job, Compiled], budget: dict[str, Any], names: Iterable[str]
) -> list[str]:
    """What the named kernels take beyond their budget, a line each."""
    found = []
    for name in names:
        allowed = budget["kernels"].get(name)
        if allowed is None:
            found.append(f"{name} is not in the budget")
            continue
        for job, result in compiled.items():
            if name in result.kernels:
                taken, limit = result.kernels[name], allowed["registers"].get(job.architecture, 0)
                shared = allowed["shared_bytes"].get(job.architecture, 0)
                excess = _excess(taken, limit, shared)
                found += [f"{name} on {job.architecture}: {text}" for text in excess]
    return found


def _excess(taken: Resources, registers: int, shared_bytes: int) -> Iterator[str]:
    if taken.registers > registers:
        yield f"{taken.registers} registers, budget {registers}"
    if taken.spill_bytes or taken.stack_bytes:
        yield f"spills {taken.spill_bytes}, stack {taken.stack_bytes} bytes"
    if taken.shared_bytes != shared_bytes:
        yield f"{taken.shared_bytes} bytes shared, budget {shared_bytes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures, or writes them to the budget file."""
    sample.ALL = True
    parser = argparse.ArgumentParser(prog="python -m tests.support.nvrtc", description=__doc__)
    parser.add_argument("--write-budget", action="store_true", help=f"write {BUDGET_FILE.name}")
    chosen = parser.parse_args(arguments)
    reason = unavailable_reason()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    compiled = compile_all()
    failures = {job: result.log for job, result in compiled.items() if result.log}
    for job, log in failures.items():
        print(f"{job.file} does not compile for {job.architecture}:\n{log}", file=sys.stderr)
    if failures:
        return 1
    if chosen.write_budget:
        BUDGET_FILE.write_text(format_budget(make_budget(compiled)))
        print(f"wrote {BUDGET_FILE}")
        return 0
    print(_figures(compiled))
    return 0


def _figures(compiled: dict[Job, Compiled]) -> str:
    """A table: registers on each architecture, shared memory, the largest spill."""
    titles = "".join(f"{architecture[3:]:>5}" for architecture in ARCHITECTURES)
    lines = [f"{'registers':66}{titles}{'shared':>8}{'spills':>8}"]
    for file in table.FILES:
        for name in table.instances(file):
            jobs = [compiled.get(Job(file, arch), Compiled({}, "")) for arch in ARCHITECTURES]
            row = [job.kernels[name] for job in jobs if name in job.kernels]
            registers = "".join(f"{figures.registers:5}" for figures in row).rjust(30)
            spills = max(figures.spill_bytes for figures in row)
            shared = max(figures.shared_bytes for figures in row)
            lines.append(f"{name:66}{registers}{shared:8}{spills:8}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
