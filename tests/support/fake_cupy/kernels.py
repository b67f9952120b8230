"""RawKernel and RawModule: the unchanged CUDA source, compiled for the host and run there.

The emulator (tests.support.cuda_on_cpu) checks every launch: argument types, contiguity, limits,
and in the flavour "check" also bounds, races, barriers and uninitialised reads. So a layer test on
the stand-in is a memory check of the layer's kernels too.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.fake_cupy.arrays import ndarray
from tests.support.fake_cupy.memory import MemoryPointer
from tests.support.fake_cupy.state import CUDARuntimeError, DeviceRuleError, is_poisoned, state


class CUDADriverError(CUDARuntimeError):
    """cupy_backends.cuda.api.driver.CUDADriverError."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """cupy.cuda.compiler.CompileException."""


class _Source:
    """One CUDA source with its options, built on first use, once for each flavour."""

    def __init__(self, code: str, options: tuple[str, ...], names: tuple[str, ...], title: str):
        if not isinstance(options, tuple):
            raise TypeError(
                f"Argument 'options' has incorrect type (expected tuple, got "
                f"{type(options).__name__})"
            )
        self.code, self.options, self.names, self.title = code, options, names, title
        self._built: dict[str, Any] = {}

    def module(self) -> Any:
        if state.flavour not in self._built:
            self._built[state.flavour] = self._build()
        return self._built[state.flavour]

    def _build(self) -> Any:
        title = state.sources.get(self.code, self.title)
        if state.flavour == "ptx":
            from tests.support import ptx

            return ptx.Module(self.code, self.options, self.names, title)
        from tests.support.cuda_on_cpu import CompileError, HostModule

        try:
            return HostModule(
                self.code,
                options=self.options,
                name_expressions=self.names,
                name=title,
                flavour=state.flavour,
            )
        except CompileError as error:
            raise CompileException(str(error)) from error


#: RawKernel.attributes of every kernel, unless `state.kernel_attributes` says otherwise
ATTRIBUTES = {
    "max_threads_per_block": 1024,
    "shared_size_bytes": 0,
    "const_size_bytes": 0,
    "local_size_bytes": 0,
    "num_regs": 32,
    "ptx_version": 90,
    "binary_version": 90,
    "cache_mode_ca": 0,
    "max_dynamic_shared_size_bytes": 48 << 10,
    "preferred_shared_memory_carveout": -1,
}
_MACHINE_CODE = b"\x7fELF of the stand-in\n"


def machine_code(code: str, expression: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """What `RawModule(path=...)` takes for a cubin, and the kernel's name in it."""
    symbol = "_Z" + re.sub(r"\W", "_", expression)
    document = {"code": code, "expression": expression, "options": options, "symbol": symbol}
    return _MACHINE_CODE + json.dumps(document).encode(), symbol


class RawKernel:
    """cupy.RawKernel: `kernel(grid, block, args, shared_mem=0)`."""

    __module__ = "cupy"

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        jitify: bool | None = None,
    ) -> None:
        names = (name,) if "<" in name else ()
        title = re.sub(r"\W", "_", name) + ".cu"
        self._source = _Source(code, options, names, title)
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.enable_cooperative_groups = enable_cooperative_groups
        self._most_shared = 48 << 10
        self.preferred_shared_memory_carveout = -1

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        own = self.attributes["shared_size_bytes"]
        if not 0 <= size <= _device_properties()["sharedMemPerBlockOptin"] - own:
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE", f"invalid argument ({self.name})")
        self._most_shared = size

    @property
    def attributes(self) -> dict[str, int]:
        self._source.module()
        return {**ATTRIBUTES, **state.kernel_attributes.get(self.name, {})}

    def compile(self, log_stream: Any = None) -> None:
        """CuPy gets the function from the driver anew; nobody says that it has kept its limits."""
        self._source.module()
        self._most_shared = 48 << 10

    def __call__(self, grid: tuple, block: tuple, args: Any, *, shared_mem: int = 0) -> None:
        for what, value in (("grid", grid), ("block", block)):
            if not isinstance(value, tuple):
                raise TypeError(
                    f"Argument '{what}' has incorrect type (expected tuple, got "
                    f"{type(value).__name__})"
                )
        if any(a._block.device_id != state.device for a in args if isinstance(a, ndarray)):
            raise DeviceRuleError(
                f"kernel {self.name} on device {state.device}: it gets the address of an array on "
                "another device (CuPy does not look, the launch fails some time later)"
            )
        arrays = [a._a for a in args if isinstance(a, ndarray)]
        values = tuple(_argument(self.name, i, a) for i, a in enumerate(args))
        kernel = self._source.module()[self.name]
        kernel.max_dynamic_shared_size_bytes = self.max_dynamic_shared_size_bytes
        options: dict[str, Any] = {"seed": state.seed, **state.launch_options}
        alone = False
        if self.enable_cooperative_groups:
            grid = _resident_grid(grid, block, shared_mem)
            options["cooperative"] = True
            alone = bool(options.pop("only_blocks", 0))
        if state.flavour == "check":  # reading what nobody wrote is an error
            options["uninitialised"] = [
                i for i, a in enumerate(args) if isinstance(a, ndarray) and is_poisoned(a._a)
            ]

        def work() -> None:
            if alone:  # blocks that would wait for those that are left out
                return
            counters = kernel(grid, block, values, shared_mem=shared_mem, **options)
            state.launch_log.append((self.name, counters))

        state.note(f"kernel:{self.name}")
        state.note("kernel_bytes", n=sum(array.nbytes for array in arrays))
        recording = state.recording
        if recording is not None:
            for array in arrays:
                recording.will_write(array)
        state.write(arrays[0] if arrays else np.empty(0), work, f"kernel {self.name}")


def _resident_grid(grid: tuple, block: tuple, shared_mem: int) -> tuple:
    """The grid of a cooperative launch, whose blocks must all fit on the device at once (registers
    aside): CuPy cuts off what does not, and warns."""
    properties = _device_properties()
    threads, reserved = math.prod(block), 1 << 10  # bytes that each block takes besides its own
    at_once = min(
        properties["maxBlocksPerMultiProcessor"],
        properties["maxThreadsPerMultiProcessor"] // threads,
        properties["sharedMemPerMultiprocessor"] // (shared_mem + reserved),
    )
    most, blocks = at_once * properties["multiProcessorCount"], math.prod(grid)
    if blocks <= most:
        return grid
    if blocks > grid[0]:
        raise ValueError(f"The specified grid size ({grid}) exceeds the limit ({most}).")
    warnings.warn(
        f"The grid size will be reduced from {blocks} to {most}, as the specified grid size "
        "exceeds the limit.",
        stacklevel=3,
    )
    return (most,)


def _device_properties() -> dict[str, Any]:
    from tests.support.fake_cupy.cuda import PROPERTIES  # which knows this module's kernels

    return PROPERTIES


def _argument(kernel: str, position: int, value: Any) -> Any:
    """What the launcher gets: arrays and typed scalars as NumPy values, pointers as they are."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray} (kernel {kernel}, argument {position})")
    if isinstance(value, MemoryPointer):
        return value.mem.bytes[value.ptr - value.mem.ptr :]
    if value is not None and not isinstance(value, (np.generic, int, float, complex, bool)):
        raise TypeError(f"Unsupported type {type(value)} (kernel {kernel}, argument {position})")
    return value


class RawModule:
    """cupy.RawModule: several kernels from one source, template instances by name."""

    __module__ = "cupy"

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: bool | None = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        self._symbol = None
        if code is None:
            content = Path(path or "").read_bytes()
            if not content.startswith(_MACHINE_CODE):
                raise CUDADriverError(200, "CUDA_ERROR_INVALID_IMAGE", f"invalid image ({path})")
            document = json.loads(content.removeprefix(_MACHINE_CODE))
            code, options = document["code"], tuple(document["options"])
            name_expressions, self._symbol = [document["expression"]], document["symbol"]
        self.name_expressions = tuple(name_expressions or ())
        self.code, self.options, self.backend = code, options, backend
        self._source = _Source(code, options, self.name_expressions, "module.cu")
        self.enable_cooperative_groups = enable_cooperative_groups

    def compile(self, log_stream: Any = None) -> None:
        self._source.module()

    def get_function(self, name: str) -> RawKernel:
        module = self._source.module()
        if self._symbol is not None and name == self._symbol:
            name = self.name_expressions[0]
        elif self._symbol is not None or name not in module.kernels:
            raise CUDADriverError(500, "CUDA_ERROR_NOT_FOUND", f"named symbol not found ({name})")
        kernel = RawKernel(
            *(self.code, name, self.options, self.backend),
            enable_cooperative_groups=self.enable_cooperative_groups,
        )
        kernel._source = self._source
        return kernel

    def get_global(self, name: str) -> Any:
        raise NotImplementedError("RawModule.get_global: in CuPy, not in this stand-in")
