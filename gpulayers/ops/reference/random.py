"""Philox4x64-10 in array arithmetic."""

from __future__ import annotations

from types import ModuleType

from gpulayers.backend import Array

# Salmon et al. (2011), section 5.1: the multipliers and the key increments
_M = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_W = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_MASK = 2**64 - 1


def _high_product(xp: ModuleType, a: Array, m: int) -> Array:
    """The upper 64 bits of a * m, by schoolbook multiplication of 32-bit halves."""
    half, low = xp.uint64(32), xp.uint64(0xFFFFFFFF)
    m0, m1 = xp.uint64(m & 0xFFFFFFFF), xp.uint64(m >> 32)
    a0, a1 = a & low, a >> half
    middle = a1 * m0 + ((a0 * m0) >> half)
    other = a0 * m1 + (middle & low)
    return a1 * m1 + (middle >> half) + (other >> half)


class ReferenceRandom:
    """Ten rounds of multiply, exchange and exclusive-or on counters counted up."""

    def philox_words(self, xp: ModuleType, key: tuple[int, int], counter: int, n: int) -> Array:
        blocks = -(-n // 4)
        start = (counter + 1) & (2**128 - 1)  # numpy.random.Philox counts up before each block
        index = xp.arange(blocks, dtype=xp.uint64)
        c0 = index + xp.uint64(start & _MASK)
        carry = (c0 < index).astype(xp.uint64)
        c1 = carry + xp.uint64(start >> 64)
        c2 = c3 = xp.zeros(blocks, dtype=xp.uint64)
        k0, k1 = key
        for _ in range(_ROUNDS):
            hi0, lo0 = _high_product(xp, c0, _M[0]), c0 * xp.uint64(_M[0])
            hi1, lo1 = _high_product(xp, c2, _M[1]), c2 * xp.uint64(_M[1])
            c0, c1, c2, c3 = hi1 ^ c1 ^ xp.uint64(k0), lo1, hi0 ^ c3 ^ xp.uint64(k1), lo0
            k0, k1 = (k0 + _W[0]) & _MASK, (k1 + _W[1]) & _MASK
        return xp.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:n]
