"""How exactly float32 products are worked out on a GPU: in float32, or in TF32 by tensor cores.

TF32 has the exponents of float32 and 10 bits of its mantissa: factors are rounded to it, to the
nearest (half way, from compute capability 9.0 on to even, before away from zero), and their
products summed in float32 (NVIDIA, "A100 Tensor Core GPU Architecture", 2020).
The error of a product, relative in the Frobenius norm, is below 1e-6 in "fp32", about 3e-4 and
below 1e-3 in "tf32"; the results of bfloat16 are within 4e-3 and those of float16 within 5e-4,
which is the rounding of what is stored.

Products of the half types use tensor cores wherever the device has them: they lose nothing by it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from gpulayers.cuda.table_tiles import CORES, TENSOR_CORES
from gpulayers.errors import BackendError, ParameterError, suggest

__all__ = [
    "PRECISIONS",
    "capability",
    "check",
    "current",
    "has_tensor_cores",
    "takes_tensor_cores",
    "use_precision",
]

#: what float32 is multiplied in; the first is the default
PRECISIONS = ("fp32", "tf32")

_current: ContextVar[str] = ContextVar("gpulayers_precision", default=PRECISIONS[0])


def current() -> str:
    """Return what float32 is multiplied in here: ``"fp32"`` or ``"tf32"``."""
    return _current.get()


class use_precision:  # noqa: N801 - read as a verb, like use_engine
    """Multiply float32 in another precision within a ``with`` block.

    Parameters
    ----------
    name : "fp32" or "tf32"

    Raises
    ------
    ParameterError
        If `name` is neither.
    """

    def __init__(self, name: str) -> None:
        if name not in PRECISIONS:
            raise ParameterError(
                f"use_precision: unknown precision {name!r}, expected one of "
                f"{', '.join(PRECISIONS)}{suggest(str(name), PRECISIONS)}"
            )
        self._name = name

    def __enter__(self) -> use_precision:
        self._token = _current.set(self._name)
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._token)


def capability() -> int:
    """Return the compute capability of the current device, 90 for 9.0."""
    import cupy

    return int(cupy.cuda.Device().compute_capability)


def has_tensor_cores() -> bool:
    """Whether the current device has tensor cores for TF32 and both half types."""
    return capability() >= TENSOR_CORES


def takes_tensor_cores(who: str, dtype: Any) -> bool:
    """Whether `who` multiplies numbers of this dtype by tensor cores, here and now.

    Raises
    ------
    BackendError
        If the precision is one that the device does not have.
    """
    if dtype.name not in CORES:
        return False
    if dtype.name != "float32":
        return has_tensor_cores()
    check(who, current())
    return current() == "tf32"


def check(who: str, name: str) -> None:
    """Raise if the current device cannot multiply in the precision `name`.

    Raises
    ------
    BackendError
        If `name` is "tf32" and the device is older than compute capability 8.0; it begins with
        `who`.
    """
    if name == "tf32" and not has_tensor_cores():
        old = capability()
        raise BackendError(
            f"{who}: precision 'tf32' needs a GPU of compute capability "
            f"{TENSOR_CORES // 10}.{TENSOR_CORES % 10} or newer, this one has "
            f"{old // 10}.{old % 10}; use 'fp32'"
        )
