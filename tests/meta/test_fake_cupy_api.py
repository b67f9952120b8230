"""The stand-in has CuPy's names, no others, and the snapshot is what the installed CuPy says."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.support import fake_cupy
from tests.support.fake_cupy import cuda, memory
from tests.support.fake_cupy.api import API, signature_of
from tests.support.fake_cupy.arrays import ndarray
from tests.support.fake_cupy.kernels import RawKernel, RawModule
from tests.support.fake_cupy.ufuncs import ufunc

CLASSES = {
    "cupy.ndarray": ndarray,
    "cupy.ufunc": ufunc,
    "cupy.RawKernel": RawKernel,
    "cupy.RawModule": RawModule,
    "cupy.cuda.Device": cuda.Device,
    "cupy.cuda.Event": cuda.Event,
    "cupy.cuda.Graph": cuda.Graph,
    "cupy.cuda.MemoryPointer": memory.MemoryPointer,
    "cupy.cuda.Memory": memory.Memory,
    "cupy.cuda.MemoryPool": memory.MemoryPool,
    "cupy.cuda.PythonFunctionAllocator": memory.PythonFunctionAllocator,
    "cupy.cuda.Stream": cuda.Stream,
}
# What every Python class may have without being asked.
COMMON = {"__doc__", "__module__", "__slots__", "__weakref__", "__dict__", "__annotations__"}
COMMON |= {"__static_attributes__", "__firstlineno__", "__init__", "__repr__", "__hash__"}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_invent_nothing(name: str) -> None:
    real = set(API[f"class {name}"])
    ours = {n for n in vars(CLASSES[name]) if not n.startswith("_") or n.startswith("__")}
    assert ours - real - COMMON == set()


@pytest.mark.parametrize("name", ["cupy", "cupy.linalg", "cupy.random", "cupy.fft", "cupyx"])
def test_modules_invent_nothing(name: str) -> None:
    module = fake_cupy.cupyx if name == "cupyx" else fake_cupy.cupy
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    assert {n for n in dir(module) if not n.startswith("_")} <= {*API[name], "lib"}


def test_cuda_invents_nothing() -> None:
    ours = {n for n in vars(fake_cupy.cupy.cuda) if not n.startswith("_")}
    assert ours <= set(API["cupy.cuda"])
    runtime = {n for n in vars(fake_cupy.cupy.cuda.runtime) if not n.startswith("_")}
    assert runtime <= set(API["cupy.cuda.runtime"])


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_a_device_has_the_attributes_that_cupy_asks_for() -> None:
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    assert [name for name in cuda.ATTRIBUTES if not hasattr(runtime, f"cudaDevAttr{name}")] == []


def test_random_numbers_need_a_library_that_nobody_installs() -> None:
    with pytest.raises(ImportError, match="libcurand"):
        fake_cupy.cupy.random.standard_normal(3)


def resolves(name: str) -> bool:
    try:
        getattr(fake_cupy.cupy, name)
    except NotImplementedError:
        return False
    return True


def test_most_of_cupy_is_there() -> None:
    """Every function and ufunc of the main namespace resolves, or says that it does not."""
    missing = [n for n, entry in API["cupy"].items() if entry != "module" and not resolves(n)]
    assert len(missing) <= 25, missing
    assert "ElementwiseKernel" in missing
    words = r"cupy\.ElementwiseKernel: in CuPy, not in this stand-in"
    with pytest.raises(NotImplementedError, match=words):
        _ = fake_cupy.cupy.ElementwiseKernel


def test_every_signature_parses() -> None:
    entries = [e for module in API.values() if isinstance(module, dict) for e in module.values()]
    signatures = [signature_of(e) for e in entries if e.startswith("(")]
    assert len(signatures) > 550


def test_importing_as_users_do() -> None:
    with fake_cupy.installed():
        import cupy.cuda.runtime
        import cupyx
        from cupy.lib.stride_tricks import sliding_window_view

        assert cupy.cuda.runtime.getDeviceCount() == 1
        assert sliding_window_view(cupyx.rsqrt(cupy.ones(4)), 2).shape == (3, 2)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="NumPy has it, CuPy does not"):
        _ = fake_cupy.cupy.einsum_path
    with pytest.raises(AttributeError, match=r"has no attribute 'sumx'$"):
        _ = fake_cupy.cupy.sumx


# ------------------------------------------------------------------------------------- drift

DESCRIBE = """
import json
from tests.support.fake_cupy.snapshot import describe_installed
print(json.dumps(describe_installed()))
"""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_snapshot_is_current(pytestconfig: pytest.Config) -> None:
    """Regenerate with `python -m tests.support.fake_cupy.snapshot` when CuPy moves on.

    A later CuPy may add names; what the snapshot says must still hold.
    """
    run = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        capture_output=True,
        text=True,
        cwd=pytestconfig.rootpath,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    installed: dict[str, Any] = json.loads(run.stdout)
    if _release(installed["version"]) == _release(API["version"]):
        assert installed == API
        return
    gone = {
        f"{module}: {name}"
        for module, entries in API.items()
        if isinstance(entries, dict)
        for name in entries
        if name not in installed.get(module, {})
    }
    assert gone == set(), f"CuPy {installed['version']} lacks names of the snapshot"


def _release(version: str) -> tuple[str, ...]:
    return tuple(re.split(r"\D+", version)[:2])
