"""Products of warpgroups, as the PTX ISA says ("Asynchronous warpgroup level matrix instructions",
"Matrix descriptor format", "Canonical layouts"): wgmma of half types, both factors in shared memory
with the 128-byte swizzle.

A product's sums are there at once, which the PTX cannot tell; its factors must be the same when it
is waited for, and what threads wrote must have been shown to products (fence.proxy.async).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tests.support.ptx.memory import FaultError, Shared

__all__ = ["Form", "Products"]

Array = np.ndarray[Any, Any]
TERMS, ROWS, LINE, PATTERN = 16, 16, 128, 1024  # rows: of a warp
_SWIZZLE_128 = 1
_UNUSED = sum(1 << bit for bit in (*range(14, 16), *range(30, 32), *range(46, 62)))


class Form(NamedTuple):
    """What an instruction says of its factors."""

    kind: str
    columns: int
    a_by_lines: bool
    b_by_lines: bool


@dataclass
class _Product:
    """One that a warp has begun."""

    threads: Array
    group: int
    places: Array  # of all that it reads
    seen: Array


class Products:
    """All that the threads of a block have begun."""

    def __init__(self, shared: Shared, threads: int) -> None:
        self.shared = shared
        self.fenced = np.zeros(threads, np.bool_)
        self.open_group = np.zeros(threads, np.int64)
        self.begun: list[_Product] = []

    def reset(self) -> None:
        """For another block."""
        self.fenced[:], self.open_group[:], self.begun = False, 0, []

    def fence(self, threads: Array) -> None:
        """wgmma.fence."""
        self.fenced[threads] = True

    def commit(self, threads: Array) -> None:
        """wgmma.commit_group."""
        self.open_group[threads] += 1

    def wait(self, pending: int, threads: Array) -> None:
        """wgmma.wait_group."""
        self.fenced[threads] = False
        left = []
        for product in self.begun:
            first = int(product.threads[0])
            if first not in threads or product.group >= self.open_group[first] - pending:
                left.append(product)
            elif (self.shared.bytes[product.places] != product.seen).any():
                text = "a factor of a product has changed before its end"
                raise FaultError("product-source-changed", text, product.threads)
        self.begun = left

    def multiply(self, form: Form, a: int, b: int, sums: Array, threads: Array) -> Array:
        """wgmma.mma_async by a warp: sums (number, 32) + the products, rounded once."""
        if not self.fenced[threads].all():
            raise FaultError("no-product-fence", "no wgmma.fence after the last wait", threads)
        first = int(threads[0]) // 32 % 4 * ROWS
        base = self.shared.base
        left = _places(a, np.arange(first, first + ROWS), form.a_by_lines, threads) - base
        right = _places(b, np.arange(form.columns), form.b_by_lines, threads) - base
        x, y = (self._numbers(places, form.kind, threads) for places in (left, right))
        product = x @ y.T
        places = np.unique(np.concatenate([left.reshape(-1), right.reshape(-1)]))
        places = (places[:, None] + np.arange(2)).reshape(-1)
        group = int(self.open_group[threads[0]])
        self.begun.append(_Product(threads, group, places, self.shared.bytes[places].copy()))
        lanes, number = np.arange(32), np.arange(len(sums))[:, None]
        row = lanes // 4 + 8 * (number // 2 % 2)
        column = number // 4 * 8 + lanes % 4 * 2 + number % 2
        return (sums.astype(np.float64) + product[row, column]).astype(np.float32)

    def _numbers(self, places: Array, kind: str, threads: Array) -> Array:
        """(lines, terms) of what lies at these places of shared memory."""
        runs = np.unique(places // 16 * 16)
        readers = np.full(len(runs), threads[0])
        address = (runs + self.shared.base).astype(np.uint64)
        offset = self.shared.offsets(address, 16, readers)
        hidden = self.shared.hidden[offset[:, None] + np.arange(16)] >= 0
        if hidden.any():
            text = "a product reads what was written without fence.proxy.async since"
            raise FaultError("hidden-from-products", text, threads)
        self.shared.note_read(offset, 16, readers)
        bits = self.shared.view(np.uint16)[places // 2]
        if kind == "bf16":
            return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        return bits.view(np.float16).astype(np.float64)


def _places(descriptor: int, lines: Array, by_lines: bool, threads: Array) -> Array:
    """The addresses of the 16 terms of each line."""
    start, lines_apart, apart = ((descriptor >> bit & 0x3FFF) * 16 for bit in (0, 16, 32))
    inside = 0 if by_lines else LINE - 2 * TERMS
    if (
        descriptor >> 62 != _SWIZZLE_128
        or descriptor & _UNUSED
        or start % PATTERN > inside
        or apart % PATTERN
        or (by_lines and lines_apart % PATTERN)
    ):
        raise FaultError("product-descriptor", f"{descriptor:#x} is not known here", threads)
    line, term = lines[:, None], np.arange(TERMS)
    if by_lines:
        plain = line // 64 * lines_apart + line % 64 * 2 + term // 8 * apart + term % 8 * LINE
    else:
        plain = line // 8 * apart + line % 8 * LINE + term * 2
    place = start + plain
    return place ^ (place // LINE % 8 * 16)
