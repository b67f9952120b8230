"""Types of PTX as NumPy has them: registers of a width are unsigned integers, seen as what an
instruction takes them for."""

from __future__ import annotations

import functools
import re

import numpy as np

__all__ = ["NUMPY", "REGISTER", "is_float", "is_signed", "size_of"]

#: bfloat16 is kept as its bits
NUMPY: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    **{f"{kind}8": np.uint8 for kind in "bu"},
    **{f"{kind}16": np.uint16 for kind in ("b", "u", "bf")},
    **{f"{kind}32": np.uint32 for kind in "bu"},
    **{f"{kind}64": np.uint64 for kind in "bu"},
    "s8": np.int8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
}
#: by width in bytes
REGISTER: dict[int, type[np.generic]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@functools.cache
def size_of(kind: str) -> int:
    """Bytes of a value of a type."""
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8


def is_float(kind: str) -> bool:
    """Whether it is one of the floating types."""
    return kind.startswith(("f", "bf", "tf"))


def is_signed(kind: str) -> bool:
    """Whether it is one of the signed integer types."""
    return kind.startswith("s")
