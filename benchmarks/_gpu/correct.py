"""Whether a kernel is right: held against float64, in memory that was full of NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["TOLERANCE", "Poison", "Wrong", "far", "hold"]

#: error relative in the Euclidean (Frobenius) norm, and the largest one relative to the largest
#: number: rounding of the inputs (TF32), of sums in float32, of the results (the half types)
TOLERANCE = {
    "fp32": (1e-5, 2e-5),
    "tf32": (2e-3, 3e-3),
    "fp16": (1e-3, 5e-3),
    "bf16": (8e-3, 4e-2),
}
_NAN_BYTE = 0xFF  # NaN in every floating type


class Wrong(NamedTuple):
    """How far something is from what it should be; see `TOLERANCE`."""

    norm: float
    largest: float


class Poison:
    """Has results written where every byte is 0xFF: what a kernel leaves out is NaN then."""

    def __init__(self, xp: Any) -> None:
        self._xp, self._pool = xp, xp.cuda.MemoryPool()

    def _take(self, size: int) -> Any:
        memory = self._pool.malloc(size)
        if size:
            memory.memset_async(_NAN_BYTE, size)  # in the order of the stream that the kernel is in
        return memory

    def __call__(self, run: Callable[[], Any]) -> Any:
        with self._xp.cuda.using_allocator(self._take):
            return run()

    def free(self) -> None:
        """Give the memory of results that are gone back to the device."""
        self._pool.free_all_blocks()


def far(xp: Any, found: Any, wanted: Any) -> Wrong:
    """The errors of one array, or of the worst of several; infinite where there is a NaN."""
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    norm = largest = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            raise ArithmeticError(f"a result of shape {a.shape}, not {b.shape}")
        if a.dtype.itemsize == 2:
            a = a.astype("float32")
        a, b = a.astype("float64").reshape(-1), b.astype("float64").reshape(-1)
        apart, most = xp.abs(a - b), max(float(xp.abs(b).max()), 1e-30)
        sums = (float((x * x).sum()) ** 0.5 for x in (apart, b))
        errors = next(sums) / max(next(sums), 1e-30), float(apart.max()) / most
        if not all(error < float("inf") for error in errors):
            return Wrong(float("inf"), float("inf"))
        norm, largest = max(norm, errors[0]), max(largest, errors[1])
    return Wrong(norm, largest)


def hold(xp: Any, what: str, found: Any, wanted: Any, precision: str, times: float = 1.0) -> Wrong:
    """Return the errors of results that are within `times` the precision's tolerance.

    Raises
    ------
    ArithmeticError
        If they are not.
    """
    wrong = far(xp, found, wanted)
    most = TOLERANCE[precision]
    if not all(error <= times * bound for error, bound in zip(wrong, most, strict=True)):
        raise ArithmeticError(
            f"{what} is off by {wrong.norm:.1e} (norm), {wrong.largest:.1e} (largest) from float64"
        )
    return wrong
