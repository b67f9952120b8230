"""What the device itself takes: launches, graph nodes, copies, products."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from _gpu.clock import milliseconds

_CHAIN = 64  # launches in a graph
_COPY = 1024  # megabytes
_PRODUCT = 4096  # rows and columns
_SOURCE = r"""
extern "C" __global__ void nothing(float* x) {}
extern "C" __global__ void touch(float* x, int count)
{
    const int stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) x[i] += 1.0f;
}
"""

Measured = dict[str, Any]


def items(xp: Any) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """Yield the name of each measurement and what makes it."""
    module = xp.RawModule(code=_SOURCE, options=("-std=c++17",))
    count = int(xp.cuda.Device().attributes["MultiProcessorCount"])
    nothing, touch = module.get_function("nothing"), module.get_function("touch")
    x = xp.zeros(1 << 22, dtype="float32")
    yield "launch from the host", lambda: _host(xp, lambda: nothing((1,), (32,), (x,)))
    for blocks in (1, count):

        def empty(blocks: int = blocks) -> None:
            nothing((blocks,), (256,), (x,))

        yield f"graph node, {blocks} blocks", lambda run=empty: _graph(xp, run)
    for size in (1 << 16, 1 << 22):

        def moving(size: int = size) -> None:
            touch((count,), (256,), (x, np.int32(size)))

        yield f"graph node, {size * 8 >> 10} KB", lambda run=moving: _graph(xp, run)
    yield (
        "graph launch from the host",
        lambda: _graph_from_host(xp, lambda: nothing((1,), (32,), (x,))),
    )
    yield "copy", lambda: {"TB/s": copy_speed(xp, _COPY) / 1e12}
    for precision in ("fp32", "tf32"):
        yield f"product {_PRODUCT}, {precision}", lambda p=precision: _product(xp, p)


def copy_speed(xp: Any, megabytes: int) -> float:
    """Bytes a second of a device-to-device copy, read and write counted."""
    source = xp.zeros(megabytes << 18, dtype="float32")
    target = xp.empty_like(source)
    return 2e3 * source.nbytes / milliseconds(xp, lambda: xp.copyto(target, source))


def _host(xp: Any, run: Callable[[], None], launches: int = 2000) -> Measured:
    for _ in range(200):
        run()
    xp.cuda.Device().synchronize()
    begin = time.perf_counter()
    for _ in range(launches):
        run()
    took = time.perf_counter() - begin
    xp.cuda.Device().synchronize()
    return {"us": 1e6 * took / launches}


def _captured(xp: Any, run: Callable[[], None], count: int) -> Any:
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        run()
        stream.synchronize()
        stream.begin_capture()
        for _ in range(count):
            run()
        return stream.end_capture()


def _graph(xp: Any, run: Callable[[], None]) -> Measured:
    graph = _captured(xp, run, _CHAIN)
    return {
        "us": 1e3 * milliseconds(xp, lambda: graph.launch(xp.cuda.get_current_stream())) / _CHAIN
    }


def _graph_from_host(xp: Any, run: Callable[[], None]) -> Measured:
    graph = _captured(xp, run, 1)
    return _host(xp, lambda: graph.launch(xp.cuda.get_current_stream()), launches=500)


def _product(xp: Any, precision: str) -> Measured:
    """Our matrix product, checked against float64 on some of its rows."""
    from gpulayers.cuda import product

    n, rng = _PRODUCT, np.random.default_rng(0)  # CuPy's own generator needs cuRAND
    a, b = (xp.asarray(rng.standard_normal((n, n), np.float32)) for _ in range(2))
    with _in(precision):
        found = product.gemm(a, b)[:64].get().astype("float64")
        wanted = a[:64].get().astype("float64") @ b.get().astype("float64")
        wrong = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not wrong < (1e-5 if precision == "fp32" else 2e-3):
            raise ArithmeticError(f"the product is off by {wrong:.1e}")
        took = milliseconds(xp, lambda: product.gemm(a, b), launches=5)
    return {"TFLOP/s": 2 * n**3 / took / 1e9, "error": wrong}


def _in(precision: str) -> Any:
    if precision == "fp32":
        return contextlib.nullcontext()
    return importlib.import_module("gpulayers.cuda.precision").use_precision(precision)
