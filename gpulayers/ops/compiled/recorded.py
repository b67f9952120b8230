"""Kernel calls noted down once and run again as one call from Python, which otherwise costs as much
as a small kernel takes (src/recorded.c)."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops.compiled.library import DTYPES, Function, address, bind, symbol, watched
from gpulayers.ops.compiled.update import CompiledUpdate, adam_scalars
from gpulayers.ops.workspace import Workspace

__all__ = ["Recorder", "Updates"]

_WIDTH = 16  # call_t of src/recorded.c: a kernel's address and 15 values
_run_calls = bind("gl_run_calls", "pi", ctypes.c_int)


class _Calls:
    """Rows of call_t, and what keeps their addresses valid."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = 0
        self._table = np.zeros((0, _WIDTH), dtype=np.int64)
        self._words: Any = self._table.reshape(-1).data
        self._scalars: Any = self._table.view(np.float64).reshape(-1).data

    def resize(self, count: int) -> None:
        table = np.zeros((count, _WIDTH), dtype=np.int64)
        table[: len(self._table)] = self._table[:count]
        self._table = table
        self._words = table.reshape(-1).data  # items of a memoryview are set fastest
        self._scalars = table.view(np.float64).reshape(-1).data
        self.count = count

    def set_words(self, row: int, words: Iterable[int]) -> None:
        for k, word in enumerate(words, row * _WIDTH):
            self._words[k] = word

    def set_scalars(self, row: int, first: int, scalars: Iterable[float]) -> None:
        """The values of a row from number `first` on."""
        for k, scalar in enumerate(scalars, row * _WIDTH + 1 + first):
            self._scalars[k] = scalar

    def places(self, word: int) -> list[int]:
        """Where an address stands, for `replace`."""
        return [k for k, value in enumerate(self._words) if value == word and k % _WIDTH]

    def replace(self, places: list[int], word: int) -> None:
        for k in places:
            self._words[k] = word

    def run(self) -> int:
        """Run all calls; return 0, or how the first that failed did."""
        return _run_calls(self.dtype, self._table, self.count)


class Recorder(_Calls):
    """Notes the kernel calls of a thread inside ``with recorder:``, to run them again.

    What is run again are these kernels with these addresses, and nothing that NumPy computed
    between them. So `refusal` says why they cannot stand for what was done, where that is seen.

    Parameters
    ----------
    dtype : float32 or float64
    """

    def __init__(self, dtype: Any) -> None:
        super().__init__(dtype)
        self.refusal: str | None = None
        self._noted: list[list[int]] = []
        self._pointers: dict[int, str] = {}
        self._kept: list[Array] = []  # tables of numbers, which no one else may let go of

    def __enter__(self) -> Recorder:
        self._before = watched(self.note)
        return self

    def __exit__(self, *exc: object) -> None:
        watched(self._before)

    def note(self, function: Function, dtype: Any, arguments: list[Any], status: Any) -> None:
        """Take down a call of `function`, just made."""
        kernel = symbol(function.name.replace("gl_", "gl_recorded_", 1), dtype)
        if kernel is None or dtype != self.dtype or status:
            self.refusal = f"{function.name} in {dtype} that gave {status}"
            return
        row = [kernel]
        for letter, value in zip(function.signature, arguments, strict=True):
            if letter == "p":
                row.append(address(value) or 0)
                if value is not None:
                    self._pointers.setdefault(row[-1], function.name)
                    if value.dtype == np.int64:
                        self._kept.append(value)
            elif letter in "fd":
                row.append(int(np.float64(value).view(np.int64)))
            else:
                row.append(int(value))
        self._noted.append(row)

    def finish(self, workspace: Workspace, known: list[Array]) -> None:
        """No more calls come. All their arrays must lie in `workspace`, or be some of `known`;
        the owner of the recorder keeps those alive."""
        self.resize(len(self._noted))
        for k, row in enumerate(self._noted):
            self.set_words(k, row)
        starts = {address(array) for array in [*known, *self._kept]}
        for pointer, name in self._pointers.items():
            if pointer not in starts and not workspace.holds(pointer):
                self.refusal = f"{name} of an array that is not the workspace's"


class Updates(CompiledUpdate):
    """The update rules noted down and, with `run`, done in one call, in the order they came.

    Where the arrays are the same ones as at the last time, only the numbers are written anew.
    """

    def __init__(self, dtype: Any) -> None:
        self._calls = _Calls(dtype)
        self._serves = dtype in DTYPES
        self._rows: list[tuple[Any, ...]] = []  # of each call what was written there, and for what
        self._arrays: list[Array] = []  # kept until they have been written to
        self._next = 0

    def __reduce__(self) -> tuple[type[Updates], tuple[Any]]:
        return Updates, (self._calls.dtype,)  # a copy's arrays lie somewhere else

    def _add(self, kernel: str, grad: Array, arrays: list[Array], scalars: list[float]) -> None:
        row = self._next
        self._next = row + 1
        if row == len(self._rows):
            self._rows.append((None, None, None))
            self._calls.resize(row + 1)
        pointer, before = address(grad) or 0, self._rows[row]
        same = before[0] == kernel and before[1] == pointer and len(before[2]) == len(arrays)
        if not same or not all(map(operator.is_, before[2], arrays)):
            found = symbol(kernel, self._calls.dtype) or 0
            first, *states = (address(array) or 0 for array in arrays)
            self._calls.set_words(row, (found, first, pointer, *states, grad.size))
            self._rows[row] = kernel, pointer, arrays
        self._arrays.append(grad)
        self._calls.set_scalars(row, len(arrays) + 2, scalars)

    def run(self) -> None:
        """Do what was asked for since the last time."""
        self._calls.count, self._next = self._next, 0
        if self._calls.count:
            self._calls.run()
        self._arrays.clear()

    def _takes(self, *changed: Array) -> bool:
        """Others are updated at once, as ever."""
        if changed[0].dtype != self._calls.dtype or not self._serves:
            return False
        return all([array.flags.writeable for array in changed])

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None:
        if not self._takes(param, velocity):
            return super().sgd_update(param, grad, velocity, lr, momentum)
        self._add("gl_recorded_sgd", grad, [param, velocity], [lr, momentum])

    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None:
        if not self._takes(param, cache):
            return super().adagrad_update(param, grad, cache, lr, eps)
        self._add("gl_recorded_adagrad", grad, [param, cache], [lr, eps])

    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None:
        if not self._takes(param, cache):
            return super().rmsprop_update(param, grad, cache, lr, decay, eps)
        scalars = [lr, decay, 1.0 - decay, eps]
        self._add("gl_recorded_rmsprop", grad, [param, cache], scalars)

    def adam_update(
        self,
        param: Array,
        grad: Array,
        mean: Array,
        var: Array,
        lr: float,
        decay1: float,
        decay2: float,
        eps: float,
        t: int,
    ) -> None:
        if not self._takes(param, mean, var):
            return super().adam_update(param, grad, mean, var, lr, decay1, decay2, eps, t)
        scalars = adam_scalars(lr, decay1, decay2, eps, t)
        self._add("gl_recorded_adam", grad, [param, mean, var], [*scalars])
