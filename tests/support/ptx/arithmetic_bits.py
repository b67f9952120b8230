"""The instructions of arithmetic.py that take numbers for bits ("Logic and shift", "Integer
arithmetic": bfe, bfi, brev ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.ptx.formula import Formula, same
from tests.support.ptx.types import size_of

__all__ = [
    "count",
    "extract",
    "find",
    "funnel",
    "insert",
    "inverted",
    "leading",
    "logic",
    "permute",
    "shift",
    "turned_round",
]

Array = np.ndarray[Any, Any]


def logic(function: Callable[..., Array], count: int) -> Callable[[list[str]], Formula | None]:
    def make(parts: list[str]) -> Formula | None:
        return same(function, parts[0], count) if len(parts) == 1 else None

    return make


def inverted(parts: list[str]) -> Formula | None:
    function = np.logical_not if parts == ["pred"] else np.invert
    return same(function, parts[0], 1) if len(parts) == 1 else None


def shift(left: bool) -> Callable[[list[str]], Formula | None]:
    """Amounts beyond the width shift everything out."""

    def make(parts: list[str]) -> Formula | None:
        if len(parts) != 1:
            return None
        kind = parts[0]
        bits = 8 * size_of(kind)

        def shifted(a: Array, amount: Array) -> Array:
            by = np.minimum(amount, np.uint32(bits - 1)).astype(a.dtype)
            over = amount >= bits
            if left:
                return np.where(over, a.dtype.type(0), a << by)
            moved = a >> by
            return moved if a.dtype.kind == "i" else np.where(over, a.dtype.type(0), moved)

        return Formula(shifted, (kind, "u32"), kind)

    return make


def _ones(count: Array, kind: np.dtype[Any]) -> Array:
    """That many lowest bits."""
    bits = 8 * kind.itemsize
    full = kind.type(2**bits - 1)
    some = (kind.type(1) << np.minimum(count, bits - 1).astype(kind)) - kind.type(1)
    return np.where(count >= bits, full, some)


def insert(parts: list[str]) -> Formula | None:
    """bfi: `length` bits of a into b from `start` on."""

    def inserted(a: Array, b: Array, start: Array, length: Array) -> Array:
        kind, start, length = b.dtype, start & np.uint32(255), length & np.uint32(255)
        by = np.minimum(start, 8 * kind.itemsize - 1).astype(kind)
        mask = np.where(start >= 8 * kind.itemsize, kind.type(0), _ones(length, kind) << by)
        return (b & ~mask) | ((a << by) & mask)

    return Formula(inserted, (parts[0], parts[0], "u32", "u32"), parts[0])


def extract(parts: list[str]) -> Formula | None:
    """bfe of unsigned numbers."""
    if not parts[0].startswith("u"):
        return None

    def extracted(a: Array, start: Array, length: Array) -> Array:
        kind, start, length = a.dtype, start & np.uint32(255), length & np.uint32(255)
        by = np.minimum(start, 8 * kind.itemsize - 1).astype(kind)
        shifted = np.where(start >= 8 * kind.itemsize, kind.type(0), a >> by)
        return shifted & _ones(length, kind)

    return Formula(extracted, (parts[0], "u32", "u32"), parts[0])


def _bits(a: Array) -> Array:
    """Lowest bit first, along a new last axis."""
    places = np.arange(8 * a.dtype.itemsize, dtype=a.dtype)
    return (a[..., None] >> places) & a.dtype.type(1)


def turned_round(parts: list[str]) -> Formula | None:
    def turned(a: Array) -> Array:
        bits = _bits(a)[..., ::-1]
        places = np.arange(8 * a.dtype.itemsize, dtype=a.dtype)
        return np.bitwise_or.reduce(bits << places, axis=-1)

    return same(turned, parts[0], 1)


def count(parts: list[str]) -> Formula | None:
    def count(a: Array) -> Array:
        return _bits(a).sum(axis=-1).astype(np.uint32)

    return Formula(count, (parts[0],), "u32")


def leading(a: Array) -> Array:
    """Zeros above the highest bit; the width where there is none."""
    bits = _bits(a)
    width = bits.shape[-1]
    places = np.where(bits > 0, np.arange(width), -1).max(axis=-1)
    return (width - 1 - places).astype(np.uint32)


def find(parts: list[str]) -> Formula | None:
    """bfind of unsigned numbers: the place of the highest bit, or how far it is from the top."""
    kind = parts[-1]
    if not kind.startswith("u"):
        return None
    width = 8 * size_of(kind)

    def found(a: Array) -> Array:
        zeros = leading(a)
        place = zeros if parts[0] == "shiftamt" else np.uint32(width - 1) - zeros
        return np.where(a == 0, np.uint32(0xFFFFFFFF), place)

    return Formula(found, (kind,), "u32")


def permute(parts: list[str]) -> Formula | None:
    """prmt of the default mode: byte i is that of b:a which nibble i of c names; the nibble's
    highest bit asks for its sign instead."""

    def permuted(a: Array, b: Array, c: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
        for i in range(4):
            nibble = (c >> np.uint32(4 * i)) & np.uint32(15)
            byte = both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            byte = (byte & np.uint64(255)).astype(np.uint32)
            sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
            result |= np.where(nibble >= 8, sign, byte) << np.uint32(8 * i)
        return result

    return same(permuted, "b32", 3) if parts == ["b32"] else None


def funnel(parts: list[str]) -> Formula | None:
    """shf: 32 bits of b:a, moved left or right by c, wrapped or clamped to 32."""
    if parts[0] not in ("l", "r") or parts[1] not in ("wrap", "clamp") or parts[2] != "b32":
        return None

    def funnelled(a: Array, b: Array, c: Array) -> Array:
        amount = c & np.uint32(31) if parts[1] == "wrap" else np.minimum(c, np.uint32(32))
        by = amount.astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        if parts[0] == "r":
            return (both >> by).astype(np.uint32)
        return ((both << by) >> np.uint64(32)).astype(np.uint32)

    return same(funnelled, "b32", 3)
