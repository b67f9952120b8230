"""Time the CUDA kernels, the first use of a network, and training steps, on one GPU.

    python benchmarks/gpu.py               # a table, and benchmarks/results/<device>.csv
    python benchmarks/gpu.py --batch 64 --out other.csv

A kernel's floor is its bytes, each read or written once, over the speed of a plain copy measured on
the same device. `reference` is the same operation as array formulas on CuPy. Times are medians of
groups of launches between two events, after a warm-up; arrays start as random numbers.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulayers import activations, backend, models
from gpulayers.errors import BackendError
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

RESULTS = Path(__file__).parent / "results"
HEADER = ("what", "shape", "dtype", "ms", "GB/s", "share of copy", "reference ms")


@dataclass(frozen=True)
class Case:
    """One operation: `run(engine)` launches it, `moved` is the bytes it cannot avoid."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    run: Callable[[Any], Any]
    moved: int


def milliseconds(xp: Any, run: Callable[[], Any], launches: int = 20, groups: int = 7) -> float:
    """Median time of one call, between events on the current stream."""
    for _ in range(3):
        run()
    times = []
    for _ in range(groups):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        for _ in range(launches):
            run()
        end.record()
        end.synchronize()
        times.append(xp.cuda.get_elapsed_time(start, end) / launches)
    return statistics.median(times)


def copy_speed(xp: Any, megabytes: int) -> float:
    """Bytes a second of a device-to-device copy, read and write counted."""
    source = xp.zeros(megabytes << 18, dtype="float32")
    target = xp.empty_like(source)
    return 2e3 * source.nbytes / milliseconds(xp, lambda: xp.copyto(target, source))


def cases(xp: Any, batch: int, dtype: str) -> list[Case]:
    """The kernels on the shapes of a small VGG's second convolution (32 channels, 32 x 32)."""

    def numbers(*shape: int) -> Any:
        return xp.random.standard_normal(shape).astype(dtype)

    n, hw, ch = batch, 32, 32
    window, pool = Window((3, 3), pad=(1, 1, 1, 1)), Window((2, 2), (2, 2))
    x, dy = numbers(n, hw, hw, ch), numbers(n, hw // 2, hw // 2, ch)
    engine = kernels_for(x)
    columns = engine.im2col(x, window)
    argmax = engine.max_pool2d_forward(x, pool)[1]
    bias, act = numbers(ch), activations.ReLU()
    logits, labels = numbers(64 * n, 10), xp.zeros(64 * n, dtype="int64")
    probs = engine.softmax_forward(logits)
    param, grad, mean = (numbers(n * 32768) for _ in range(3))
    var = xp.ones_like(param)
    gradient = x.copy()
    im, col, small = x.nbytes, columns.nbytes, dy.nbytes + argmax.nbytes
    table: list[tuple[str, Any, int, Callable[[Any], Any]]] = [
        ("im2col", x, im + col, lambda e: e.im2col(x, window)),
        ("col2im", x, im + col, lambda e: e.col2im(columns, x.shape, window, "gather")),
        ("col2im scatter", x, im + col, lambda e: e.col2im(columns, x.shape, window, "scatter")),
        ("max_pool2d_forward", x, im + small, lambda e: e.max_pool2d_forward(x, pool)),
        (
            "max_pool2d_backward",
            x,
            im + small,
            lambda e: e.max_pool2d_backward(dy, argmax, x.shape, pool),
        ),
        ("avg_pool2d_forward", x, im + dy.nbytes, lambda e: e.avg_pool2d_forward(x, pool)),
        (
            "avg_pool2d_backward",
            x,
            im + dy.nbytes,
            lambda e: e.avg_pool2d_backward(dy, x.shape, pool),
        ),
        ("bias_activation", x, 3 * im, lambda e: e.bias_activation(gradient, bias, act)),
        ("activation_backward", x, 3 * im, lambda e: e.activation_backward(gradient, x, act)),
        ("bias_grad", x, im, lambda e: e.bias_grad(x)),
        (
            "softmax_cross_entropy_forward",
            logits,
            2 * logits.nbytes,
            lambda e: e.softmax_cross_entropy_forward(logits, labels),
        ),
        (
            "softmax_cross_entropy_backward",
            logits,
            2 * logits.nbytes,
            lambda e: e.softmax_cross_entropy_backward(probs, labels, 0.01),
        ),
        (
            "adam_update",
            param,
            7 * param.nbytes,
            lambda e: e.adam_update(param, grad, mean, var, 1e-3, 0.9, 0.999, 1e-7, 10),
        ),
        (
            "philox_words",
            param,
            8 * param.size,
            lambda e: e.philox_words(xp, (1, 2), 3, param.size),
        ),
    ]
    return [Case(name, a.shape, dtype, run, moved) for name, a, moved, run in table]


FIRST_USE = """
import time
import numpy as np
from gpulayers import backend, losses, models
with backend.use_backend("cupy"):
    xp = backend.module("cupy")
    net, loss = models.build("lenet"), losses.SoftmaxCrossEntropy()
    images = xp.asarray(np.zeros(({batch}, 28, 28, 1), "f4"))
    labels = xp.asarray(np.zeros({batch}, "i8"))
    xp.zeros(1)
    def step():
        start = time.perf_counter()
        loss.forward(labels, net.forward(images))
        net.backward(loss.backward())
        net.update()
        xp.cuda.Stream.null.synchronize()
        return time.perf_counter() - start
    print("seconds", step(), min(step() for _ in range(20)))
"""


def first_use(batch: int) -> tuple[float, float]:
    """Seconds of the first LeNet training step with an empty kernel cache, and of a later one."""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE.format(batch=batch)],
            env={**os.environ, "CUPY_CACHE_DIR": empty},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise BackendError(f"the first training step failed:\n{done.stderr}")
    first, later = done.stdout.split()[-2:]
    return float(first), float(later)


def planned_step(xp: Any, batch: int, steps: int = 200, warm_up: int = 20) -> float:
    """Milliseconds of wall clock of a LeNet step by its plan, one CUDA graph a step."""
    network = models.build("lenet", optimizer="SGD(lr=0.01, momentum=0.9)")
    images = xp.random.standard_normal((batch, 28, 28, 1)).astype("float32")
    labels = xp.zeros(batch, dtype="int64")
    plan = network.compile(batch_shape=images.shape)
    for _ in range(warm_up):
        plan.step(images, labels)
    xp.cuda.Stream.null.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        plan.step(images, labels)
    xp.cuda.Stream.null.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps


def measure(xp: Any, batch: int, dtypes: tuple[str, ...], copy_megabytes: int) -> list[tuple]:
    """Rows under HEADER for every kernel."""
    peak = copy_speed(xp, copy_megabytes)
    rows: list[tuple] = [("copy", (copy_megabytes << 18,), "float32", "", peak / 1e9, 1.0, "")]
    for dtype in dtypes:
        for case in cases(xp, batch, dtype):
            engine = kernels_for(xp.empty(0, dtype=dtype))
            took = milliseconds(xp, lambda run=case.run, e=engine: run(e))
            slow = milliseconds(xp, lambda run=case.run: run(Reference()), launches=5, groups=3)
            speed = 1e3 * case.moved / took
            rows.append((case.name, case.shape, dtype, took, speed / 1e9, speed / peak, slow))
    return rows


def cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the CUDA kernels on one GPU.")
    parser.add_argument("--batch", type=int, default=512, help="images in a batch")
    parser.add_argument("--dtypes", default="float32,float16", help="comma-separated")
    parser.add_argument("--out", type=Path, help="CSV file (default: results/<device>.csv)")
    args = parser.parse_args()
    try:
        backend.use_backend("cupy")
    except BackendError as error:
        print(f"benchmarks/gpu.py needs a CUDA device. {error}", file=sys.stderr)
        return 1
    xp = backend.module("cupy")
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
    device = properties["name"].decode()
    rows = measure(xp, args.batch, tuple(args.dtypes.split(",")), copy_megabytes=256)
    for batch in (64, 1024):
        first, later = first_use(batch)
        rows.append(("LeNet first step, cold cache", (batch,), "float32", 1e3 * first, "", "", ""))
        rows.append(("LeNet step", (batch,), "float32", 1e3 * later, "", "", ""))
        planned = planned_step(xp, batch)
        rows.append(("LeNet step, planned", (batch,), "float32", planned, "", "", ""))
    widths = [max(len(cell(row[k])) for row in [HEADER, *rows]) for k in range(len(HEADER))]
    for row in [HEADER, *rows]:
        print("  ".join(cell(value).ljust(width) for value, width in zip(row, widths, strict=True)))
    out = args.out or RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*HEADER, time.strftime("%Y-%m-%d"), device))
        writer.writerows([[cell(value) for value in row] for row in rows])
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
