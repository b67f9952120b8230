"""Which array library computes: NumPy, or CuPy on an NVIDIA GPU.

Two rules. Arrays decide: an operation runs where its input lives (`xp_of`). The default only
creates: new arrays go to the current backend (`xp`, `asarray`), which is what `use_backend`
chose, else ``GPULAYERS_BACKEND``, else a GPU if one answers, else NumPy.

    from gpulayers import backend
    backend.xp.zeros((2, 3))            # `xp` is looked up on each use, so it follows use_backend
    with backend.use_backend("numpy"):
        ...

CuPy is imported on first need, never by ``import gpulayers``, and a GPU counts as usable only
after a first kernel was really compiled for it and has run on it.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers._dtypes import default_dtype, is_floating, set_default_dtype
from gpulayers.errors import BackendError, DTypeError, ParameterError, suggest

Array = Any  # numpy.ndarray or cupy.ndarray; neither library is imported just to name a type

__all__ = [
    "Array",
    "asarray",
    "available",
    "backend_of",
    "current_backend",
    "default_dtype",
    "describe",
    "home_of",
    "is_floating",
    "module",
    "set_default_dtype",
    "to_backend",
    "to_cpu",
    "to_gpu",
    "use_backend",
    "xp_of",
]

NAMES = ("numpy", "cupy")
_log = logging.getLogger("gpulayers")


@dataclass(frozen=True)
class _CupyStatus:
    """What trying CuPy gave: the module when usable, else the reason and the remedy."""

    module: ModuleType | None
    reason: str
    remedy: str
    unexpected: bool = False  # there is a GPU, or was one meant to be, so somebody should know


_cupy_status: _CupyStatus | None = None
_current: ContextVar[str | None] = ContextVar("gpulayers_backend", default=None)
_auto_choice: str | None = None
_module_of_type: dict[type, ModuleType] = {np.ndarray: np}


# ------------------------------------------------------------------------------- finding CuPy


def _load_cupy() -> _CupyStatus:
    global _cupy_status
    if _cupy_status is None:
        from gpulayers.cuda.probe import probe

        _cupy_status = _CupyStatus(*probe())
        if _cupy_status.module is not None:
            _module_of_type[_cupy_status.module.ndarray] = _cupy_status.module
    return _cupy_status


def reset() -> None:
    """Forget what was found (tests put another CuPy in place)."""
    global _cupy_status, _auto_choice
    _cupy_status = None
    _auto_choice = None
    _current.set(None)
    _module_of_type.clear()
    _module_of_type[np.ndarray] = np


def _cupy_or_raise() -> ModuleType:
    status = _load_cupy()
    if status.module is None:
        raise BackendError(
            f"the backend 'cupy' was asked for, but {status.reason}. To mend it: {status.remedy}"
        )
    return status.module


# ---------------------------------------------------------------------------- choosing a backend


def _check_name(name: str, source: str) -> str:
    name = str(name).strip().lower()
    known = (*NAMES, "auto")
    if name not in known:
        raise BackendError(
            f"{source}: unknown backend {name!r}, expected one of {', '.join(known)}"
            + suggest(name, known)
        )
    return name


def _resolve_auto() -> str:
    global _auto_choice
    if _auto_choice is None:
        status = _load_cupy()
        _auto_choice = "numpy" if status.module is None else "cupy"
        if status.unexpected:
            _log.warning(
                "gpulayers computes with numpy, not on the GPU: %s. To mend it: %s",
                *(status.reason, status.remedy),
            )
        else:
            _log.info("gpulayers computes with %s: %s", _auto_choice, status.reason)
    return _auto_choice


def current_backend() -> str:
    """Return ``"numpy"`` or ``"cupy"``: where new arrays go.

    Raises
    ------
    BackendError
        If ``GPULAYERS_BACKEND`` names an unknown backend, or ``cupy`` where it cannot start.
    """
    name = _current.get()
    if name is None:
        name = _check_name(os.environ.get("GPULAYERS_BACKEND") or "auto", "GPULAYERS_BACKEND")
        if name == "cupy":
            _cupy_or_raise()
    return _resolve_auto() if name == "auto" else name


class use_backend:  # noqa: N801 - read as a verb, like contextlib.suppress
    """Choose where new arrays go, from now on or for the length of a ``with`` block.

    ``use_backend("numpy")`` takes effect at once; as a context manager it restores the former
    choice at the end of the block. The choice is a context variable: other threads and tasks
    keep theirs.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"cupy"`` or ``"auto"``.

    Raises
    ------
    BackendError
        For an unknown name, or for ``"cupy"`` where CuPy cannot start (with the cause and the
        line that mends it). There is no silent fallback.
    """

    def __init__(self, name: str) -> None:
        name = _check_name(name, "use_backend")
        if name == "cupy":
            _cupy_or_raise()
        self.name = name
        self._token = _current.set(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._token)


def available() -> tuple[str, ...]:
    """Return the names of the backends that work here: ``("numpy",)`` or ``("numpy", "cupy")``."""
    return ("numpy",) if _load_cupy().module is None else NAMES


def module(name: str) -> ModuleType:
    """Return the array module of a backend name.

    Raises
    ------
    BackendError
        If the name is unknown or CuPy cannot start.
    """
    name = _check_name(name, "module")
    if name == "auto":
        name = _resolve_auto()
    return np if name == "numpy" else _cupy_or_raise()


def __getattr__(name: str) -> Any:
    if name == "xp":
        return module(current_backend())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---------------------------------------------------------------------------------- arrays decide


# for which the formulas of arrays are wrong: elements are left out, `*` is another product
_OTHER_RULES: tuple[type, ...] = (np.ma.MaskedArray, np.matrix)


def _module_for(array: object) -> ModuleType | None:
    found = _module_of_type.get(type(array))
    if found is None:
        for kind, library in tuple(_module_of_type.items()):  # subclasses, e.g. numpy.memmap
            if isinstance(array, kind) and not isinstance(array, _OTHER_RULES):
                _module_of_type[type(array)] = library
                return library
        if type(array).__module__.partition(".")[0] == "cupy" and _load_cupy().module is not None:
            return _module_of_type.get(type(array))
    return found


def backend_of(array: Array) -> str:
    """Return ``"numpy"`` or ``"cupy"``: where `array` lives (errors as `xp_of`)."""
    return "numpy" if xp_of(array) is np else "cupy"


def home_of(name: str, what: str, array: Any) -> str:
    """As `backend_of`; the error for what is no array says whose argument it is."""
    try:
        return backend_of(array)
    except DTypeError as error:
        raise DTypeError(f"{name}: {what}: {error}") from None


def xp_of(*arrays: Array) -> ModuleType:
    """Return the library (`numpy` or `cupy`) that all `arrays` belong to; ``None`` is skipped.

    Raises
    ------
    BackendError
        If arrays of both libraries are mixed.
    DTypeError
        If an argument is no array of either, or a masked array or a `numpy.matrix`.
    """
    found: ModuleType | None = None
    for array in arrays:
        if array is None:
            continue
        library = _module_of_type.get(array.__class__) or _module_for(array)
        if library is None:
            raise DTypeError(
                f"expected a numpy or cupy array, got {type(array).__name__}; "
                "convert it with gpulayers.backend.asarray(...)"
            )
        if found is None:
            found = library
        elif library is not found:
            raise BackendError(
                "numpy and cupy arrays were mixed in one operation; move one side with "
                "gpulayers.backend.to_cpu(...) or to_gpu(...)"
            )
    if found is None:
        raise DTypeError("expected at least one array, got none")
    return found


def to_backend(array: Array, name: str) -> Array:
    """Return `array` on the backend `name`; the same object if it is there already.

    Raises
    ------
    BackendError
        If the backend is unknown or cannot start.
    DTypeError
        If `array` is no array.
    """
    return _moved("to_backend", array, name)


def _moved(caller: str, array: Array, name: str) -> Array:
    try:
        source = xp_of(array)
    except DTypeError as error:
        raise DTypeError(f"{caller}: {error}") from None
    target = module(name)
    if source is target:
        return array
    if target is np:
        return array.get()
    return target.asarray(array)


def to_cpu(array: Array) -> np.ndarray:
    """Return `array` as a NumPy array (copied from the GPU if it lives there)."""
    return _moved("to_cpu", array, "numpy")


def to_gpu(array: Array) -> Array:
    """Return `array` as a CuPy array; BackendError where CuPy cannot start."""
    return _moved("to_gpu", array, "cupy")


def asarray(value: Any, dtype: Any = None) -> Array:
    """Return an array on the current backend, where new layers and networks are made: on a GPU if
    one works and nothing else was asked for.

    Parameters
    ----------
    value : array of NumPy or CuPy, list or scalar
    dtype : dtype, optional
        By default that of `value`.

    Raises
    ------
    BackendError
        If the backend that was asked for cannot start.
    """
    library = module(current_backend())
    if _module_for(value) not in (None, library):
        value = to_backend(value, current_backend())
    return library.asarray(value, dtype=dtype)


# --------------------------------------------------------------------------------------- a report


def _gpu_lines(cupy: ModuleType) -> list[str]:
    runtime = cupy.cuda.runtime
    lines: list[str] = []
    for i in range(runtime.getDeviceCount()):
        props = runtime.getDeviceProperties(i)
        name = props["name"].decode() if isinstance(props["name"], bytes) else props["name"]
        lines.append(
            f"gpu {i}:      {name}, compute capability {props['major']}.{props['minor']}, "
            f"{props['totalGlobalMem'] / 2**30:.1f} GiB"
        )
    driver = runtime.driverGetVersion()
    lines.append(f"driver:     supports CUDA {driver // 1000}.{driver % 1000 // 10}")
    return lines


def describe() -> str:
    """Return a report of several lines: the library picked, why, the versions, and what would mend
    a missing GPU."""
    import gpulayers

    status = _load_cupy()
    asked = _current.get() or os.environ.get("GPULAYERS_BACKEND") or "auto"
    try:
        picked, why = current_backend(), ""
    except BackendError as error:
        picked, why = "none", str(error)
    if not why:
        if picked == "cupy":
            why = status.reason
        elif asked == "numpy":
            why = "NumPy was asked for"
        else:
            why = status.reason
    try:
        dtype = default_dtype().name
    except ParameterError as error:
        dtype = f"unknown, {error}"
    lines = [
        f"gpulayers:  {gpulayers.__version__}",
        f"backend:    {picked} (asked for: {asked})",
        f"why:        {why}",
        f"dtype:      {dtype}",
        f"numpy:      {np.__version__}",
        f"python:     {sys.version.split()[0]} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPU(s)",
    ]
    if status.module is not None:
        lines += [f"cupy:       {status.module.__version__}", *_gpu_lines(status.module)]
    else:
        lines.append(f"gpu:        none usable. If you expected one: {status.remedy}")
    return "\n".join(lines)
