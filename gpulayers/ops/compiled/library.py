"""Loads the compiled kernels: the build of them that suits this machine's instructions.

The kernels take addresses, so the library needs no Python API, one file serves every version, and
ctypes releases the interpreter lock while they run.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers.errors import BackendError, ParameterError, suggest
from gpulayers.ops.compiled.build import LIBRARIES, RECORD, SUFFIX, sources_digest
from gpulayers.threads import thread_count

__all__ = ["Function", "address", "bind", "report", "unavailable_reason"]

_bytes_of = (ctypes.c_char * 0).from_buffer


class _Pointer:
    """What ctypes makes of an array that is an argument: the address of its first item."""

    @staticmethod
    def from_param(array: Any) -> Any:
        if array is None:
            return None
        try:  # four times as fast; refused for an array that has gaps, or must not be written
            return _bytes_of(array)
        except (TypeError, ValueError):
            return ctypes.c_void_p(array.__array_interface__["data"][0])


# The letters of a signature: p address, i int64, f a scalar of the array's kind, d double, n int.
_TYPES: dict[str, Any] = {
    "p": _Pointer,
    "i": ctypes.c_int64,
    "d": ctypes.c_double,
    "n": ctypes.c_int,
}
_SETS = ("baseline", "avx2", "avx512")  # by the number gl_instruction_set() gives
MOST_VARIABLE = "GPULAYERS_INSTRUCTIONS"  # the best of these sets to use
FOLDER_VARIABLE = "GPULAYERS_KERNELS_FOLDER"  # another build than the installed one, for tests
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class _Loaded:
    def __init__(self, library: ctypes.CDLL | None, name: str, reason: str) -> None:
        self.library, self.name, self.reason = library, name, reason


@cache
def _load() -> _Loaded:
    folder = Path(os.environ.get(FOLDER_VARIABLE) or LIBRARIES)
    usable = _usable_sets()
    try:
        record = json.loads((folder / RECORD.name).read_text())
    except (OSError, ValueError):
        reason = (
            "they were not built for the files in use; python -m gpulayers.ops.compiled does it"
        )
        return _Loaded(None, "", reason)
    if "failed" in record:
        return _Loaded(None, "", str(record["failed"]))
    if record.get("sources") != sources_digest():
        return _Loaded(None, "", "they were built from other sources than these")
    try:
        library = ctypes.CDLL(str(folder / f"kernels-baseline{SUFFIX}"))
        number: int = library.gl_instruction_set()
        built = record.get("sets", ())
        best = next(s for s in reversed(usable[: number + 1]) if s in built or s == usable[0])
        if best != usable[0]:
            library = ctypes.CDLL(str(folder / f"kernels-{best}{SUFFIX}"))
    except (OSError, AttributeError) as error:
        return _Loaded(None, "", f"the library could not be loaded: {error}")
    library.gl_set_threads.argtypes = [ctypes.c_int]
    library.gl_set_threads.restype = None
    return _Loaded(library, best, "")


def _usable_sets() -> tuple[str, ...]:
    """The instruction sets that the user lets us have."""
    most = os.environ.get(MOST_VARIABLE) or _SETS[-1]
    if most not in _SETS:
        raise ParameterError(
            f"{MOST_VARIABLE}: expected one of {', '.join(_SETS)}, got {most!r}"
            + suggest(most, _SETS)
        )
    return _SETS[: _SETS.index(most) + 1]


def unavailable_reason() -> str | None:
    """Why the compiled kernels cannot be used, or None."""
    return _load().reason or None


def report() -> str:
    """One line for ``gpulayers info``: which build is in use, or why none is."""
    loaded = _load()
    if loaded.library is None:
        return f"not used: {loaded.reason}"
    return f"in use, built for {loaded.name}"


def address(array: Any) -> int | None:
    """The address of a C-contiguous array's first item; None (NULL) for None."""
    if array is None:
        return None
    try:  # four times as fast; refused for an array that is empty, or must not be written
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):
        return array.__array_interface__["data"][0]


class _Local(threading.local):
    """Of each thread: the number of threads the library was told, who watches its calls."""

    def __init__(self) -> None:
        self.count = 0
        self.watcher: Callable[[Function, Any, list[Any], Any], None] | None = None


_local = _Local()


def watched(
    watcher: Callable[[Function, Any, list[Any], Any], None] | None,
) -> Callable[[Function, Any, list[Any], Any], None] | None:
    """Have ``watcher(function, dtype, arguments, result)`` called after each call of this thread;
    return the one before."""
    before, _local.watcher = _local.watcher, watcher
    return before


def is_watched() -> bool:
    """Whether this thread's calls are noted down: then all that can be is left to C."""
    return _local.watcher is not None


def symbol(name: str, dtype: Any) -> int | None:
    """The address of a function of the library, None where there is none."""
    function = getattr(_load().library, f"{name}_{'f32' if dtype == np.float32 else 'f64'}", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


class Function:
    """A kernel in its float and its double version: ``f(dtype, *arguments)``; arrays are given as
    they are. The caller keeps them alive, of that dtype, and C-contiguous."""

    def __init__(self, name: str, signature: str, result: Any = None) -> None:
        self.name, self.signature, self.result = name, signature, result
        self._of: dict[Any, Callable[..., Any]] = {}

    def _resolve(self, dtype: Any) -> Callable[..., Any]:
        library = _load().library
        if library is None:
            raise BackendError(f"the compiled kernels are not available: {unavailable_reason()}")
        single = dtype == np.float32
        function = getattr(library, f"{self.name}_{'f32' if single else 'f64'}")
        scalar = ctypes.c_float if single else ctypes.c_double
        function.argtypes = [scalar if c == "f" else _TYPES[c] for c in self.signature]
        function.restype = self.result
        self._of[dtype] = function
        return function

    def __call__(self, dtype: Any, *arguments: Any) -> Any:
        count = thread_count()
        if _local.count != count:
            library = _load().library
            if library is not None:
                library.gl_set_threads(count)
                _local.count = count
        result = (self._of.get(dtype) or self._resolve(dtype))(*arguments)
        if _local.watcher is not None:
            _local.watcher(self, dtype, list(arguments), result)
        return result


def bind(name: str, signature: str, result: Any = None) -> Function:
    """Declare a kernel; it is looked up at the first call."""
    return Function(name, signature, result)
