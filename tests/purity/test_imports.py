"""`import gpulayers` works whatever state CuPy is in, and tells what is wrong when CuPy is needed.

Each case runs in a process of its own, with a `cupy` package that fails in one particular way put
in front of the installed one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpulayers import backend
from tests.conftest import Backend, no_gpu_reason

ROOT = Path(__file__).parents[2]

# A CuPy that fails where {fault} says.
BROKEN_CUPY = """
import types
if {fault!r} == "library missing":
    raise ImportError("libcuda.so.1: cannot open shared object file")
__version__ = "14.2.0"
class CUDARuntimeError(RuntimeError):
    pass
class ndarray:
    pass
def device_count():
    if {fault!r} == "no driver":
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    if {fault!r} == "no device":
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return 1
def zeros(*args, **kwargs):
    if {fault!r} == "no memory":
        raise MemoryError("Out of memory allocating 512 bytes")
def full(*args, **kwargs):
    if {fault!r} == "no compiler":
        raise RuntimeError("Failed to find CUDA headers")
    raise AssertionError("not reached")
def driver_version():
    return 0
def device_properties(i):
    return dict(name=b"broken", major=9, minor=0, totalGlobalMem=1 << 30)
runtime = types.SimpleNamespace(getDeviceCount=device_count, driverGetVersion=driver_version,
                                getDeviceProperties=device_properties)
cuda = types.SimpleNamespace(runtime=runtime, is_available=lambda: False)
"""

WORK = """
import sys
import gpulayers
assert "cupy" not in sys.modules, "import gpulayers imports cupy"
import numpy as np
from gpulayers import backend, layers
from gpulayers.errors import BackendError

layer = layers.FullyConnected(3, optimizer="SGD(lr=0.1)")
X = np.ones((2, 4), np.float32)
Y = layer.forward(X)
dX = layer.backward(np.ones_like(Y))
layer.update()
assert Y.shape == (2, 3) and dX.shape == X.shape

assert backend.current_backend() == "numpy" and backend.xp is np
assert backend.available() == ("numpy",)
report = backend.describe()
try:
    backend.use_backend("cupy")
except BackendError as error:
    print(report, "|", error)
else:
    raise AssertionError("use_backend('cupy') did not raise")
try:
    backend.to_gpu(X)
except BackendError:
    pass
else:
    raise AssertionError("to_gpu did not raise")
"""

CASES = {
    "library missing": "CuPy does not import: libcuda.so.1",
    "no driver": "no usable NVIDIA driver: cudaErrorInsufficientDriver",
    "no device": "no GPU is visible",
    "no memory": "Out of memory allocating 512 bytes",
    "no compiler": "a first kernel failed on it: Failed to find CUDA headers",
}


def python(code: str, path: Path | None = None, **environment: str) -> str:
    """What `code` prints in a fresh interpreter, with `path` searched first."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GPULAYERS_")}
    clean["PYTHONPATH"] = os.pathsep.join(str(p) for p in (path, ROOT) if p)
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def folder_with_cupy(tmp_path: Path, source: str) -> Path:
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(source)
    return tmp_path


def test_without_cupy() -> None:
    hidden = "import sys; sys.modules['cupy'] = None\n"
    code = hidden + WORK.replace('"cupy" not in sys.modules', "sys.modules['cupy'] is None")
    printed = python(code)
    assert "CuPy is not installed" in printed
    assert "pip install" in printed.partition("|")[2]


@pytest.mark.parametrize("fault", CASES)
def test_with_a_cupy_that_cannot_start(tmp_path: Path, fault: str) -> None:
    path = folder_with_cupy(tmp_path, BROKEN_CUPY.format(fault=fault))
    report, _, error = python(WORK, path).partition("|")
    assert CASES[fault] in report
    assert CASES[fault] in error
    assert "To mend it:" in error


def test_kernels_find_a_folder(tmp_path: Path) -> None:
    """CuPy makes its folder when imported, and would fail there; ours is gone at the end."""
    needs = "import os\nos.makedirs(os.environ['CUPY_CACHE_DIR'], exist_ok=True)\n"
    path = folder_with_cupy(tmp_path, needs + BROKEN_CUPY.format(fault="no compiler"))
    (tmp_path / "file").write_text("")
    code = (
        "import logging, os\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from gpulayers import backend\n"
        "backend.available()\n"
        "print(os.environ['CUPY_CACHE_DIR'], len(os.listdir(os.environ['CUPY_CACHE_DIR'])))"
    )
    for chosen in ("", str(tmp_path / "file" / "cache")):
        folder, count = python(code, path, CUPY_CACHE_DIR=chosen).split()
        assert count == "0"
        assert not Path(folder).exists()
    kept = str(tmp_path / "cache")
    assert python(code, path, CUPY_CACHE_DIR=kept).split() == [kept, "0"]


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.skipif(no_gpu_reason() is None, reason="there is a GPU here")
def test_with_the_real_cupy_and_no_gpu() -> None:
    assert "no usable NVIDIA driver" in python(WORK) or "no GPU is visible" in python(WORK)


@pytest.mark.parametrize("fault", CASES)
def test_asked_for_by_the_environment(tmp_path: Path, fault: str) -> None:
    path = folder_with_cupy(tmp_path, BROKEN_CUPY.format(fault=fault))
    code = """
import gpulayers  # importing never fails
from gpulayers import backend
from gpulayers.errors import BackendError
try:
    backend.current_backend()
except BackendError as error:
    print(error)
"""
    assert CASES[fault] in python(code, path, GPULAYERS_BACKEND="cupy")
    if fault == "no driver":
        assert python(code, path, GPULAYERS_BACKEND="numpy") == ""
        assert python(code, path, GPULAYERS_BACKEND="auto") == ""


def test_with_a_device(emulated: Backend) -> None:
    """The other side: where a GPU answers, `auto` takes it and the report names it."""
    with backend.use_backend("auto"):
        assert backend.current_backend() == "cupy"
        assert backend.available() == ("numpy", "cupy")
        report = backend.describe()
    assert "CPU stand-in, compute capability 9.0" in report
    assert "supports CUDA 13.2" in report


def test_every_module_imports_without_cupy() -> None:
    """All but the implementation in `gpulayers.cuda`; its table and sources load without CuPy."""
    code = """
import importlib, pkgutil, sys
sys.modules["cupy"] = None
import gpulayers
allowed = {"gpulayers.cuda." + n for n in ("compile", "table", "geometry")}
names = [m.name for m in pkgutil.walk_packages(gpulayers.__path__, "gpulayers.")]
failed = []
for name in names:
    if name.startswith("gpulayers.cuda.") and name not in allowed or name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
assert not failed, failed
print(len(names))
"""
    assert int(python(code)) > 30
