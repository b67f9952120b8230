"""What the device itself takes: launches, graph nodes, copies, products."""

from __future__ import annotations

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
_ERRORS = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 8e-3}  # of a product, Frobenius
_ROUNDS = 1000
_WARPS = 32  # a multiprocessor's, that read matrices
_AT_ONCE = 8  # instructions that do not wait for one another
_BARRIERS = """
extern "C" __global__ void barriers(unsigned* arrived, int rounds)
{
    for (int i = 0; i < rounds; ++i) wait(arrived, arrive(arrived, blockIdx.x == 0, gridDim.x));
}
"""
_LDMATRIX = """
extern "C" __global__ void read_matrices(long long* clocks, unsigned* sink, int rounds)
{
    extern __shared__ __align__(128) unsigned words[];  // 512 bytes for each k below
    for (int i = threadIdx.x; i < 8 * 128; i += blockDim.x) words[i] = i;
    __syncthreads();
    unsigned found[8][4] = {}, row = shared_address(words + threadIdx.x % 32 * 4), sum = 0;
    const long long begin = clock64();
    for (int i = 0; i < rounds; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k)
            load_matrices(found[k][0], found[k][1], found[k][2], found[k][3], row + 512 * k);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += found[k][0] ^ found[k][1] ^ found[k][2] ^ found[k][3];
    __syncthreads();
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
    if (sum == 12345u) *sink = sum;
}
"""
_CORES = """
template <typename T>
__global__ void multiply_all(float* sink, int rounds)
{
    float sum[8][4] = {};
    const unsigned a = threadIdx.x * 2654435761u & 0x3fff3fffu;  // finite, and not zeros
    const unsigned b = (blockIdx.x + 1) * 2246822519u & 0x3fff3fffu;
    for (int i = 0; i < rounds; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k)
            multiply_fragments(static_cast<const T*>(nullptr), sum[k][0], sum[k][1], sum[k][2],
                               sum[k][3], a, b, a, b, b, a);
    float total = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) total += sum[k][0] + sum[k][1] + sum[k][2] + sum[k][3];
    if (total == 12345.0f) *sink = total;
}
"""

Measured = dict[str, Any]


def items(xp: Any, _: int) -> Iterator[tuple[str, Callable[[], Measured]]]:
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
    yield "barrier of all blocks", lambda: _barrier(xp, count)
    yield "ldmatrix", lambda: _ldmatrix(xp, count)
    for precision in ("tf32", "bf16", "fp16"):
        yield f"tensor cores, {precision}", lambda p=precision: _cores(xp, count, p)
    for precision in _ERRORS:
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


def _source(headers: tuple[str, ...], code: str, *dtypes: str) -> dict[str, Any]:
    """What a RawModule of our own headers and a kernel takes."""
    from gpulayers.cuda import compile as compiler
    from gpulayers.cuda import table

    text = "\n".join((*map(compiler.load_source, headers), code))
    return {"code": text, "options": table.options(*dtypes)}


def _barrier(xp: Any, blocks: int) -> Measured:
    """A barrier of one block a multiprocessor, as the kernels over many blocks have it."""
    source = _source(("barrier.cuh",), _BARRIERS)
    kernel = xp.RawModule(**source, enable_cooperative_groups=True).get_function("barriers")
    arrived = xp.zeros(1, dtype="uint32")
    run = lambda: kernel((blocks,), (256,), (arrived, np.int32(_ROUNDS)))  # noqa: E731
    return {"us": 1e3 * milliseconds(xp, run, launches=5) / _ROUNDS}


def _ldmatrix(xp: Any, blocks: int) -> Measured:
    """Bytes a clock that a multiprocessor's warps read from shared memory into fragments."""
    kernel = xp.RawModule(**_source(("copies.cuh",), _LDMATRIX)).get_function("read_matrices")
    clocks, sink = xp.zeros(blocks, dtype="int64"), xp.zeros(1, dtype="uint32")
    for _ in range(2):
        args = clocks, sink, np.int32(_ROUNDS)
        kernel((blocks,), (_WARPS * 32,), args, shared_mem=512 * _AT_ONCE)
    longest = max(int(clocks.get().max()), 1)
    return {"bytes a clock": _WARPS * _ROUNDS * _AT_ONCE * 512 / longest}


def _cores(xp: Any, blocks: int, precision: str) -> Measured:
    """Products of fragments that lie in registers already: what the instruction can do."""
    dtype = {"tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    kind = {"tf32": "float", "bf16": "__nv_bfloat16", "fp16": "__half"}[precision]
    source = _source(("common.cuh", "fragments.cuh"), _CORES, dtype)
    name = f"multiply_all<{kind}>"
    kernel = xp.RawModule(**source, name_expressions=[name]).get_function(name)
    sink, blocks = xp.zeros(1, dtype="float32"), 4 * blocks
    run = lambda: kernel((blocks,), (_WARPS * 8,), (sink, np.int32(_ROUNDS)))  # noqa: E731
    took = milliseconds(xp, run, launches=5)
    each = 2 * 16 * 8 * (8 if precision == "tf32" else 16)
    return {"TFLOP/s": blocks * (_WARPS // 4) * _ROUNDS * _AT_ONCE * each / took / 1e9}


def _product(xp: Any, precision: str) -> Measured:
    """Our matrix product, checked against float64 on some of its rows."""
    from _gpu.kernels import in_precision, numbers_on
    from gpulayers.cuda import product

    n, draw = _PRODUCT, numbers_on(xp, precision)
    a, b = draw(n, n), draw(n, n)
    with in_precision(precision):
        found = product.gemm(a, b)[:64].astype("float32").get().astype("float64")
        left, right = (x.astype("float32").get().astype("float64") for x in (a[:64], b))
        wanted = left @ right
        wrong = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not wrong < _ERRORS[precision]:
            raise ArithmeticError(f"the product is off by {wrong:.1e}")
        took = milliseconds(xp, lambda: product.gemm(a, b), launches=5)
    return {"TFLOP/s": 2 * n**3 / took / 1e9, "error": wrong}
