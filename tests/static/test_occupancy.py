"""The tables of occupancy: by the rules of NVIDIA's calculator, and those of the budget."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import occupancy
from tests.support.cuda_on_cpu.toolchain import cuda_headers
from tests.support.occupancy import LIMITS, blocks_at_once

#: reads lines of figures, prints what cuda_occupancy.h makes of each
CALCULATOR = r"""
#include <cstdio>
#include <cuda_occupancy.h>

int main()
{
    int major, minor, warps, all_shared, block_shared, threads, registers, shared;
    while (std::scanf("%d%d%d%d%d%d%d%d", &major, &minor, &warps, &all_shared, &block_shared,
                      &threads, &registers, &shared) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major;
        device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10;
        device.sharedMemPerMultiprocessor = all_shared;
        device.numSms = 1;
        device.sharedMemPerBlockOptin = block_shared;
        device.reservedSharedMemPerBlock = 1 << 10;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = block_shared;
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        const int failed = cudaOccMaxActiveBlocksPerMultiprocessor(
            &result, &device, &kernel, &state, threads, shared);
        std::printf("%d\n", failed ? -failed : result.activeBlocksPerMultiprocessor);
    }
}
"""


def test_by_hand() -> None:
    """128 registers of 256 threads: four warps in each of four partitions, two blocks."""
    hopper, ampere = LIMITS["sm_90"], LIMITS["sm_86"]
    assert blocks_at_once(hopper, 256, 128, 0) == 2
    assert blocks_at_once(hopper, 256, 32, 0) == 8  # 64 warps
    assert blocks_at_once(ampere, 256, 32, 0) == 6  # 48 warps
    assert blocks_at_once(ampere, 32, 16, 0) == 16  # blocks
    assert blocks_at_once(hopper, 256, 32, 112 << 10) == 2  # and a KB each of the system's
    assert blocks_at_once(hopper, 256, 32, 113 << 10) == 2
    assert blocks_at_once(hopper, 256, 32, (113 << 10) + 1) == 1
    assert blocks_at_once(hopper, 512, 255, 0) == 0


def test_as_the_calculator_of_nvidia(tmp_path: Path) -> None:
    try:
        headers = Path(cuda_headers())
    except RuntimeError as error:
        pytest.skip(str(error))
    if shutil.which("g++") is None or not (headers / "cuda_occupancy.h").exists():
        pytest.skip("needs g++ and the CUDA toolkit's cuda_occupancy.h")
    source, program = tmp_path / "calculator.cpp", tmp_path / "calculator"
    source.write_text(CALCULATOR)
    subprocess.run(["g++", f"-I{headers}", "-w", source, "-o", program], check=True)
    sizes = (64, 100, 256, 512), (16, 40, 104, 168, 255), (0, 8704, 33 << 10, 90 << 10, 180 << 10)
    questions, ours = [], []
    for architecture, limits in LIMITS.items():
        major, minor = divmod(int(architecture[3:]), 10)
        device = major, minor, limits.warps, limits.shared, limits.block_shared
        for launch in itertools.product(*sizes):
            if launch[2] <= limits.block_shared:  # else there is no answer, but an error
                questions.append(" ".join(map(str, (*device, *launch))))
                ours.append(blocks_at_once(limits, *launch))
    found = subprocess.run(
        [program], input="\n".join(questions), capture_output=True, text=True, check=True
    )
    theirs = [int(line) for line in found.stdout.split()]
    assert len(theirs) == len(ours) > 400
    assert [q for q, a, b in zip(questions, theirs, ours, strict=True) if a != b] == []


def test_the_tables_are_those_of_the_budget() -> None:
    """To write them anew: python -m tests.support.occupancy --write."""
    for path, text in occupancy.written():
        assert path.read_text(encoding="utf-8") == text, path.name
