"""tests.support.cuda_on_cpu: blocks of a cooperative launch that wait for one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.cuda_on_cpu import HostModule, KernelError, LaunchError
from tests.support.fake_cupy import CUDARuntimeError, installed

pytestmark = pytest.mark.emulated

#: each block leaves the sum of its numbers, all read those of all, and add them to their own
EXCHANGE = r"""
__device__ void everybody(unsigned* arrived)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned round = atomicAdd(arrived, 1u) / gridDim.x;
        while (atomicAdd(arrived, 0u) / gridDim.x == round) __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
}

extern "C" __global__ void exchange(float* x, float* sums, unsigned* arrived, int rounds)
{
    extern __shared__ float own[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int round = 0; round < rounds; ++round) {
        own[threadIdx.x] = x[i];
        __syncthreads();
        if (threadIdx.x == 0) {
            float sum = 0.0f;
            for (int k = 0; k < blockDim.x; ++k) sum += own[k];
            sums[blockIdx.x] = sum;
        }
        everybody(arrived);
        float total = 0.0f;
        for (int block = 0; block < gridDim.x; ++block) total += sums[block];
        everybody(arrived);
        x[i] += total;
    }
}
"""
BLOCKS, THREADS, ROUNDS = 3, 40, 2


def launch(code: str, flavour: str = "check", **options: Any) -> np.ndarray:
    kernel = HostModule(code, name="exchange.cu", flavour=flavour)["exchange"]
    x = np.arange(BLOCKS * THREADS, dtype="f4")
    arrays = x, np.empty(BLOCKS, "f4"), np.zeros(1, "u4")
    kernel(
        *((BLOCKS,), (THREADS,), (*arrays, np.int32(ROUNDS)), 4 * THREADS),
        **{"cooperative": True, "uninitialised": (1,), **options},
    )
    return x


@pytest.mark.parametrize("flavour", ["plain", "check"])
@pytest.mark.parametrize("block_order", ["asc", "desc", "random"])
def test_blocks_wait_for_one_another(flavour: str, block_order: str) -> None:
    want = np.arange(BLOCKS * THREADS, dtype="f4")
    for _ in range(ROUNDS):
        want += want.sum()
    np.testing.assert_array_equal(launch(EXCHANGE, flavour, block_order=block_order), want)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("        everybody(arrived);\n        float", "        float", "race-between-blocks"),
        ("__threadfence();", "", "race-between-blocks"),
        ("__nanosleep(20);\n        __threadfence();", "__nanosleep(20);", "older value in L1"),
        (
            "own[threadIdx.x] = x[i];\n        __syncthreads();",
            "own[threadIdx.x] = x[i];",
            "race-in",
        ),
        ("everybody(arrived);", "if (blockIdx.x) everybody(arrived);", "grid-deadlock"),
        ("own[k]", "own[k + 1]", "out-of-bounds-shared"),
    ],
)
def test_planted_faults_are_found(old: str, new: str, kind: str) -> None:
    assert old in EXCHANGE
    with pytest.raises(KernelError, match=kind):
        launch(EXCHANGE.replace(old, new, 1))


def test_a_missing_second_barrier_gives_other_results() -> None:
    """No race in the order in which blocks run here, since whoever comes late sees what was
    released in the meantime: next round's sums."""
    late = EXCHANGE.replace("        everybody(arrived);\n        x[i]", "        x[i]")
    assert late != EXCHANGE
    assert (launch(late) != launch(EXCHANGE)).any()


def test_launches_that_cannot_be() -> None:
    with pytest.raises(
        LaunchError, match="all blocks of a cooperative launch run, with dynamic shared memory only"
    ):
        launch(EXCHANGE, only_blocks=1)
    with pytest.raises(LaunchError, match="dynamic shared memory only"):
        launch(EXCHANGE.replace("extern __shared__ float own[];", "__shared__ float own[64];"))


def test_more_blocks_than_the_device_has_room_for() -> None:
    with installed() as cupy:
        kernel = cupy.RawKernel(EXCHANGE, "exchange", enable_cooperative_groups=True)
        kernel.max_dynamic_shared_size_bytes = 200 << 10
        arguments = cupy.zeros(1), cupy.zeros(1), cupy.zeros(1, dtype="u4"), np.int32(1)
        with pytest.raises(UserWarning, match="reduced from 133 to 132"):  # warnings are errors
            kernel((133,), (THREADS,), arguments, shared_mem=200 << 10)
        with pytest.raises(CUDARuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
            kernel.max_dynamic_shared_size_bytes = (227 << 10) + 1
