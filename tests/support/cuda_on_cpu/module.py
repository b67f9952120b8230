"""A CUDA source built for the CPU, and its kernels."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re
import threading
from collections.abc import Collection, Iterable, Sequence

from tests.support.cuda_on_cpu import toolchain
from tests.support.cuda_on_cpu.arguments import PointerArgument, parse_signature, prepare
from tests.support.cuda_on_cpu.errors import KernelError, LaunchError, Problem
from tests.support.cuda_on_cpu.source import kernel_names, translation_unit

ORDERS = {"asc": 0, "desc": 1, "random": 2}
MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
DEFAULT_SHARED_BYTES = 48 << 10

_launching = threading.Lock()  # the runtime keeps its state in globals


class _SharedVariable(ctypes.Structure):
    """``EmuSharedVariable`` of runtime.h."""

    _fields_ = (("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("name", ctypes.c_char_p))


class _Options(ctypes.Structure):
    """``EmuOptions`` of runtime.h."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("only_blocks", ctypes.c_uint64),
        ("preempt", ctypes.c_double),
        ("time_limit", ctypes.c_double),
        ("thread_order", ctypes.c_int32),
        ("block_order", ctypes.c_int32),
        ("max_reports", ctypes.c_int32),
        ("allow_early_exit", ctypes.c_int32),
        ("cooperative", ctypes.c_int32),
    )


@dataclasses.dataclass(frozen=True)
class Counters:
    """What a launch did. Loads, stores and bytes are counted by flavour "check" only."""

    global_loads: int
    global_stores: int
    global_load_bytes: int
    global_store_bytes: int
    atomics: int
    shared_loads: int
    shared_stores: int
    shared_load_bytes: int
    shared_store_bytes: int
    barriers: int
    warp_collectives: int
    threads: int


class HostModule:
    """A CUDA source compiled by g++, in the place of ``cupy.RawModule``.

    ``extern "C"`` kernels are found by themselves; instances of templates are listed in
    ``name_expressions``. ``__device__`` variables keep their values between launches, and modules
    with equal text share them.

    Args:
        code: CUDA source, with all ``#include "..."`` resolved.
        options: compiler options; only ``-D...`` and ``-U...`` mean something here.
        name_expressions: template instances such as ``"gemm<float, 16>"``.
        name: file name used in reports.
        flavour: "check" runs under the checker; "plain" is several times faster and finds only
            deadlocks and wrong values.

    Raises:
        CompileError: g++ refused the source.
        EmulatorUnavailableError: this machine has no usable g++ or no CUDA headers.
    """

    def __init__(
        self,
        code: str,
        options: Sequence[str] = (),
        name_expressions: Iterable[str] = (),
        name: str = "kernel.cu",
        flavour: str = "check",
    ) -> None:
        if flavour not in toolchain.KERNEL_FLAGS:
            raise ValueError(
                f"flavour must be one of {sorted(toolchain.KERNEL_FLAGS)}, not {flavour!r}"
            )
        self.name = name
        self.flavour = flavour
        kernels = kernel_names(code, tuple(name_expressions))
        unit = translation_unit(code, name, kernels)
        definitions = [option for option in options if re.match(r"-[DU]\w", option)]
        key = toolchain.cache_key(unit, flavour, *definitions)
        self.path = toolchain.build_kernels(unit, key, flavour, definitions)
        self.library = ctypes.CDLL(str(self.path))
        self.runtime = _runtime(flavour)
        variables = toolchain.shared_variables(self.path)
        self.shared_variables = (_SharedVariable * max(len(variables), 1))(
            *(_SharedVariable(offset, size, text.encode()) for offset, size, text in variables)
        )
        self.shared_variable_count = len(variables)
        self.kernels = {
            text: HostKernel(self, text, identifier) for text, identifier in kernels.items()
        }

    def __getitem__(self, name: str) -> HostKernel:
        if name not in self.kernels:
            raise KeyError(f"{self.name} has no kernel {name!r}; it has {sorted(self.kernels)}")
        return self.kernels[name]

    def source_line(self, offset: int) -> str:
        """``file:line`` of an address in the compiled library."""
        return toolchain.source_line(self.path, offset, self.name)


@functools.cache
def _runtime(flavour: str) -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(toolchain.runtime_library(flavour)))
    runtime.emu_reports.restype = ctypes.c_char_p
    runtime.emu_counters.restype = ctypes.POINTER(
        ctypes.c_uint64 * len(dataclasses.fields(Counters))
    )
    return runtime


class HostKernel:
    """A kernel of a ``HostModule``; calling it launches it.

    Attributes:
        counters: what the last launch did.
        max_dynamic_shared_size_bytes: limit of ``shared_mem``, to be raised as with CuPy.
    """

    def __init__(self, module: HostModule, name: str, identifier: str) -> None:
        self.module = module
        self.name = name
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED_BYTES
        self.counters: Counters | None = None
        self._entry = getattr(module.library, f"emu_run_{identifier}")
        signature = getattr(module.library, f"emu_signature_{identifier}")
        signature.restype = ctypes.c_char_p
        count, sizes = ctypes.c_int(), (ctypes.c_int * 64)()
        text = signature(ctypes.byref(count), sizes).decode()
        self.parameters = parse_signature(text, sizes[: count.value])

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[object],
        shared_mem: int = 0,
        *,
        seed: int = 0,
        order: str = "random",
        block_order: str = "asc",
        preempt: float = 0.0,
        only_blocks: int = 0,
        time_limit: float = 60.0,
        max_reports: int = 10,
        uninitialised: Collection[int] = (),
        allow_alias: bool = False,
        allow_early_exit: bool = False,
        cooperative: bool = False,
        ignore: Collection[str] = (),
    ) -> Counters:
        """Runs the kernel over NumPy arrays.

        Args:
            grid: up to three sizes.
            block: up to three sizes.
            args: arrays, NumPy scalars, Python ints; ``None`` for a null pointer.
            shared_mem: bytes of dynamic shared memory.
            seed: of the random orders.
            order: in which threads of a block run: "asc", "desc" or "random".
            block_order: the same for blocks.
            preempt: probability of a switch to another thread after a memory access ("check" only).
            only_blocks: run this many blocks, spread over the grid, instead of all.
            time_limit: seconds of processor time after which the launch is stopped.
            max_reports: problems described; further ones are only counted.
            uninitialised: positions of arrays whose contents are undefined at the start: they are
                filled with garbage, and reading an element before it is written is a problem.
            allow_alias: accept overlapping arrays of which one is written.
            allow_early_exit: accept threads that leave before the others' ``__syncthreads``, which
                hardware since Volta tolerates.
            cooperative: all blocks run at the same time, so that they can wait for one another; a
                thread that waits must call ``__nanosleep``. Shared memory must be dynamic.
            ignore: kinds of problem not to raise for.

        Raises:
            LaunchError: the launch itself is wrong.
            KernelError: the kernel misbehaved.
        """
        shape = (*self._sizes("grid", grid), *self._sizes("block", block))
        self._check_shape(shape, shared_mem)
        if preempt and self.module.flavour != "check":
            raise ValueError('preempt needs flavour "check"')
        if cooperative and (self.module.shared_variable_count or only_blocks):
            raise LaunchError(
                f"{self.name}: all blocks of a cooperative launch run, "
                "with dynamic shared memory only"
            )
        prepared = prepare(
            self.name, self.parameters, args, allow_alias=allow_alias, uninitialised=uninitialised
        )
        count = len(prepared.pointers)
        options = _Options(
            seed=seed,
            only_blocks=only_blocks,
            preempt=preempt,
            time_limit=time_limit,
            thread_order=ORDERS[order],
            block_order=ORDERS[block_order],
            max_reports=max_reports,
            allow_early_exit=allow_early_exit,
            cooperative=cooperative,
        )
        runtime = self.module.runtime
        with _launching:
            found = runtime.emu_launch(
                self._entry,
                prepared.values,
                (ctypes.c_uint * 6)(*shape),
                ctypes.c_size_t(shared_mem),
                (PointerArgument * max(count, 1))(*prepared.pointers),
                count,
                self.module.shared_variables,
                self.module.shared_variable_count,
                ctypes.byref(options),
            )
            self.counters = Counters(*runtime.emu_counters().contents)
            lines = runtime.emu_reports().decode(errors="replace").splitlines() if found else []
        problems = [problem for problem in map(self._problem, lines) if problem.kind not in ignore]
        if problems:
            raise KernelError(self.name, problems)
        return self.counters

    def _sizes(self, what: str, sizes: Sequence[int]) -> tuple[int, ...]:
        if isinstance(sizes, int) or not 1 <= len(sizes) <= 3:
            raise LaunchError(
                f"{self.name}: {what} must be a tuple of one to three sizes, not {sizes!r}"
            )
        return tuple(int(size) for size in (*sizes, 1, 1)[:3])

    def _check_shape(self, shape: tuple[int, ...], shared_mem: int) -> None:
        grid, block = shape[:3], shape[3:]
        if min(shape) < 1:
            raise LaunchError(f"{self.name}: empty grid {grid} or block {block}")
        threads = block[0] * block[1] * block[2]
        if threads > MAX_THREADS or any(
            size > limit for size, limit in zip(block, MAX_BLOCK, strict=True)
        ):
            raise LaunchError(
                f"{self.name}: block {block} exceeds {MAX_THREADS} threads or {MAX_BLOCK}"
            )
        if any(size > limit for size, limit in zip(grid, MAX_GRID, strict=True)):
            raise LaunchError(f"{self.name}: grid {grid} exceeds {MAX_GRID}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise LaunchError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory exceed "
                f"max_dynamic_shared_size_bytes = {self.max_dynamic_shared_size_bytes}"
            )

    def _problem(self, line: str) -> Problem:
        kind, site, other, thread, text = line.split("\t", 4)
        return Problem(
            kind,
            self.module.source_line(int(site, 16)),
            self.module.source_line(int(other, 16)),
            thread,
            text,
        )
