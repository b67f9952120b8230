"""gpulayers on the CuPy stand-in: its own copy of `gpulayers.cuda`, and a device without cuBLAS."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import gpulayers.ops._kernels
from tests.support import fake_cupy

__all__ = ["installed"]

NEED_CUBLAS = ("cublas", "reference")


@contextlib.contextmanager
def installed(flavour: str) -> Iterator[Any]:
    """Put the stand-in in CuPy's place for a `with` block.

    Parameters
    ----------
    flavour : "plain" or "check"
        How kernels are run in it.

    Yields
    ------
    module
        Its products of floating arrays are errors, as without cuBLAS, which an installation for a
        GPU does not bring; but not where gpulayers computes by one of the engines `NEED_CUBLAS`.
    """
    if flavour not in ("plain", "check"):
        raise pytest.UsageError(f"GPULAYERS_EMULATOR={flavour}: expected plain or check")
    state = fake_cupy.state
    before = state.flavour, state.lacks_cublas
    state.flavour = flavour
    state.lacks_cublas = lambda: gpulayers.ops._kernels.current_engine() not in NEED_CUBLAS
    try:
        with fake_cupy.installed() as xp, _cuda():
            yield xp
    finally:
        state.flavour, state.lacks_cublas = before


_bound_to_stand_in: dict[str, ModuleType] = {}
_loaded_on_stand_in: dict[Any, Any] = {}


@contextlib.contextmanager
def _cuda() -> Iterator[None]:
    """`gpulayers.cuda` binds the cupy it is imported with, so the stand-in has its own copy."""
    loaded = gpulayers.ops._kernels._loaded
    modules, kernels = _take_cuda_modules(), _take_cupy_entries(loaded)
    sys.modules.update(_bound_to_stand_in)
    loaded.update(_loaded_on_stand_in)
    try:
        yield
    finally:
        _bound_to_stand_in.update(_take_cuda_modules())
        _loaded_on_stand_in.update(_take_cupy_entries(loaded))
        sys.modules.update(modules)
        loaded.update(kernels)


def _take_cuda_modules() -> dict[str, ModuleType]:
    names = [n for n in sys.modules if n == "gpulayers.cuda" or n.startswith("gpulayers.cuda.")]
    return {name: sys.modules.pop(name) for name in names}


def _take_cupy_entries(loaded: dict[Any, Any]) -> dict[Any, Any]:
    return {key: loaded.pop(key) for key in list(loaded) if key[1] == "cupy"}
