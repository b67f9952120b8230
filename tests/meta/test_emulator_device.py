"""tests.support.cuda_on_cpu: data types, structures and the intrinsics of device code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.cuda_on_cpu import HostModule, LaunchError

pytestmark = pytest.mark.emulated

TYPED = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
template <typename T, typename Acc>
__global__ void affine(const T* x, T* y, T slope, Acc offset, long long n)
{
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) y[i] = static_cast<T>(static_cast<Acc>(slope) * static_cast<Acc>(x[i]) + offset);
}
template <typename T>
__global__ void total(const T* x, T* sum, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(sum, x[i]);
}
"""


def dtypes() -> dict[str, Any]:
    import ml_dtypes

    return {
        "float": np.float32,
        "double": np.float64,
        "__half": np.float16,
        "__nv_bfloat16": ml_dtypes.bfloat16,
    }


@pytest.mark.parametrize("name", ["float", "double", "__half", "__nv_bfloat16"])
@pytest.mark.parametrize("flavour", ["plain", "check"])
def test_data_types(name: str, flavour: str) -> None:
    dtype = np.dtype(dtypes()[name])
    acc = "double" if name == "double" else "float"
    names = [f"affine<{name}, {acc}>", f"total<{name}>"]
    module = HostModule(TYPED, name_expressions=names, name="typed.cu", flavour=flavour)
    x, y = np.linspace(-3, 3, 37).astype(dtype), np.empty(37, dtype)
    offset = dtypes()[acc](0.25)
    module[names[0]]((2,), (32,), (x, y, dtype.type(1.5), offset, 37))
    wide = dtypes()[acc]
    np.testing.assert_array_equal(y, (wide(1.5) * x.astype(wide) + offset).astype(dtype))
    total = np.zeros(1, dtype)
    ones = np.ones(37, dtype)
    module[names[1]]((2,), (32,), (ones, total, 37))
    assert total[0] == 37


def test_bfloat16_bits() -> None:
    names = ["total<__nv_bfloat16>"]
    kernel = HostModule(TYPED, name_expressions=names, name="typed.cu")[names[0]]
    one, total = np.full(8, 0x3F80, np.uint16), np.zeros(1, np.uint16)
    kernel((1,), (32,), (one, total, 8))
    assert total[0] == 0x4100  # 8
    with pytest.raises(LaunchError, match="dtype int16"):
        kernel((1,), (32,), (one.view(np.int16), total, 8))


STRUCTURE = r"""
struct Shape { int rows, cols; };
extern "C" __global__ void count(Shape shape, int* out) { out[0] = shape.rows * shape.cols; }
"""


def test_structure_by_value() -> None:
    kernel = HostModule(STRUCTURE, name="structure.cu")["count"]
    out = np.zeros(1, "i4")
    kernel((1,), (1,), (np.array((3, 5), "i4,i4")[()], out))
    assert out[0] == 15
    with pytest.raises(LaunchError, match="parameter is Shape"):
        kernel((1,), (1,), (np.array((3, 5, 7), "i4,i4,i4")[()], out))


INTRINSICS = r"""
extern "C" __global__ void warp(const int* x, int* out)
{
    const int t = threadIdx.x;
    out[t] = __shfl_xor_sync(~0u, x[t], 5);
    out[32 + t] = __shfl_up_sync(~0u, x[t], 3, 8);
    out[64 + t] = __shfl_down_sync(~0u, x[t], 3, 8);
    out[96 + t] = __shfl_sync(~0u, x[t], 2, 4);
    out[128 + t] = __ballot_sync(~0u, x[t] & 1);
    out[160 + t] = __reduce_max_sync(~0u, x[t]) + __any_sync(~0u, x[t] < 0) + __all_sync(~0u, 1);
}
extern "C" __global__ void block(const int* x, int* out)
{
    out[0] = __syncthreads_count(x[threadIdx.x] > 49);
    out[1] = __syncthreads_or(x[threadIdx.x] == -1);
    out[2] = __syncthreads_and(x[threadIdx.x] >= 0);
}
extern "C" __global__ void multiply(const unsigned long long* a, unsigned long long* high)
{
    high[threadIdx.x] = __umul64hi(a[threadIdx.x], a[31 - threadIdx.x]);
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_warp_intrinsics(seed: int) -> None:
    x, out = np.random.default_rng(seed).integers(0, 99, 32).astype("i4"), np.zeros((6, 32), "i4")
    HostModule(INTRINSICS, name="intrinsics.cu")["warp"]((1,), (32,), (x, out), seed=seed)
    lane = np.arange(32)
    odd = sum(1 << int(i) for i in lane if x[i] & 1)
    np.testing.assert_array_equal(out[0], x[lane ^ 5])
    np.testing.assert_array_equal(out[1], x[np.where(lane % 8 >= 3, lane - 3, lane)])
    np.testing.assert_array_equal(out[2], x[np.where(lane % 8 < 5, lane + 3, lane)])
    np.testing.assert_array_equal(out[3], x[lane // 4 * 4 + 2])
    np.testing.assert_array_equal(out[4].view("u4"), odd)
    np.testing.assert_array_equal(out[5], x.max() + 1)


def test_block_votes_and_wide_products() -> None:
    module = HostModule(INTRINSICS, name="intrinsics.cu")
    x, out = np.arange(80, dtype="i4"), np.zeros(3, "i4")
    module["block"]((1,), (80,), (x, out), ignore={"race-in-block"})  # all threads write the same
    np.testing.assert_array_equal(out, [30, 0, 1])
    a = np.random.default_rng(0).integers(0, 2**64, 32, dtype="u8")
    high = np.zeros(32, "u8")
    module["multiply"]((1,), (32,), (a, high))
    assert [int(h) for h in high] == [
        int(p) * int(q) >> 64 for p, q in zip(a, a[::-1], strict=True)
    ]
