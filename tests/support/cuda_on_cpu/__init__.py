"""Runs CUDA kernels on the CPU, under a checker, from their unchanged sources.

``HostModule`` takes a CUDA source and gives kernels that are launched on NumPy arrays::

    module = HostModule(source, name_expressions=["scale<float>"], name="scale.cu")
    module["scale<float>"]((blocks,), (128,), (x, np.float32(2), x.size))

How: g++ compiles the source against NVIDIA's own type headers and the small ``device/`` headers; each
CUDA thread becomes a fiber of one OS thread; blocks run one after the other (``runtime/``). In flavour
"check" the sanitizers' instrumentation reports every memory access to our own hooks, which check bounds,
initialisation and happens-before order. So a missing barrier or atomic is found whatever order the
threads happened to run in.

What it cannot see: paths that the test data does not execute, weak memory ordering, grid-wide
synchronisation, inline PTX, tensor-core and asynchronous-copy instructions, contraction to FMA,
``-ftz=true``, and time. Deliberately strict: leaving a kernel before the others' ``__syncthreads``,
warp-synchronous code without ``__syncwarp``, a plain read of a word that other threads update
atomically, overlapping arguments.
"""

from __future__ import annotations

import os

import pytest

from tests.support.cuda_on_cpu.errors import (
    CompileError,
    EmulatorUnavailable,
    KernelError,
    LaunchError,
    Problem,
)
from tests.support.cuda_on_cpu.module import Counters, HostKernel, HostModule
from tests.support.cuda_on_cpu.toolchain import REQUIRE_VARIABLE, unavailable_reason

__all__ = [
    "CompileError",
    "Counters",
    "EmulatorUnavailable",
    "HostKernel",
    "HostModule",
    "KernelError",
    "LaunchError",
    "Problem",
    "require_emulator",
    "unavailable_reason",
]


def require_emulator() -> None:
    """Skips the calling test or test module where kernels cannot run on the CPU.

    Raises:
        EmulatorUnavailable: instead, if the environment has GPULAYERS_REQUIRE_EMULATOR=1.
    """
    reason = unavailable_reason()
    if reason is None:
        return
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        raise EmulatorUnavailable(reason)
    pytest.skip(reason, allow_module_level=True)
