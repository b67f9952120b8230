"""Candidates put to the test: can they run, do they compute right, how long do they take.

1. All are compiled side by side (`cubins`); those that keep numbers outside registers ("spill"), or
   take more registers or shared memory than a block has, are left out.
2. Each computes once on random numbers, in memory full of NaN, and must agree with the reference.
3. Each is captured 20 times into a graph, on several sets of arrays in turn; what is 30 % slower
   than the fastest after one launch of its graph is left out, the others are launched 5 times.
4. The fastest by the median is taken; the rule's own choice unless that is 2 % slower.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from gpulayers.backend import Array
from gpulayers.cuda import graph, table
from gpulayers.cuda.compile import get_kernel, job_of
from gpulayers.cuda.cubins import Store, compile_all
from gpulayers.cuda.tune import pinned
from gpulayers.cuda.tune_key import Candidate, Key
from gpulayers.cuda.tune_work import WORKS, Work
from gpulayers.errors import GPULayersError

__all__ = ["Result", "Row", "measure"]

_log = logging.getLogger("gpulayers")

LAUNCHES = 20  # in a graph
REPEATS = 5  # of a graph
DROPPED = 1.3  # times the fastest
MARGIN = 0.98  # of the rule's own time that another must be below
MOST_BYTES = 1 << 30  # of all sets of arrays
_NAN_BYTE = 0xFF  # NaN in every floating type
#: half the distance of neighbouring numbers around one
_ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_TF32 = 2 * 2.0**-11  # both factors are rounded to 10 bits


class Row(NamedTuple):
    """What was found of one candidate: its time, or why it is out."""

    candidate: Candidate
    microseconds: float | None
    why_not: str


class Result(NamedTuple):
    """The candidate that was chosen, its time (None if nothing was measured), and the others."""

    choice: Candidate
    microseconds: float | None
    rows: list[Row]


def measure(key: Key, candidates: Sequence[Candidate]) -> Result:
    """Return the fastest of `candidates` on the current device; if none can be measured, the first.

    An operation that `tune_work.WORKS` does not have is not measured.
    """
    make = WORKS.get(key.op)
    if make is None:
        return Result(candidates[0], None, [])
    try:
        return _measured(key, make(key), candidates)
    except (cupy.cuda.memory.OutOfMemoryError, GPULayersError) as error:
        _log.warning("%s %s was not measured: %s", key.op, key.shape, error)
        return Result(candidates[0], None, [])


def _measured(key: Key, work: Work, candidates: Sequence[Candidate]) -> Result:
    rows: list[Row] = []
    jobs = {job_of(c.kernel, key.dtype, "int32", work.constants) for c in candidates}
    if len(jobs) > 1:  # a single one is compiled by CuPy, into CuPy's cache
        compile_all(sorted(jobs), Store())
    right: list[Candidate] = []
    inputs = work.inputs()
    host = [_on_host(array) for array in inputs]
    for candidate in candidates:
        why_not = _unfit(candidate, key, work)
        if why_not:
            _log.debug("%s %s: %s is out: %s", key.op, key.shape, candidate.label, why_not)
        else:
            why_not = _wrong(candidate, key, work, inputs, host)
            if why_not:
                _log.warning("%s %s by %s: %s", key.op, key.shape, candidate.label, why_not)
        if why_not:
            rows.append(Row(candidate, None, why_not))
        else:
            right.append(candidate)
    times = _times(key, work, inputs, right)
    rows += [Row(candidate, time, "") for candidate, time in times.items()]
    rows += [Row(c, None, "slower by 30 %") for c in right if c not in times]
    if not times:
        return Result(candidates[0], None, rows)
    best = min(times, key=lambda candidate: times[candidate])
    usual = times.get(candidates[0])
    if usual is not None and times[best] > MARGIN * usual:
        best = candidates[0]
    return Result(best, times[best], rows)


# ------------------------------------------------------------------------------------- can it run


def _unfit(candidate: Candidate, key: Key, work: Work) -> str:
    """Why a candidate's kernel is no good on this device, or nothing."""
    try:
        kernel: Any = get_kernel(candidate.kernel, key.dtype, "int32", work.constants)
        taken: dict[str, int] = kernel.attributes
    except GPULayersError as error:
        return str(error)
    spec = table.KERNELS[candidate.kernel]
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    if taken["local_size_bytes"]:
        return f"it keeps {taken['local_size_bytes']} bytes a thread outside registers"
    registers = taken["num_regs"] * spec.block
    if registers > device["regsPerBlock"]:
        return f"a block takes {registers} registers, it may {device['regsPerBlock']}"
    own, limit = taken["shared_size_bytes"], device["sharedMemPerBlock"]
    if spec.shared:
        try:  # the driver knows whether `own` counts what it keeps for itself
            kernel.max_dynamic_shared_size_bytes = spec.shared
        except Exception as error:
            if type(error).__name__ != "CUDADriverError":
                raise
            return f"a block takes {own} + {spec.shared} bytes of shared memory: {error}"
    elif own > limit:
        return f"a block takes {own} bytes of shared memory, it may {limit}"
    return ""


# --------------------------------------------------------------------------- does it compute right


def _wrong(
    candidate: Candidate, key: Key, work: Work, inputs: Sequence[Array], host: Sequence[Any]
) -> str:
    """What is wrong with a candidate's results, or nothing."""
    pool = cupy.cuda.MemoryPool()

    def poisoned(size: int) -> Any:
        memory = pool.malloc(size)
        if size:
            memory.memset_async(_NAN_BYTE, size)  # in the order of the stream that the kernel is in
        return memory

    choices = {key: candidate}
    try:
        with pinned(choices), cupy.cuda.using_allocator(poisoned):
            outputs = [_on_host(array) for array in work.run(inputs)]
    except GPULayersError as error:
        return str(error)
    finally:
        pool.free_all_blocks()  # CuPy's pools do not when they go
    if len(choices) > 1:
        return f"its work is not that of {key}, but of {list(choices)[1]}"
    unit = _ROUNDING[key.dtype]
    inner = _ROUNDING["float64" if key.dtype == "float64" else "float32"] * math.sqrt(work.terms)
    inner += _TF32 if key.precision == "tf32" else 0.0
    for wanted, got in work.expected(host, outputs):
        if not wanted.size:
            continue
        # sums of random terms: errors grow like the root of their number
        spread = math.sqrt(float(np.mean(np.square(wanted))))
        allowed = 16 * inner * spread + 4 * unit * np.abs(wanted)
        far = ~(np.abs(got - wanted) <= allowed)  # NaN is far from anything
        if far.any():
            place = tuple(int(i) for i in np.argwhere(far)[0])
            return (
                f"{int(far.sum())} of {wanted.size} results are wrong: {got[place]:.6g} "
                f"instead of {wanted[place]:.6g} at {place}"
            )
    return ""


def _on_host(array: Array) -> Any:
    """In float64, or as it is if not floating."""
    if array.dtype.itemsize == 2:
        array = array.astype("float32")
    values = array.get()
    return values.astype(np.float64) if values.dtype.kind == "f" else values


# -------------------------------------------------------------------------- how long does it take


def _times(
    key: Key, work: Work, inputs: Sequence[Array], candidates: Sequence[Candidate]
) -> dict[Candidate, float]:
    """Microseconds of a launch of each candidate that is not left out."""
    sets = _copies(inputs)
    recorder = graph.Recorder()
    graphs: dict[Candidate, Any] = {}
    for candidate in candidates:
        graphs[candidate] = _captured(recorder, key, work, sets, candidate)
    first: dict[Candidate, float] = {}
    for candidate, captured in graphs.items():
        milliseconds(captured, candidate)  # brings everything into place
        first[candidate] = milliseconds(captured, candidate)
    kept = [c for c in candidates if first[c] <= DROPPED * min(first.values())]
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in kept}
    for _ in range(REPEATS):  # in turn, so that a change of the clock rate meets all
        for candidate in kept:
            times[candidate].append(milliseconds(graphs[candidate], candidate))
    return {c: 1e3 * statistics.median(t) / LAUNCHES for c, t in times.items()}


def _copies(inputs: Sequence[Array]) -> list[list[Array]]:
    """Sets of arrays, together larger than twice the second-level cache where that is possible."""
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    size = max(sum(array.nbytes for array in inputs), 1)
    wanted = -(-2 * device["l2CacheSize"] // size)
    count = max(1, min(wanted, LAUNCHES, MOST_BYTES // size))
    return [list(inputs), *([array.copy() for array in inputs] for _ in range(count - 1))]


def _captured(
    recorder: graph.Recorder,
    key: Key,
    work: Work,
    sets: Sequence[Sequence[Array]],
    candidate: Candidate,
) -> Any:
    """`LAUNCHES` times the operation, on one set after the other."""

    def run() -> None:
        for i in range(LAUNCHES):
            work.run(sets[i % len(sets)])

    with pinned({key: candidate}):
        return recorder.capture(f"{key.op} by {candidate.label}", run)


def milliseconds(captured: Any, candidate: Candidate) -> float:
    """How long a launch of a graph takes; `candidate` says whose it is."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    graph.launch(captured)
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end)
