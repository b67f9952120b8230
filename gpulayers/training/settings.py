"""Checks of what a trainer is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.errors import ParameterError, suggest
from gpulayers.models import Sequential

__all__ = ["count", "device_backend", "max_norm", "parameter_dtype"]

DEVICES = {"cpu": "numpy", "gpu": "cupy", "auto": "auto", "numpy": "numpy", "cupy": "cupy"}


def device_backend(device: str | None) -> str:
    """Return the backend's name ("numpy", "cupy" or "auto") for "cpu", "gpu", "auto" or None.

    Raises
    ------
    ParameterError
        If the name is unknown.
    """
    if device is None:
        return backend.current_backend()
    name = DEVICES.get(str(device).lower())
    if name is None:
        raise ParameterError(
            f"unknown device {device!r}, expected cpu, gpu or auto{suggest(device, DEVICES)}"
        )
    return name


def max_norm(value: Any) -> float | None:
    """Return the limit of the gradients' norm, or None.

    Raises
    ------
    ParameterError
        If it is no finite number above 0.
    """
    if value is None:
        return None
    return float(_spec.real("Trainer", "clip_global_norm", value, 0.0, open_low=True))


def parameter_dtype(dtype: Any, network: Sequential) -> np.dtype:
    """Return the parameters' dtype: as asked for, else as they are, else the default.

    Raises
    ------
    ParameterError
        If it is no floating dtype, or the parameters have another one already.
    """
    if dtype is None:
        return np.dtype(network.dtype)
    former = backend.default_dtype()
    try:
        backend.set_default_dtype(dtype)  # checks it
        asked = backend.default_dtype()
    finally:
        backend.set_default_dtype(former)
    if network.home is not None and network.dtype != asked:
        raise ParameterError(
            f"Trainer: dtype={asked.name} was asked for, but the network's parameters are "
            f"{network.dtype.name} already; build a new network"
        )
    return asked


def count(name: str, value: Any) -> int:
    """Return `value` as an int; ParameterError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ParameterError(f"Trainer: {name} must be a positive integer, got {value!r}")
    return int(value)
