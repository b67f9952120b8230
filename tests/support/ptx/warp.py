"""What the lanes of a warp do together, as the PTX ISA says ("Warp-level matrix instructions",
"Matrix fragments for mma", "ldmatrix", "shfl.sync", "vote.sync", "redux.sync"). Arrays are
(warps, 32)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.ptx.memory import FaultError, Shared

__all__ = ["PRODUCTS", "Product", "gather_matrices", "multiply", "reduce", "source_lanes"]

Array = np.ndarray[Any, Any]
LANES = np.arange(32)
#: groupID and threadID_in_group of the ISA's drawings
GROUP, PLACE = LANES >> 2, LANES & 3


class Product:
    """The fragments of one shape of mma: rows and columns of each number that a lane has.

    A: (rows, terms), B: (terms, cols), C and D: (rows, cols); (numbers, 32) each.
    """

    def __init__(self, terms: int, kind: str) -> None:
        self.terms, self.kind = terms, kind
        per_register = 1 if kind == "tf32" else 2
        columns = []
        for half in range(2):  # of the terms: words 0-3, then 4-7 of a row
            columns += [
                PLACE * per_register + i + half * 4 * per_register for i in range(per_register)
            ]
        lower, upper = columns[:per_register], columns[per_register:]
        # a0 a1 a2 a3: rows g, g + 8 of the first half of the terms, then of the second
        quarters = [(GROUP, lower), (GROUP + 8, lower), (GROUP, upper), (GROUP + 8, upper)]
        self.a_rows = np.array([row for row, terms_ in quarters for _ in terms_])
        self.a_terms = np.array([term for _, terms_ in quarters for term in terms_])
        self.b_terms = np.array(columns)
        self.b_cols = np.broadcast_to(GROUP, self.b_terms.shape)
        self.c_rows = np.array([GROUP, GROUP, GROUP + 8, GROUP + 8])
        self.c_cols = np.array([2 * PLACE, 2 * PLACE + 1] * 2)

    def numbers(self, registers: Sequence[Array]) -> Array:
        """What registers (warps, 32) hold, exactly: (warps, numbers, 32); the lower half of a
        register comes first."""
        words = np.stack(registers, axis=1)
        if self.kind == "tf32":  # the other 13 bits are not looked at
            return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=2)
        halves = halves.reshape(words.shape[0], -1, 32)
        if self.kind == "bf16":
            return (halves << np.uint32(16)).view(np.float32).astype(np.float64)
        return halves.astype(np.uint16).view(np.float16).astype(np.float64)


#: by shape and the type of both factors
PRODUCTS = {
    ("m16n8k4", "tf32"): None,  # has another layout, which nobody uses
    ("m16n8k8", "tf32"): Product(8, "tf32"),
    ("m16n8k16", "f16"): Product(16, "f16"),
    ("m16n8k16", "bf16"): Product(16, "bf16"),
}


def multiply(
    shape: Product, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]
) -> list[Array]:
    """mma with float32 sums: the four registers of d. Products are exact, and their sum is rounded
    once; the order and the rounding of a device's sums are not laid down."""
    warps = a[0].shape[0]
    left = np.full((warps, 16, shape.terms), np.nan)
    right = np.full((warps, shape.terms, 8), np.nan)
    left[:, shape.a_rows, shape.a_terms] = shape.numbers(a)
    right[:, shape.b_terms, shape.b_cols] = shape.numbers(b)
    total = np.full((warps, 16, 8), np.nan)
    total[:, shape.c_rows, shape.c_cols] = np.stack(c, axis=1).astype(np.float64)
    total += left @ right
    return list(np.moveaxis(total[:, shape.c_rows, shape.c_cols].astype(np.float32), 1, 0))


def gather_matrices(
    shared: Shared, rows: Array, count: int, transposed: bool, threads: Array
) -> list[Array]:
    """ldmatrix of m8n8, b16: the registers of `count` matrices. Lane 8 i + r has the address of row
    r of matrix i; the addresses of the lanes behind are not used. Each lane gets two neighbours of
    row lane / 4, or of that of the transpose."""
    used = rows[:, : 8 * count].reshape(-1)
    by = threads.reshape(-1, 32)[:, : 8 * count].reshape(-1)
    words = shared.read(used, np.uint16, 8, by).reshape(-1, count, 8, 8)
    if transposed:
        words = words.transpose(0, 1, 3, 2)
    low = words[:, :, GROUP, 2 * PLACE].astype(np.uint32)
    high = words[:, :, GROUP, 2 * PLACE + 1].astype(np.uint32)
    both = low | high << np.uint32(16)
    return [both[:, i] for i in range(count)]


def source_lanes(mode: str, b: Array, c: Array) -> tuple[Array, Array]:
    """shfl: the lane that each lane gets its value from, and whether that is in range."""
    lane = np.broadcast_to(LANES, b.shape)
    by, clamp, segment = ((x.astype(np.int64)) for x in (b & 31, c & 31, c >> 8 & 31))
    first = lane & segment
    last = first | (clamp & ~segment & 31)
    match mode:
        case "up":
            source = lane - by
            inside = source >= last
        case "down":
            source = lane + by
            inside = source <= last
        case "bfly":
            source = lane ^ by
            inside = source <= last
        case "idx":
            source = first | (by & ~segment & 31)
            inside = source <= last
        case _:
            raise FaultError("unknown-instruction", f"shfl.{mode}")
    return np.where(inside, source, lane), inside


def reduce(name: str, values: Array, members: Array) -> Array:
    """redux over the lanes that take part (warps, 32)."""
    functions = {
        "add": (np.add, 0),
        "min": (np.minimum, np.iinfo(values.dtype).max),
        "max": (np.maximum, np.iinfo(values.dtype).min),
        "and": (np.bitwise_and, -1),
        "or": (np.bitwise_or, 0),
        "xor": (np.bitwise_xor, 0),
    }
    function, neutral = functions[name]
    filler = np.array(neutral).astype(values.dtype)
    result = function.reduce(np.where(members, values, filler), axis=1, dtype=values.dtype)
    return np.broadcast_to(result[:, None], values.shape)
