"""A strict stand-in for CuPy 14 that runs on a CPU.

It has CuPy's names and signatures (api.json, a snapshot of the real library), NumPy underneath,
arrays that refuse to mix with host arrays, and CUDA kernels run by tests.support.cuda_on_cpu.

    from tests.support import fake_cupy

    with fake_cupy.installed() as cupy:               # `import cupy` now gives the stand-in
        x = cupy.zeros(3)
        with fake_cupy.count() as events, fake_cupy.forbid("sync", "d2h"):
            y = x + 1                                 # x.item() would raise DeviceRuleError
    events["launch"]

What it does not show: time, rounding of cuBLAS and of the GPU's functions, asynchrony (everything
runs at once), the order in which a device would run atomics. ElementwiseKernel, ReductionKernel
and fuse are not provided (NotImplementedError); cupy.random raises as it does without cuRAND.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.fake_cupy import arrays, cuda, kernels, memory, operators
from tests.support.fake_cupy.api import VERSION
from tests.support.fake_cupy.arrays import host, ndarray
from tests.support.fake_cupy.functions import Namespace, asnumpy
from tests.support.fake_cupy.state import CaptureError, CUDARuntimeError, DeviceRuleError, state
from tests.support.fake_cupy.ufuncs import ufunc

__all__ = [
    "CUDARuntimeError",
    "CaptureError",
    "DeviceRuleError",
    "count",
    "cupy",
    "cupyx",
    "forbid",
    "install",
    "installed",
    "state",
    "uninstall",
]

count = state.count
forbid = state.forbid
del operators  # imported for its effect: it gives ndarray its operators


def get_array_module(*args: Any) -> ModuleType:
    return cupy if any(isinstance(a, ndarray) for a in args) else np


def _scatter(name: str) -> Any:
    def scatter(a: ndarray, slices: Any, value: Any) -> None:
        getattr(cupy, name).at(a, slices, value)

    return scatter


def _rsqrt(x: ndarray) -> ndarray:
    value = host(x, "rsqrt")
    one = np.asarray(1, value.dtype)
    return arrays.created("rsqrt", lambda: np.asarray(one / np.sqrt(value)), [])


def _pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    return np.empty(shape, dtype, order)  # type: ignore[call-overload]


def _pinned_zeros(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    return np.zeros(shape, dtype, order)  # type: ignore[call-overload]


class _Random(Namespace):
    """cupy.random where gpulayers was installed with its extras: they bring no cuRAND."""

    def _make(self, name: str, entry: str, counterpart: Any) -> Any:
        def needs_curand(*args: Any, **kwargs: Any) -> Any:
            raise ImportError(f'Failure finding "libcurand.so.10" (cupy.random.{name})')

        return needs_curand


cupy = Namespace(
    "cupy",
    np,
    {
        "RawKernel": kernels.RawKernel,
        "RawModule": kernels.RawModule,
        "__version__": VERSION,
        "asnumpy": asnumpy,
        "cuda": cuda.make_cuda(),
        "fft": Namespace("cupy.fft", np.fft),
        "get_array_module": get_array_module,
        "get_default_memory_pool": lambda: memory.default_pool,
        "get_default_pinned_memory_pool": lambda: memory.pinned_pool,
        "is_available": lambda: True,
        "lib": ModuleType("cupy.lib"),
        "linalg": Namespace("cupy.linalg", np.linalg),
        "ndarray": ndarray,
        "random": _Random("cupy.random", np.random),
        "ufunc": ufunc,
    },
)
cupy.lib.stride_tricks = Namespace("cupy.lib.stride_tricks", np.lib.stride_tricks)
cupyx = Namespace(
    "cupyx",
    np,
    {
        "empty_pinned": _pinned,
        "rsqrt": _rsqrt,
        "scatter_add": _scatter("add"),
        "scatter_max": _scatter("maximum"),
        "scatter_min": _scatter("minimum"),
        "zeros_pinned": _pinned_zeros,
    },
)
arrays.namespace.cupy = cupy

_MODULES: dict[str, ModuleType] = {
    "cupy": cupy,
    "cupy.cuda": cupy.cuda,
    "cupy.cuda.memory": cupy.cuda.memory,
    "cupy.cuda.runtime": cupy.cuda.runtime,
    "cupy.fft": cupy.fft,
    "cupy.lib": cupy.lib,
    "cupy.lib.stride_tricks": cupy.lib.stride_tricks,
    "cupy.linalg": cupy.linalg,
    "cupy.random": cupy.random,
    "cupyx": cupyx,
}
_displaced: dict[str, ModuleType] = {}


def is_installed() -> bool:
    """Whether `import cupy` gives the stand-in."""
    return sys.modules.get("cupy") is cupy


def install() -> ModuleType:
    """Put the stand-in in the place of CuPy; `uninstall` brings back what was there."""
    if not is_installed():
        for name in [m for m in sys.modules if m.partition(".")[0] in ("cupy", "cupyx")]:
            _displaced[name] = sys.modules.pop(name)
        sys.modules.update(_MODULES)
    return cupy


def uninstall() -> None:
    """Undo `install`."""
    if is_installed():
        for name in _MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(_displaced)
        _displaced.clear()


@contextlib.contextmanager
def installed() -> Iterator[ModuleType]:
    """The stand-in as `cupy` for the length of a `with` block."""
    was = is_installed()
    try:
        yield install()
    finally:
        if not was:
            uninstall()
