"""Idioms of shared memory, barriers and warps."""

from __future__ import annotations

import numpy as np

from tests.meta.emulator_idioms import Fault, Idiom, Run, normal

HISTOGRAM = r"""
extern "C" __global__ void kernel(const int* x, int n, int* counts)
{
    __shared__ int bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i]], 1);
    __syncthreads();  // all counted
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}
"""


def histogram(run: Run) -> None:
    x = np.random.default_rng(1).integers(0, 16, 999).astype("i4")
    counts = np.zeros(16, "i4")
    run((3,), (64,), (x, x.size, counts))
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=16))


ROW_SUM = r"""
__device__ float warp_sum(float v)
{
    for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
    return v;
}
extern "C" __global__ void kernel(const float* __restrict__ x, float* __restrict__ sums, int cols)
{
    __shared__ float partial[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float v = 0.f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) v += x[blockIdx.x * cols + i];
    v = warp_sum(v);
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    if (warp == 0) {
        v = lane < blockDim.x / 32 ? partial[lane] : 0.f;
        v = warp_sum(v);
        if (lane == 0) sums[blockIdx.x] = v;
    }
}
"""


def row_sum(run: Run) -> None:
    x, sums = normal(5, 300), np.empty(5, "f4")
    run((5,), (128,), (x, sums, 300), uninitialised=(1,))
    np.testing.assert_allclose(sums, x.sum(1), rtol=1e-4, atol=1e-5)


WARP_SYNCHRONOUS = r"""
extern "C" __global__ void kernel(const float* x, float* sums)
{
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    __syncwarp();
    for (int d = 16; d > 0; d >>= 1) {
        const float v = s[t ^ d];
        __syncwarp();  // read before write
        s[t] += v;
        __syncwarp();  // write before read
    }
    if (t % 32 == 0) sums[t >> 5] = s[t];
}
"""


def warp_synchronous(run: Run) -> None:
    x, sums = normal(64), np.zeros(2, "f4")
    run((1,), (64,), (x, sums))
    np.testing.assert_allclose(sums, x.reshape(2, 32).sum(1), rtol=1e-4, atol=1e-5)


DOUBLE_BUFFER = r"""
extern "C" __global__ void kernel(const float* x, float* sums, int n)
{
    __shared__ float buffer[2][32];
    const int t = threadIdx.x;
    float total = 0.f;
    buffer[0][t] = x[t];
    __syncthreads();
    for (int i = 0; i < n; ++i) {
        if (i + 1 < n) buffer[(i + 1) & 1][t] = x[(i + 1) * 32 + t];
        total += buffer[i & 1][31 - t];
        __syncthreads();  // next tile
    }
    sums[t] = total;
}
"""


def double_buffer(run: Run) -> None:
    x, sums = normal(5, 32), np.zeros(32, "f4")
    run((1,), (32,), (x, sums, 5))
    np.testing.assert_allclose(sums, x[:, ::-1].sum(0), rtol=1e-4, atol=1e-5)


READ_THEN_OVERWRITE = r"""
extern "C" __global__ void kernel(const float* x, float* y)
{
    __shared__ float s;
    if (threadIdx.x == 0) s = x[0];
    __syncthreads();
    const float v = s;
    __syncthreads();  // all have read
    if (threadIdx.x == 0) s = v + 1.f;
    __syncthreads();
    y[threadIdx.x] = v + s;
}
"""


def read_then_overwrite(run: Run) -> None:
    for threads in (32, 64):  # readers in one warp, and in two
        x, y = normal(1), np.empty(threads, "f4")
        run((1,), (threads,), (x, y), uninitialised=(1,))
        np.testing.assert_array_equal(y, np.full(threads, x[0] + (x[0] + np.float32(1))))


def read_then_overwrite_two_warps(run: Run) -> None:
    run((1,), (64,), (normal(1), np.empty(64, "f4")))


TILED_PRODUCT = r"""
template <typename T, int TILE>
__global__ void product(const T* a, const T* b, T* c, int m, int n, int k)
{
    extern __shared__ unsigned char memory[];
    T* const as = reinterpret_cast<T*>(memory);
    T* const bs = as + TILE * TILE;
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.y * TILE + ty, col = blockIdx.x * TILE + tx;
    T sum = 0;
    for (int k0 = 0; k0 < k; k0 += TILE) {
        as[ty * TILE + tx] = row < m && k0 + tx < k ? a[row * k + k0 + tx] : T(0);
        bs[ty * TILE + tx] = k0 + ty < k && col < n ? b[(k0 + ty) * n + col] : T(0);
        __syncthreads();  // tile loaded
        for (int i = 0; i < TILE; ++i) sum += as[ty * TILE + i] * bs[i * TILE + tx];
        __syncthreads();  // tile used
    }
    if (row < m && col < n) c[row * n + col] = sum;
}
"""


def tiled_product(run: Run) -> None:
    a, b, c = normal(9, 21, dtype="f8"), normal(21, 10, dtype="f8"), np.empty((9, 10))
    run((2, 2), (8, 8), (a, b, c, 9, 10, 21), shared_mem=2 * 64 * 8, uninitialised=(2,))
    np.testing.assert_allclose(c, a @ b, rtol=1e-12)


SHARED_IDIOMS = [
    Idiom(
        "shared histogram",
        HISTOGRAM,
        histogram,
        (
            Fault("second barrier", "__syncthreads();  // all counted", "", "race-in-block"),
            Fault("first barrier", "= 0;\n    __syncthreads();", "= 0;", "race-in-block"),
            Fault("no atomic", "atomicAdd(&bins[x[i]], 1)", "bins[x[i]] += 1", "race-in-block"),
            Fault(
                "no atomic between blocks",
                "atomicAdd(&counts[threadIdx.x], bins[threadIdx.x])",
                "counts[threadIdx.x] += bins[threadIdx.x]",
                "race-between-blocks",
            ),
            Fault("not cleared", "bins[threadIdx.x] = 0", "(void)bins", "uninitialised-shared"),
            Fault("tail", "i < n;", "i <= n;", "out-of-bounds"),
        ),
    ),
    Idiom(
        "warp shuffles and a shared row sum",
        ROW_SUM,
        row_sum,
        (
            Fault("barrier", "__syncthreads();", "", "race-in-block"),
            Fault("garbage lanes", "lane < blockDim.x / 32", "true", "uninitialised-shared"),
            Fault("half a warp", "if (warp == 0) {", "if (threadIdx.x < 16) {", "warp-deadlock"),
            Fault("own lane", "0xffffffffu, v, d", "0xfffffffeu, v, d", "warp-mask"),
            Fault(
                "source outside the mask",
                "v = warp_sum(v);\n    if",
                "if (lane < 4) v = __shfl_sync(0xf, v, 4);\n    if",
                "shuffle-source",
            ),
            Fault(
                "barrier in a branch",
                "if (lane == 0) sums[blockIdx.x] = v;",
                "if (lane == 0) { sums[blockIdx.x] = v; __syncthreads(); }",
                "barrier-divergence",
            ),
            Fault(
                "two different barriers",
                "__syncthreads();",
                "if (warp) __syncthreads();\nelse __syncthreads();",
                "barrier-divergence",
            ),
            Fault(
                "barrier against shuffle",
                "v = warp_sum(v);\n    if",
                "if (lane == 3) __syncthreads(); v = warp_sum(v);\n    if",
                "barrier-deadlock",
            ),
            Fault("reads the result", "float v = 0.f", "float v = sums[0]", "uninitialised-global"),
        ),
    ),
    Idiom(
        "warp-synchronous sum with __syncwarp",
        WARP_SYNCHRONOUS,
        warp_synchronous,
        (
            Fault("first", "s[t] = x[t];\n    __syncwarp();", "s[t] = x[t];", "race-in-block"),
            Fault("read before write", "__syncwarp();  // read", "// read", "race-in-block"),
            Fault("write before read", "__syncwarp();  // write", "// write", "race-in-block"),
        ),
    ),
    Idiom(
        "double buffering",
        DOUBLE_BUFFER,
        double_buffer,
        (
            Fault("one buffer", "(i + 1) & 1", "i & 1", "race-in-block"),
            Fault("barrier", "__syncthreads();  // next tile", "", "race-in-block"),
            Fault("third buffer", "buffer[i & 1]", "buffer[i & 3]", "undefined-behaviour"),
        ),
    ),
    Idiom(
        "all read, then one overwrites",
        READ_THEN_OVERWRITE,
        read_then_overwrite,
        (Fault("barrier", "__syncthreads();  // all have read", "", "race-in-block"),),
    ),
    Idiom(
        "all read, then one overwrites, two warps",
        READ_THEN_OVERWRITE,
        read_then_overwrite_two_warps,
        (Fault("barrier", "__syncthreads();  // all have read", "", "race-in-block"),),
    ),
    Idiom(
        "tiled matrix product in dynamic shared memory",
        TILED_PRODUCT,
        tiled_product,
        (
            Fault("first barrier", "__syncthreads();  // tile loaded", "", "race-in-block"),
            Fault("second barrier", "__syncthreads();  // tile used", "", "race-in-block"),
            Fault("row bound", "row < m && col < n", "col < n", "out-of-bounds"),
            Fault("tile bound", "k0 + ty < k && ", "", "out-of-bounds"),
            Fault("tile size", "as + TILE * TILE", "as + 2 * TILE * TILE", "out-of-bounds-shared"),
            Fault(
                "sum",
                "if (row < m && col < n) c[",
                "if (row < m && col < n) sum += c[0], c[",
                "race",
            ),
        ),
        kernel="product<double, 8>",
    ),
]
