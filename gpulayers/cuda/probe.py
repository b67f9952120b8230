"""Whether CuPy computes here; if not, why, and what mends it."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

__all__ = ["probe"]

_log = logging.getLogger("gpulayers")

_INSTALL = (
    'in a clone of gpulayers, pip install ".[cuda13]" (driver 580 or newer) or '
    'pip install ".[cuda12]" (driver 525 or newer)'
)


def _find_room_for_kernels() -> None:
    """CuPy keeps what it has compiled in a folder, and does not even import where it cannot make
    that. There it gets another one, which this process removes at its end."""
    if "cupy" in sys.modules or importlib.util.find_spec("cupy") is None:
        return
    chosen = os.environ.get("CUPY_CACHE_DIR")
    folder = Path("~/.cupy/kernel_cache" if chosen is None else chosen).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if chosen != "" and os.access(folder, os.W_OK | os.X_OK):
            return
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        pass
    _log.warning(
        "the folder %s cannot be written, so CuPy compiles its kernels anew in each process; set "
        "CUPY_CACHE_DIR to another one",
        folder,
    )
    own = os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="gpulayers-kernels-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)


def probe() -> tuple[ModuleType | None, str, str, bool]:
    """Import CuPy and run a first kernel.

    Returns
    -------
    module : CuPy, or None where it cannot be used
    reason : str
    remedy : str
        What mends it.
    unexpected : bool
        Whether somebody meant to compute on a GPU: there is one, or CuPy is installed and broken.
    """
    _find_room_for_kernels()
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return None, "CuPy is not installed", _INSTALL, False
        return None, f"CuPy does not import: {error}", f"reinstall: {_INSTALL}", True
    except Exception as error:  # a broken installation may raise anything
        return None, f"CuPy does not import: {error}", f"reinstall: {_INSTALL}", True
    version = cupy.__version__
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" not in str(error):  # which is how the driver says zero
            return (
                None,
                f"CuPy {version} finds no usable NVIDIA driver: {error}",
                "install or update the NVIDIA driver (nvidia-smi must list the GPU), "
                "or the CuPy build for it: " + _INSTALL,
                shutil.which("nvidia-smi") is not None,
            )
        count = 0
    if count == 0:
        return (
            None,
            f"CuPy {version} and a driver are there, but no GPU is visible",
            "check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES",
            False,
        )
    try:
        cupy.zeros(1, dtype=np.float32)
    except Exception as error:
        return (
            None,
            f"a GPU is there, but allocating one element on it failed: {error}",
            "free memory on the GPU, or choose another one with CUDA_VISIBLE_DEVICES",
            True,
        )
    try:
        cupy.full(1, 1, dtype=np.float32).get()
    except Exception as error:  # compiler, its headers, driver: each raises its own type
        return (
            None,
            f"a GPU is there, but a first kernel failed on it: {error}",
            f"install what belongs to the driver and the GPU: {_INSTALL}; GPUs of a compute "
            "capability below 7.5 need cuda12",
            True,
        )
    return cupy, f"CuPy {version} with {count} GPU(s)", "", False
