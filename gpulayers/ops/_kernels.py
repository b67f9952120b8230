"""Which implementation of the operations computes: by the engine and the arrays' library.

The public functions in the family files check their arguments and then call
``kernels_for(X).<operation>``; `ops._protocol` says what there is and what may be relied on.
"""

from __future__ import annotations

import importlib
import os
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

from gpulayers import backend
from gpulayers.errors import BackendError, ParameterError, suggest
from gpulayers.ops._protocol import Kernels

ENGINES = ("auto", "numpy", "compiled", "raw", "cublas", "cublaslt", "reference")
_IMPLEMENTATIONS = {
    "numpy": ("gpulayers.ops.cpu", "Cpu"),
    "compiled": ("gpulayers.ops.compiled", "Compiled"),
    "raw": ("gpulayers.cuda", "Cuda"),
    "cublas": ("gpulayers.cuda", "Cublas"),
    "cublaslt": ("gpulayers.cuda", "CublasLt"),
    "reference": ("gpulayers.ops.reference", "Reference"),
}
_loaded: dict[tuple[str, str], Kernels] = {}
_engine: ContextVar[str | None] = ContextVar("gpulayers_engine", default=None)


def _check_engine(name: str, source: str) -> str:
    name = str(name).strip().lower()
    if name not in ENGINES:
        raise ParameterError(
            f"{source}: unknown engine {name!r}, expected one of {', '.join(ENGINES)}"
            + suggest(name, ENGINES)
        )
    return name


@cache
def _from_environment() -> str:
    return _check_engine(os.environ.get("GPULAYERS_ENGINE") or "auto", "GPULAYERS_ENGINE")


def current_engine() -> str:
    """Return the name that `use_engine` set, else ``GPULAYERS_ENGINE`` (as it was when first
    asked), else ``"auto"``."""
    return _engine.get() or _from_environment()


class use_engine:  # noqa: N801 - read as a verb, like contextlib.suppress
    """Choose the implementation of the operations, at once or for a ``with`` block.

    A context variable: other threads keep theirs.

    Parameters
    ----------
    name : str
        ``"auto"``: on the CPU the compiled kernels where they are built (``gpulayers info`` says),
        else the fast NumPy code; on a GPU the CUDA kernels.
        ``"numpy"``, ``"compiled"``: that one on the CPU; on a GPU as ``"auto"``.
        ``"raw"``, ``"cublas"``, ``"cublaslt"``: on a GPU with matrix products by our own kernels,
        by CuPy's cuBLAS, or the large ones by cuBLASLt (which must be installed, and unlike cuBLAS
        fits in a captured step); on the CPU as ``"auto"``.
        ``"reference"``: the array formulas of `gpulayers.ops.reference` on either, to read along
        or to compare with.

    Raises
    ------
    ParameterError
        For an unknown name.
    BackendError
        For ``"compiled"`` where the kernels are not built; the message says why.
    """

    def __init__(self, name: str) -> None:
        self.name = _check_engine(name, "use_engine")
        if self.name == "compiled":
            _require_compiled("use_engine")
        self._token = _engine.set(self.name)

    def __enter__(self) -> use_engine:
        return self

    def __exit__(self, *exc: object) -> None:
        _engine.reset(self._token)


def _require_compiled(source: str) -> None:
    from gpulayers.ops import compiled

    reason = compiled.unavailable_reason()
    if reason:
        raise BackendError(
            f"{source}: the compiled kernels are not available: {reason}. With a C compiler "
            "installed, run: python -m gpulayers.ops.compiled"
        )


def _implementation_name(engine: str, library: str) -> str:
    """The key into `_IMPLEMENTATIONS` for arrays of a library."""
    if engine == "reference":
        return engine
    if library == "cupy":
        return engine if engine in ("cublas", "cublaslt") else "raw"
    if engine == "compiled":
        _require_compiled("GPULAYERS_ENGINE")
    if engine in ("auto", "raw", "cublas", "cublaslt"):
        from gpulayers.ops import compiled

        return "numpy" if compiled.unavailable_reason() else "compiled"
    return engine


def _implementation(library: str) -> Kernels:
    key = (current_engine(), library)
    found = _loaded.get(key)
    if found is None:
        where, name = _IMPLEMENTATIONS[_implementation_name(*key)]
        found = _loaded[key] = getattr(importlib.import_module(where), name)()
    return found


def reference_kernels() -> Kernels:
    """The array formulas, whatever the engine: they take arrays that kernels cannot."""
    from gpulayers.ops.reference import Reference

    return Reference()


def kernels_of_module(xp: ModuleType) -> Kernels:
    """Return the implementation for arrays of the module `xp` (numpy or cupy)."""
    return _implementation("numpy" if xp.__name__ == "numpy" else "cupy")


def kernels_for(*arrays: Any) -> Kernels:
    """Return the implementation for these arrays; they must be of one library (see `xp_of`)."""
    library = "numpy" if backend.xp_of(*arrays).__name__ == "numpy" else "cupy"
    return _loaded.get((_engine.get() or _from_environment(), library)) or _implementation(library)
