"""Sources to PTX by NVRTC, and launches of it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support import nvrtc
from tests.support.cuda_on_cpu.toolchain import cuda_headers
from tests.support.ptx.machine import Block, PtxError
from tests.support.ptx.memory import FaultError, Global
from tests.support.ptx.parse import Entry, parse_entry

__all__ = ["Kernel", "Module", "compile_ptx", "load"]

#: for which PTX is made unless another one is asked for
ARCHITECTURE = "compute_90"


def compile_ptx(
    code: str,
    expressions: Sequence[str],
    options: Sequence[str],
    file: str,
    architecture: str = ARCHITECTURE,
) -> tuple[str, dict[str, str]]:
    """The PTX of a source, with lines, and the kernels' names in it, by name expression.

    Raises
    ------
    RuntimeError
        With NVRTC's log.
    """
    arguments = [*options, *nvrtc.CUPY_OPTIONS, f"-arch={architecture}", "-lineinfo"]
    key = "\0".join([code, *expressions, *arguments, nvrtc.nvrtc_version(), str(cuda_headers())])
    name = "ptx-" + hashlib.sha256(key.encode()).hexdigest()[:24]
    path = nvrtc.cache_folder() / name
    with nvrtc.locked(path.with_suffix(".lock")):
        if not path.exists():
            found = _compiled(code, expressions, arguments, file)
            path.with_suffix(".new").write_text(json.dumps(found))
            path.with_suffix(".new").rename(path)
    text, lowered = json.loads(path.read_text())
    return text, lowered


def _compiled(
    code: str, expressions: Sequence[str], arguments: Sequence[str], file: str
) -> tuple[str, dict[str, str]]:
    with nvrtc.program(code, expressions, arguments, file) as compiled:
        if compiled.failed:
            raise RuntimeError(compiled.log)
        return compiled.ptx(), compiled.lowered


@functools.lru_cache(maxsize=64)
def load(ptx: str, name: str) -> Kernel:
    """The kernel of this mangled name."""
    return Kernel(parse_entry(ptx, name))


@dataclass
class Kernel:
    """A kernel that can be launched on NumPy arrays, which it changes in place."""

    entry: Entry

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        cooperative: bool = False,
    ) -> int:
        """Runs all blocks, one after another, or in turns; how many instructions that were.

        Parameters
        ----------
        grid, block : sequence of int
        args : sequence
            Arrays, NumPy scalars, None for a null pointer.
        shared_mem : int
            Bytes of dynamic shared memory.
        cooperative : bool
            The blocks run at the same time.

        Raises
        ------
        PtxError
        """
        arrays = [arg for arg in args if isinstance(arg, np.ndarray)]
        outside = Global(arrays)
        parameters = self._parameters(args, outside)
        grid, block = ((*map(int, sizes), 1, 1)[:3] for sizes in (grid, block))
        numbers = [n[::-1] for n in itertools.product(*map(range, grid[::-1]))]
        count = len(numbers) if cooperative else 1
        blocks = [
            Block(self.entry, outside, parameters, grid, block, shared_mem) for _ in range(count)
        ]
        steps = 0
        if cooperative:
            _take_turns([one.run(number) for one, number in zip(blocks, numbers, strict=True)])
            steps = sum(one.steps for one in blocks)
        else:
            for number in numbers:
                _take_turns([blocks[0].run(number)])
                steps += blocks[0].steps
        try:
            outside.finish()
        except FaultError as fault:
            raise PtxError(fault.kind, f"{fault.text}\n  in {self.entry.name}") from None
        return steps

    def _parameters(self, args: Sequence[Any], outside: Global) -> dict[str, bytes]:
        if len(args) != len(self.entry.parameters):
            raise TypeError(f"{self.entry.name}: takes {len(self.entry.parameters)} arguments")
        packed = {}
        for (name, size), arg in zip(self.entry.parameters.items(), args, strict=True):
            if arg is None or isinstance(arg, np.ndarray):
                data = np.uint64(0 if arg is None else outside.address(arg)).tobytes()
            else:
                data = arg.tobytes()
            if len(data) != size:
                raise TypeError(f"{name}: {arg!r} has {len(data)} bytes, not {size}")
            packed[name] = data
        return packed


class Module:
    """A source's kernels, for `tests.support.fake_cupy`: `module[name](grid, block, args)`."""

    def __init__(
        self, code: str, options: Sequence[str], name_expressions: Sequence[str], name: str
    ) -> None:
        self._ptx, self.kernels = compile_ptx(code, name_expressions, options, name)

    def __getitem__(self, name: str) -> _Launcher:
        return _Launcher(load(self._ptx, self.kernels.get(name, name)))


@dataclass
class _Launcher:
    """A kernel; what else a launch on the CPU can be told is of no use here."""

    kernel: Kernel
    max_dynamic_shared_size_bytes: int = 0

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        cooperative: bool = False,
        **_: Any,
    ) -> int:
        return self.kernel(grid, block, args, shared_mem, cooperative)


def _take_turns(running: list[Iterator[None]]) -> None:
    ended = object()
    while running:
        running = [one for one in running if next(one, ended) is not ended]
