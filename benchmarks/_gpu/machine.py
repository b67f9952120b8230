"""What device and software the figures belong to."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton", "jax", "jaxlib")
#: what each side needs on a GPU besides Python, by the beginnings of the packages' names
_INSTALLS = {
    "gpulayers": ("gpulayers", "numpy", "cupy-cuda", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"),
    "torch": ("torch", "triton", "nvidia-", "sympy", "mpmath", "networkx", "jinja2"),
    "jax": ("jax", "ml-dtypes", "ml_dtypes", "scipy", "opt-einsum", "nvidia-"),
}


def device() -> dict[str, str]:
    """Name, driver and clocks as nvidia-smi tells them; empty without a GPU."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,memory.total"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = told.stdout.strip().splitlines()
    if told.returncode or not lines:
        return {}
    return dict(zip(fields.split(","), map(str.strip, lines[0].split(",")), strict=False))


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed_bytes() -> dict[str, int]:
    """Bytes on disk of each side's packages, as far as they are installed here."""
    sizes: dict[str, int] = {}
    for side, starts in _INSTALLS.items():
        total = 0
        for package in importlib.metadata.distributions():
            name = str(package.metadata["Name"] or "").lower()
            if name.startswith(starts):
                total += sum(_size(Path(str(file.locate()))) for file in package.files or ())
        sizes[side] = total
    return sizes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def facts() -> dict[str, Any]:
    return {"device": device(), "versions": versions()}
