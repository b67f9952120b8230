"""Philox4x64-10 on Python integers (Salmon et al., "Parallel random numbers", SC'11)."""

from __future__ import annotations

_MASK = 2**64 - 1


def block(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds on four counter words, least significant first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (right >> 64) ^ c1 ^ k0,
            right & _MASK,
            (left >> 64) ^ c3 ^ k1,
            left & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c0, c1, c2, c3


def words(key: tuple[int, int], counter: int, n: int) -> list[int]:
    """The first `n` words of numpy.random.Philox, which counts up before each block of four."""
    result: list[int] = []
    while len(result) < n:
        counter = (counter + 1) % 2**256
        result += block(tuple(counter >> shift & _MASK for shift in (0, 64, 128, 192)), key)
    return result[:n]
