"""What machine and software the figures belong to, and which engines there are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys

from _cpu.duel import environment

_BLAS = """
from gpulayers.threads import blas_libraries
print(*(f"{b.internal_api} {b.version} for {b.architecture}" for b in blas_libraries()))
"""
_ENGINE = """
import numpy as np
from gpulayers.ops._kernels import kernels_for
print(type(kernels_for(np.zeros(1, "f4"))).__module__)
"""


def engines() -> tuple[list[str], str]:
    """Return the engines that run here, and which of them "auto" is."""
    found = {}
    for name in ("numpy", "compiled", "auto"):
        done = subprocess.run(
            [sys.executable, "-c", _ENGINE],
            env=environment(1, name),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            found[name] = done.stdout.split()[-1]
    names = [name for name in ("numpy", "compiled") if name in found]
    default = next((name for name in names if found[name] == found.get("auto")), "")
    return names, default


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"python": platform.python_version()}
    for name in ("gpulayers", "numpy", "torch", "numpy-ml"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def blas() -> str:
    """Return which BLAS NumPy has in a contestant, and the processor its kernels are for."""
    done = subprocess.run(
        [sys.executable, "-c", "import numpy;" + _BLAS],
        env=environment(1),
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def describe(threads: int) -> dict[str, object]:
    """Return processor, cores, threads, NumPy's BLAS and versions."""
    return {
        "cpu": cpu_model(),
        "logical cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "blas": blas(),
        "versions": versions(),
    }
