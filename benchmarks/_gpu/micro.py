"""What the device itself takes: launches, graph nodes, copies, products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from _gpu.clock import milliseconds
from _gpu.correct import Poison

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
#: multiply-adds that do not wait for one another
_FMA = """
extern "C" __global__ void multiply_add(float* out, float factor, float term, int rounds)
{
    float x[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = static_cast<float>(threadIdx.x + k);
#pragma unroll 8
    for (int i = 0; i < rounds; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k) x[k] = fmaf(x[k], factor, term);
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += x[k];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""
#: in each round a block reads what another one read before, which is not in its own cache
_READS = """
extern "C" __global__ void read_again(const uint4* words, unsigned* sums, int count, int rounds)
{
    const int all = gridDim.x * blockDim.x, own = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (int k = 0; k < rounds; ++k) {
        const int first = k * 5 * blockDim.x;
#pragma unroll 4
        for (int i = own; i < count; i += all) {
            const uint4 read = words[(i + first) & (count - 1)];  // count is a power of two
            sum += read.x + read.y + read.z + read.w;
        }
    }
    sums[own] = sum;
}
"""
_LEAST_READ, _MOST_READ = 10, 1 << 24  # 2**10 times 16 bytes; bytes
_READ_ROUNDS = 50
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
    yield "second-level cache", lambda: _cache(xp, 4 * count)
    yield "multiply-add, fp32", lambda: _multiply_add(xp, 8 * count)
    yield "barrier of all blocks", lambda: _barrier(xp, count)
    yield "ldmatrix", lambda: _ldmatrix(xp, count)
    for precision in ("tf32", "bf16", "fp16"):
        yield f"tensor cores, {precision}", lambda p=precision: _cores(xp, count, p)
    for precision in _ERRORS:
        yield f"product {_PRODUCT}, {precision}", lambda p=precision: _product(xp, p)


def copy_speed(xp: Any, megabytes: int) -> float:
    """Bytes a second of a device-to-device copy, read and write counted.

    Raises
    ------
    ArithmeticError
        If it is no copy.
    """
    source, target = _words(xp, megabytes << 18), xp.zeros(megabytes << 18, dtype="uint32")
    took = milliseconds(xp, lambda: xp.copyto(target, source))
    if not bool((source == target).all()):
        raise ArithmeticError("the copy differs")
    return 2e3 * source.nbytes / took.median


def _words(xp: Any, count: int) -> Any:
    """Numbers that differ; zeros would be quicker to move. No more than 2**18 are drawn."""
    drawn = np.random.default_rng(0).integers(0, 1 << 32, min(count, 1 << 18), np.uint32)
    return xp.asarray(np.resize(drawn, count))


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
    took = milliseconds(xp, lambda: graph.launch(xp.cuda.get_current_stream()))
    return took.each(1e3 / _CHAIN).told("us")


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
    return milliseconds(xp, run, launches=5).each(1e3 / _ROUNDS).told("us")


def _cache(xp: Any, blocks: int) -> Measured:
    """Bytes a second that are read again and again from what the second-level cache holds."""
    size = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["l2CacheSize"]
    count = 1 << max(_LEAST_READ, (min(size // 4, _MOST_READ) // 16).bit_length() - 1)
    words = _words(xp, 4 * count)
    threads = 256
    sums = xp.zeros(blocks * threads, dtype="uint32")
    kernel = xp.RawModule(code=_READS, options=("-std=c++17",)).get_function("read_again")
    args = words, sums, np.int32(count), np.int32(_READ_ROUNDS)
    took = milliseconds(xp, lambda: kernel((blocks,), (threads,), args), launches=5)
    total = int(sums.get().astype(np.uint64).sum())
    wanted = _READ_ROUNDS * int(words.get().astype(np.uint64).sum())
    if total % 2**32 != wanted % 2**32:
        raise ArithmeticError("what was read is not what is there")
    return {"TB/s": 16e-9 * count * _READ_ROUNDS / took.median, "MiB": count / 65536}


def _multiply_add(xp: Any, blocks: int) -> Measured:
    """Products and sums in float32 without tensor cores, in registers."""
    threads = 256
    out = xp.zeros((blocks, threads), dtype="float32")
    kernel = xp.RawModule(code=_FMA, options=("-std=c++17",)).get_function("multiply_add")
    factor, term = np.float32(-0.999), np.float32(1.25)  # they go on changing for long
    args = out, factor, term, np.int32(_ROUNDS)
    took = milliseconds(xp, lambda: kernel((blocks,), (threads,), args), launches=5)
    x = (np.arange(threads)[:, None] + np.arange(_AT_ONCE)).astype(np.float32)
    for _ in range(_ROUNDS):  # a product of two float32 has room in float64
        x = (x.astype(np.float64) * float(factor) + float(term)).astype(np.float32)
    wanted = x.astype(np.float64).sum(axis=1)
    if not np.allclose(out.get(), wanted, rtol=1e-4, atol=1e-3):
        raise ArithmeticError("the sums are wrong")
    return {"TFLOP/s": 2e-9 * blocks * threads * _AT_ONCE * _ROUNDS / took.median}


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
    return {"TFLOP/s": blocks * (_WARPS // 4) * _ROUNDS * _AT_ONCE * each / took.median / 1e9}


def _product(xp: Any, precision: str) -> Measured:
    """Our matrix product, checked against float64 on some of its rows."""
    from _gpu.kernels import in_precision, numbers_on
    from gpulayers.cuda import product

    n, draw = _PRODUCT, numbers_on(xp, precision)
    a, b = draw(n, n), draw(n, n)
    with in_precision(precision):
        poison = Poison(xp)
        found = poison(lambda: product.gemm(a, b))[:64].astype("float32").get().astype("float64")
        poison.free()
        left, right = (x.astype("float32").get().astype("float64") for x in (a[:64], b))
        wanted = left @ right
        wrong = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not wrong < _ERRORS[precision]:
            raise ArithmeticError(f"the product is off by {wrong:.1e}")
        took = milliseconds(xp, lambda: product.gemm(a, b), launches=5)
    return {"TFLOP/s": 2 * n**3 / took.median / 1e9, "error": wrong}
