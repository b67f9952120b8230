"""Runs CUDA kernels on the CPU, under a checker, from their unchanged sources.

``HostModule`` takes a CUDA source and gives kernels that are launched on NumPy arrays::

    module = HostModule(source, name_expressions=["scale<float>"], name="scale.cu")
    module["scale<float>"]((blocks,), (128,), (x, np.float32(2), x.size))

How: g++ compiles the source against NVIDIA's own type headers and the small ``device/`` headers;
each CUDA thread becomes a fiber of one OS thread; blocks run one after the other, those of a
cooperative launch in turns (``runtime/``).
In flavour "check" the sanitizers' instrumentation reports every memory access to our own hooks,
which check bounds, initialisation and happens-before order. So a missing barrier or atomic is found
whatever order the threads happened to run in.

What it cannot see: paths that the test data does not execute, memory ordering weaker than fences,
atomics and barriers tell, PTX beyond ``device/ptx.h`` (which has the tensor-core products, those of
warpgroups too, ldmatrix and cp.async), contraction to FMA, ``-ftz=true``, and time.
Deliberately strict: leaving a kernel before the others' ``__syncthreads``, warp-synchronous code
without ``__syncwarp``, a plain read of a word that other threads update atomically, or of what
another block wrote without a fence behind the atomic that told of it, overlapping arguments, any
access to where a copy is under way (``runtime/copies.cpp``).
"""

from __future__ import annotations

from tests.support.cuda_on_cpu.errors import (
    CompileError,
    EmulatorUnavailableError,
    KernelError,
    LaunchError,
    Problem,
)
from tests.support.cuda_on_cpu.module import Counters, HostKernel, HostModule
from tests.support.cuda_on_cpu.toolchain import unavailable_reason

__all__ = [
    "CompileError",
    "Counters",
    "EmulatorUnavailableError",
    "HostKernel",
    "HostModule",
    "KernelError",
    "LaunchError",
    "Problem",
    "unavailable_reason",
]
