"""Run one kernel on host arrays: on the CPU under the checker, as NVRTC's PTX, or on a GPU.

``launcher.launch(kernel, dtype, index, grid, args)`` takes NumPy arrays and plain numbers in the
kernel's order and changes the output arrays in place; ``block`` is the table's
unless given; ``constants`` are the parameters that a kernel is compiled for. bfloat16 arrays are
uint16 bit patterns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda import table
from gpulayers.cuda.compile import defines, load_source
from tests.kernels.arrays import Launcher
from tests.support import sample


class EmulatedLauncher:
    """Kernels built by g++ and run on the CPU under the checker.

    Parameters
    ----------
    sources : mapping, optional
        File name -> source text used instead of the real one (mutants).
    whole_files : bool
        Build all instances of a source together on its first use: quicker if most are needed.
    options
        Passed to each launch: ``order``, ``seed``, ``only_blocks`` ...
    """

    def __init__(
        self,
        sources: Mapping[str, str] | None = None,
        whole_files: bool = False,
        **options: Any,
    ) -> None:
        self.sources = dict(sources or {})
        self.whole_files = whole_files
        self.options = options
        self._kernels: dict[tuple[str, str, str], Any] = {}

    def launch(
        self,
        name: str,
        dtype: str,
        index: str,
        grid: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        block: int = 0,
        constants: str = "",
    ) -> None:
        spec = table.KERNELS[name]
        expression = spec.expression(dtype, index)
        if (spec.file, expression, constants) not in self._kernels:
            together = sample.instances(spec.file, large=spec.runs) if self.whole_files else ()
            if constants:
                self._build(spec.file, (expression,), (dtype,), constants)
            elif expression in together:
                self._build(spec.file, together, tuple(table.C_TYPES))
            else:
                self._build(spec.file, (expression,), (dtype,))
        kernel = self._kernels[spec.file, expression, constants]
        packed = spec.pack(dtype, index, args)
        shared_mem = shared_mem or spec.shared
        kernel.max_dynamic_shared_size_bytes = max(shared_mem, 48 << 10)
        shape = tuple(grid), (block or spec.block,)
        options = {"cooperative": spec.cooperative, **self.options}
        kernel(*shape, packed, shared_mem=shared_mem, **options)

    def _build(
        self, file: str, expressions: Sequence[str], dtypes: Sequence[str], constants: str = ""
    ) -> None:
        from tests.support.cuda_on_cpu import HostModule

        module = HostModule(
            self.sources.get(file) or load_source(file),
            options=(*table.options(*dtypes), *defines(constants)),
            name_expressions=expressions,
            name=file,
        )
        for expression in expressions:
            self._kernels[file, expression, constants] = module[expression]


class PtxLauncher:
    """The PTX that NVRTC makes of the kernels, interpreted.

    Parameters
    ----------
    sources : mapping, optional
        File name -> source text used instead of the real one (planted faults).
    cases : sequence of callables
        All instances of a source that these launch are compiled together.
    architecture : str
        For which.
    """

    def __init__(
        self,
        sources: Mapping[str, str] | None = None,
        cases: Sequence[Callable[[Launcher], None]] = (),
        architecture: str = "compute_90",
    ) -> None:
        self.architecture = architecture
        self.sources = dict(sources or {})
        self.steps = 0
        self._together = _launched(cases)

    def launch(
        self,
        name: str,
        dtype: str,
        index: str,
        grid: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        block: int = 0,
        constants: str = "",
    ) -> None:
        from tests.support import ptx

        spec = table.KERNELS[name]
        expression = spec.expression(dtype, index)
        together = {} if spec.only or constants else self._together.get(spec.file, {})
        instances = tuple(together) if expression in together else (expression,)
        options = table.options(*sorted(together.values()) if expression in together else (dtype,))
        code = self.sources.get(spec.file) or load_source(spec.file)
        options = (*dict.fromkeys(options), *defines(constants))
        architecture = f"compute_{spec.only}a" if spec.only else self.architecture
        text, names = ptx.compile_ptx(code, instances, options, spec.file, architecture)
        packed = spec.pack(dtype, index, args)
        self.steps += ptx.load(text, names[expression])(
            grid, (block or spec.block,), packed, shared_mem or spec.shared, spec.cooperative
        )


def _launched(cases: Sequence[Callable[[Launcher], None]]) -> dict[str, dict[str, str]]:
    """What cases launch: source -> name expression -> dtype."""
    found: dict[str, dict[str, str]] = {}

    class Noting:
        def launch(self, name: str, dtype: str, index: str, *_: Any, **__: Any) -> None:
            spec = table.KERNELS[name]
            if not spec.only:  # which is for an architecture of its own
                found.setdefault(spec.file, {})[spec.expression(dtype, index)] = dtype

    for case in cases:
        with contextlib.suppress(AssertionError):  # nothing ran
            case(Noting())
    return found


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
        block: int = 0,
        constants: str = "",
    ) -> None:
        import cupy

        from gpulayers.cuda.compile import get_kernel
        from gpulayers.cuda.precision import capability

        spec = table.KERNELS[name]
        if not spec.runs_on(capability()):
            pytest.skip(f"needs compute capability {(spec.only or spec.oldest) / 10}")
        held = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        packed = spec.pack(dtype, index, held)
        kernel: Any = get_kernel(name, dtype, index, constants)
        shared_mem = shared_mem or spec.shared
        if shared_mem > kernel.max_dynamic_shared_size_bytes:  # 48 KB less the kernel's own arrays
            kernel.max_dynamic_shared_size_bytes = shared_mem
        kernel(tuple(grid), (block or spec.block,), packed, shared_mem=shared_mem)
        for host, device in zip(args, held, strict=True):
            if isinstance(host, np.ndarray) and host.flags.writeable:
                host[...] = device.get()
