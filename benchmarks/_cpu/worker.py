"""One contestant, in a process of its own: reads orders from standard input, one JSON a line.

    python -m _cpu.worker ours plan 2        (side, variant, threads)

``{"make": case, "save": file}`` builds the case and saves its results; ``{"run": k, "warm": w}``
times k calls after w untimed ones; ``{"rates": true}`` measures the machine; ``{"drop": true}``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np

from _cpu.cases import CASES
from _cpu.subject import Subject, UnsupportedError

REST, AT_MOST = 0.01, 1.0
"""Seconds in which a process at rest uses next to no CPU, and how long that is waited for."""
SIDES = {"ours": "_cpu.ours", "torch": "_cpu.pytorch", "numpy-ml": "_cpu.numpy_ml_side"}


def cpu_seconds() -> float:
    """CPU time this process has used, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def come_to_rest() -> None:
    """Wait until no thread of this process runs.

    The workers of a library look for more work after a call, those of OpenBLAS for 0.1 s: as long
    as a turn. They would take a core from the next contestant, whoever that is.
    """
    end = time.perf_counter() + AT_MOST
    while time.perf_counter() < end:
        before = time.process_time()  # of all threads
        time.sleep(REST)
        if time.process_time() - before < REST / 10:
            return


def timed(subject: Subject, count: int, warm: int) -> dict[str, Any]:
    """Median and least seconds of `count` calls, without the garbage collector; then rest."""
    before, times = cpu_seconds(), []
    gc.disable()
    for _ in range(warm):
        subject.run()
    for _ in range(count):
        start = time.perf_counter()
        subject.run()
        times.append(time.perf_counter() - start)
    gc.enable()
    come_to_rest()
    return {
        "seconds": statistics.median(times),
        "least": min(times),
        "cpu": cpu_seconds() - before,
    }


def rates(threads: int) -> dict[str, float]:
    """Best of several: GB/s of a copy (read and write counted), GFLOP/s of a float32 product."""
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    a = np.ones((1024, 1024), np.float32)
    out = np.empty_like(a)

    def copy(parts: int) -> None:
        pairs = zip(np.array_split(target, parts), np.array_split(source, parts), strict=True)
        workers = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def best(call: Any, amount: float) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return amount / min(times[2:]) / 1e9

    return {
        "copy GB/s, 1 thread": best(lambda: copy(1), 2.0 * source.nbytes),
        "copy GB/s": best(lambda: copy(threads), 2.0 * source.nbytes),
        "GEMM GFLOP/s": best(lambda: np.matmul(a, a, out=out), 2.0 * 1024**3),
    }


def serve(side: str, variant: str, threads: int) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes to standard error
    os.dup2(2, 1)
    try:
        if side == "torch":
            importlib.import_module("torch").set_num_threads(threads)
        maker = importlib.import_module(SIDES[side])
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    subject: Subject | None = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "make" in order:
            try:
                subject = maker.make(CASES[order["make"]], variant)
                found = subject.result()
                np.savez(order["save"], **found)
                del found
                # numpy-ml takes seconds for one call, and its result has just been computed
                answer = timed(subject, 1, 0 if side == "numpy-ml" else 2)
            except UnsupportedError as error:
                answer = {"unsupported": str(error)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        elif "run" in order and subject is not None:
            answer = timed(subject, order["run"], order["warm"])
        elif "rates" in order:
            answer = rates(threads)
        else:
            subject = None
            gc.collect()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
