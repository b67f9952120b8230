"""Run one kernel on host arrays: on the CPU under the checker, or on a GPU.

``launcher.launch(kernel, dtype, index, grid, args)`` takes NumPy arrays and plain numbers in the
kernel's order and changes the output arrays in place. bfloat16 arrays are uint16 bit patterns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source


class EmulatedLauncher:
    """Kernels built by g++ and run on the CPU under the checker.

    Parameters
    ----------
    sources : mapping, optional
        File name -> source text used instead of the real one (mutants).
    options
        Passed to each launch: ``order``, ``seed``, ``only_blocks`` ...
    """

    def __init__(self, sources: Mapping[str, str] | None = None, **options: Any) -> None:
        self.sources = dict(sources or {})
        self.options = options
        self._kernels: dict[tuple[str, str], Any] = {}

    def launch(
        self,
        name: str,
        dtype: str,
        index: str,
        grid: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        spec = table.KERNELS[name]
        expression = spec.expression(dtype, index)
        kernel = self._kernels.get((spec.file, expression))
        if kernel is None:
            from tests.support.cuda_on_cpu import HostModule

            module = HostModule(
                self.sources.get(spec.file) or load_source(spec.file),
                options=table.options(dtype),
                name_expressions=(expression,),
                name=spec.file,
            )
            kernel = self._kernels[spec.file, expression] = module[expression]
        packed = spec.pack(dtype, index, args)
        kernel(tuple(grid), (spec.block,), packed, shared_mem=shared_mem, **self.options)


class DeviceLauncher:
    """The same kernels on the current CUDA device, through the library's own compile cache."""

    def launch(
        self,
        name: str,
        dtype: str,
        index: str,
        grid: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        import cupy

        from gpulayers.cuda.compile import get_kernel

        spec = table.KERNELS[name]
        held = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        packed = spec.pack(dtype, index, held)
        kernel = get_kernel(name, dtype, index)
        kernel(tuple(grid), (spec.block,), packed, shared_mem=shared_mem)
        for host, device in zip(args, held, strict=True):
            if isinstance(host, np.ndarray) and host.flags.writeable:
                host[...] = device.get()
