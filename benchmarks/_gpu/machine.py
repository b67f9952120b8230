"""What device, software and sources the figures belong to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PACKAGES = (
    *("numpy", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton", "jax", "jaxlib"),
    *("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cublas", "nvidia-cublas-cu12"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
_SUFFIXES = (".py", ".cu", ".cuh", ".c", ".h")
#: variables that change what is computed, or how
_VARIABLES = ("GPULAYERS_", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES", "TORCH_")


def _asked(fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first device; nothing without a GPU."""
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = told.stdout.strip().splitlines()
    if told.returncode or not lines:
        return {}
    return dict(zip(fields.split(","), map(str.strip, lines[0].split(",")), strict=False))


def device() -> dict[str, str]:
    """Name, driver and clocks as nvidia-smi tells them; empty without a GPU."""
    return _asked("name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,memory.total")


def clock() -> dict[str, Any]:
    """The clock of the multiprocessors now, and why it is not the highest: bits of the driver's."""
    found: dict[str, Any] = {}
    fields = "clocks.sm,temperature.gpu,power.draw"
    for reasons in (",clocks_event_reasons.active", ",clocks_throttle_reasons.active", ""):
        if told := _asked(fields + reasons):  # the newer drivers' name, the older ones'
            break
    else:
        return found
    number = told.get("clocks.sm", "").removesuffix("MHz").strip()
    if number.isdigit():
        found["SM MHz"] = int(number)
    return {**found, **{name: value for name, value in told.items() if name != "clocks.sm"}}


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source() -> str:
    """A digest of the package's sources and the benchmark's, committed or not."""
    digest = hashlib.sha256()
    for folder in ("gpulayers", "benchmarks"):
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The commit that is checked out, with a plus where files were changed; None without git."""
    try:
        told = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None


def variables() -> dict[str, str]:
    """The environment's share in the results; no folders."""
    chosen = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    return {k: v for k, v in sorted(chosen.items()) if "/" not in v}


def facts() -> dict[str, Any]:
    return {
        "device": device(),
        "versions": versions(),
        "source": source(),
        "commit": commit(),
    }
