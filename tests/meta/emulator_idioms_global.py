"""Idioms of global memory: atomics, fences between blocks, bounds, vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.meta.emulator_idioms import ORDERS, Fault, Idiom, Run, normal

LAST_BLOCK = r"""
__device__ unsigned finished = 0;
extern "C" __global__ void kernel(const float* x, float* partial, float* sum, int n)
{
    __shared__ float s[64];
    __shared__ bool last;
    const int t = threadIdx.x;
    s[t] = 0.f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) s[t] += x[i];
    __syncthreads();
    if (t == 0) {
        float total = 0.f;
        for (int k = 0; k < blockDim.x; ++k) total += s[k];
        partial[blockIdx.x] = total;
        __threadfence();
        last = atomicAdd(&finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t == 0) {
        float total = 0.f;
        for (int b = 0; b < gridDim.x; ++b) total += ((volatile float*)partial)[b];
        *sum = total;
        finished = 0;
    }
}
"""


def last_block(run: Run) -> None:
    x, partial, total = normal(1000), np.empty(7, "f4"), np.empty(1, "f4")
    for block_order in ORDERS:
        run((7,), (64,), (x, partial, total, x.size), uninitialised=(1, 2), block_order=block_order)
        np.testing.assert_allclose(total[0], x.sum(dtype="f8"), rtol=1e-4)


EVERY_THREAD_PUBLISHES = r"""
__device__ unsigned arrived = 0;
extern "C" __global__ void kernel(const float* x, float* squares, float* sum, int n)
{
    __shared__ bool last;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x == 0) last = false;
    __syncthreads();
    squares[i] = x[i] * x[i];
    __threadfence();
    if (atomicAdd(&arrived, 1u) == n - 1) last = true;
    __syncthreads();
    if (!last || threadIdx.x) return;
    __threadfence();  // behind the atomic: L1 may have older numbers
    float total = 0.f;
    for (int k = 0; k < n; ++k) total += squares[k];
    *sum = total;
    arrived = 0;
}
"""


def every_thread_publishes(run: Run) -> None:
    x, squares, total = normal(96), np.empty(96, "f4"), np.empty(1, "f4")
    run((3,), (32,), (x, squares, total, x.size))
    np.testing.assert_allclose(total[0], (x**2).sum(), rtol=1e-5)


BLOCK_PUBLISHES = r"""
__device__ unsigned published = 0;
extern "C" __global__ void kernel(const float* x, float* squares, float* sum, int n)
{
    __shared__ bool last;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    squares[i] = x[i] * x[i];
    __syncthreads();  // before one thread speaks for all
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(&published, 1u) == gridDim.x - 1;
        __threadfence();  // behind the atomic, as above
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    float total = 0.f;
    for (int k = 0; k < n; ++k) total += squares[k];
    *sum = total;
    published = 0;
}
"""


READ_BY_ALL_BLOCKS = r"""
extern "C" __global__ void kernel(float* x, float* y, float* last)
{
    const float first = x[0];
    y[blockIdx.x] = first + x[blockIdx.x];
    if (blockIdx.x == gridDim.x - 1) last[0] = first;
}
"""


def read_by_all_blocks(run: Run) -> None:
    x, y, last = normal(4), np.empty(4, "f4"), np.empty(1, "f4")
    run((4,), (1,), (x, y, last), uninitialised=(1, 2))
    np.testing.assert_array_equal(y, x[0] + x)
    assert last[0] == x[0]


CAS_LOOP = r"""
extern "C" __global__ void kernel(const float* x, int* out, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    int old = atomicOr(out, 0);
    while (__int_as_float(old) < v) {
        const int seen = atomicCAS(out, old, __float_as_int(v));
        if (seen == old) break;
        old = seen;
    }
}
"""


def cas_loop(run: Run) -> None:
    x, greatest = normal(200), np.array([-1e30], "f4").view("i4")
    run((4,), (64,), (x, greatest, x.size))
    assert greatest.view("f4")[0] == x.max()


SCATTER_ADD = r"""
extern "C" __global__ void kernel(const float* values, const int* targets, float* sums, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&sums[targets[i]], values[i]);
}
"""


def scatter_add(run: Run) -> None:
    values, targets = normal(100), np.random.default_rng(2).integers(0, 9, 100).astype("i4")
    sums = np.zeros(9, "f4")
    run((2,), (64,), (values, targets, sums, 100))
    expected = np.bincount(targets, weights=values, minlength=9)
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-5)


VECTOR_COPY = r"""
struct alignas(16) Pack { float item[4]; };
extern "C" __global__ void kernel(const float* x, float* y, int packs)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    reinterpret_cast<Pack*>(y)[i] = *reinterpret_cast<const Pack*>(x + 4 * i);
}
"""


def aligned(count: int, alignment: int = 64) -> Any:
    raw = np.zeros(count * 4 + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count * 4].view("f4")


def vector_copy(run: Run) -> None:
    x, y = aligned(20), aligned(20)
    x[:] = normal(20)
    run((1,), (32,), (x, y, 5), uninitialised=(1,))
    np.testing.assert_array_equal(y, x)


GLOBAL_IDIOMS = [
    Idiom(
        "the last block reduces",
        LAST_BLOCK,
        last_block,
        (
            Fault("fence", "__threadfence();", "", "race-between-blocks"),
            Fault(
                "block fence", "__threadfence();", "__threadfence_block();", "race-between-blocks"
            ),
            Fault("by L1", "((volatile float*)partial)", "partial", "race-between-blocks"),
            Fault("every block", "if (last && t == 0)", "if (t == 0)", "race-between-blocks"),
            Fault("one thread", "if (last && t == 0)", "if (last)", "race-in-block"),
        ),
    ),
    Idiom(
        "every thread publishes",
        EVERY_THREAD_PUBLISHES,
        every_thread_publishes,
        (
            Fault("fence", "__threadfence();\n    if", "if", "race-between-blocks"),
            Fault("fence behind", "__threadfence();  //", "//", "race-between-blocks"),
            Fault(
                "fence too early",
                "squares[i] = x[i] * x[i];\n    __threadfence();",
                "__threadfence(); squares[i] = x[i] * x[i];",
                "race-between-blocks",
            ),
        ),
    ),
    Idiom(
        "one thread publishes for its block",
        BLOCK_PUBLISHES,
        every_thread_publishes,
        (
            Fault("barrier", "__syncthreads();  // before", "// before", "race-between-blocks"),
            Fault("fence", "__threadfence();\n        last", "last", "race-between-blocks"),
            Fault("fence behind", "__threadfence();  //", "//", "race-between-blocks"),
            Fault(
                "fence before the barrier",
                "squares[i] = x[i] * x[i];\n    __syncthreads();  // before one thread speaks for "
                "all\n    if (threadIdx.x == 0) {\n        __threadfence();",
                "__threadfence(); squares[i] = x[i] * x[i]; __syncthreads();"
                " if (threadIdx.x == 0) {",
                "race-between-blocks",
            ),
        ),
    ),
    Idiom(
        "an element read by all blocks",
        READ_BY_ALL_BLOCKS,
        read_by_all_blocks,
        (Fault("written by the last", "last[0] =", "x[0] = 1 +", "race-between-blocks"),),
    ),
    Idiom(
        "compare-and-swap loop",
        CAS_LOOP,
        cas_loop,
        (
            Fault("plain first read", "atomicOr(out, 0)", "*out", "race-between-blocks"),
            Fault(
                "plain write",
                "const int seen = atomicCAS(out, old, __float_as_int(v));",
                "const int seen = old; *out = __float_as_int(v);",
                "race-in-block",
            ),
            Fault("never ends", "if (seen == old) break;\n        old = seen;", "", "timeout"),
        ),
    ),
    Idiom(
        "scatter-add",
        SCATTER_ADD,
        scatter_add,
        (
            Fault(
                "atomic",
                "atomicAdd(&sums[targets[i]], values[i])",
                "sums[targets[i]] += values[i]",
                "race",
            ),
            Fault("bound", "if (i < n)", "if (i <= n)", "out-of-bounds"),
            Fault("no bound", "if (i < n)", "", "out-of-bounds"),
            Fault("before the start", "sums[targets[i]]", "sums[targets[i] - 1]", "out-of-bounds"),
            Fault("null", "&sums[targets[i]]", "(float*)nullptr", "null-pointer"),
            Fault("wild", "&sums[targets[i]]", "sums + (1ll << 40)", "wild-pointer"),
        ),
    ),
    Idiom(
        "vector loads and stores",
        VECTOR_COPY,
        vector_copy,
        (
            Fault("misaligned", "x + 4 * i", "x + 4 * i + (i == 1)", "misaligned-access"),
            Fault("bound", "i >= packs", "i > packs", "out-of-bounds"),
            Fault("overlapping", "(y)[i] =", "(y)[i / 2] =", "race-in-block"),
        ),
    ),
]
