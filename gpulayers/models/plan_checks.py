"""What `Sequential.compile` says of arguments that are none."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ParameterError, suggest
from gpulayers.losses import SoftmaxCrossEntropy

__all__ = [
    "check_device",
    "checked_loss",
    "checked_precision",
    "checked_shape",
    "device_of",
]

_PRECISIONS = {
    "fp32": "float32",
    "tf32": "float32",
    "fp64": "float64",
    "fp16": "float16",
    "bf16": "bfloat16",
}
_LOSSES = ("cross_entropy",)


def checked_precision(network: Any, precision: str | None) -> None:
    """Raise unless the network's parameters are of that precision."""
    if precision is None:
        return
    if precision not in _PRECISIONS:
        raise ParameterError(
            f"{network.name}.compile: unknown precision {precision!r}, expected one of "
            f"{', '.join(_PRECISIONS)}{suggest(str(precision), _PRECISIONS)}"
        )
    if network.dtype.name != _PRECISIONS[precision]:
        raise DTypeError(
            f"{network.name}.compile: precision {precision!r} needs parameters of "
            f"{_PRECISIONS[precision]}, these are {network.dtype}; set it before the "
            "first forward pass: gpulayers.set_default_dtype(...)"
        )


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    values = tuple(shape) if is_sequence(shape) else ()
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in values)
    if len(values) < 2 or not whole or min(values) < 1:
        raise ParameterError(
            f"{name}.compile: batch_shape must be (n_ex, ...), positive integers, got {shape!r}"
        )
    return tuple(int(n) for n in values)


def checked_loss(name: str, loss: Any) -> Any:
    if isinstance(loss, str):
        if loss != "cross_entropy":
            raise ParameterError(
                f"{name}.compile: unknown loss {loss!r}, expected one of {', '.join(_LOSSES)} or "
                f"a loss object{suggest(loss, _LOSSES)}"
            )
        return SoftmaxCrossEntropy()
    for method in ("forward", "backward"):
        if not callable(getattr(loss, method, None)):
            raise ParameterError(
                f"{name}.compile: the loss needs the methods forward(labels, outputs) and "
                f"backward(), got {loss!r}"
            )
    return loss


def device_of(network: Any) -> int | None:
    """The CUDA device of a network's parameters, the current one before there are any; None on the
    CPU."""
    if (network.home or backend.current_backend()) != "cupy":
        return None
    for _, layer in network.walk():
        for array in layer.parameters.values():
            if array is not None:
                return array.device.id
    return backend.module("cupy").cuda.Device().id


def check_device(name: str, device: int | None, *arrays: Array) -> None:
    """Raise a BackendError unless a plan's device is the current one, and that of the arrays."""
    if device is None:
        return
    current = backend.module("cupy").cuda.Device().id
    if current != device:
        raise BackendError(
            f"{name}: its parameters are on CUDA device {device}, the current device is {current}; "
            f"compile and train within `with cupy.cuda.Device({device}):`"
        )
    for array in arrays:
        if array.device.id != device:
            raise BackendError(
                f"{name}: the plan was made on CUDA device {device}, its data is on device "
                f"{array.device.id}"
            )
