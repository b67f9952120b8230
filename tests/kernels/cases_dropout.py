"""dropout.cu: against the Philox words of Python integers; sizes that fill no block of words."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    Launcher,
    blocks,
    close,
    poisoned,
    random,
    rounded,
)

KEY, P = (0x0123456789ABCDEF, 0xFEDCBA9876543210), 0.375
_MASK = 2**64 - 1


def _uniform(counter: int, n: int) -> np.ndarray:
    """Half a word a number, the low half first; its top 24 bits."""
    words = gold.philox(KEY, counter, -(-n // 2))
    halves = [part for word in words for part in (word & 0xFFFFFFFF, word >> 32)]
    return np.array([half >> 8 for half in halves[:n]]) / 2.0**24


def dropped(launcher: Launcher, n: int, offset: int, masked: bool, dtype: str, index: str) -> None:
    """The low half of the counter wraps inside; a number equal to p stays."""
    counter = 2**64 - 2
    x, values = rounded(random(n), dtype)
    scale = float(rounded(np.array([1 / (1 - P)]), dtype)[1][0])
    uniform = _uniform(counter + offset, n)
    p = float(uniform[n // 2]) if n > 1 else P  # as some number is
    stays = uniform >= p
    draws = np.array([*KEY, counter & _MASK, counter >> 64], np.uint64)
    before = draws.copy()
    y, kept = poisoned(n, dtype), np.full(n, 9, "u1")
    grid = blocks(-(-n // 8), "dropout_forward")
    args = (x, draws, y, kept, n, offset, masked, p, scale)
    launcher.launch("dropout_forward", dtype, index, grid, args)
    close(y, values * stays * scale, dtype)
    passes = stays & (values > 0) if masked else stays
    np.testing.assert_array_equal(kept, passes.astype("u1"))
    np.testing.assert_array_equal(draws, before)


def way_back(launcher: Launcher, n: int, counter: int, dtype: str, index: str) -> None:
    dy, upstream = rounded(random(n, seed="dy"), dtype)
    kept = (random(n) > 0).astype("u1")
    draws = np.array([*KEY, counter & _MASK, counter >> 64], np.uint64)
    dx, scale = poisoned(n, dtype), 1.5
    args = (dy, kept, dx, draws, n, scale)
    launcher.launch("dropout_backward", dtype, index, blocks(n, "dropout_backward"), args)
    close(dx, upstream * kept * scale, dtype)
    end = counter + -(-n // 8)
    assert draws.tolist() == [*KEY, end & _MASK, end >> 64]


CASES = [
    *(
        functools.partial(dropped, n=n, offset=offset, masked=masked, dtype=d, index=i)
        for (d, i), n, offset, masked in zip(
            (COMBINATIONS[0], *COMBINATIONS, COMBINATIONS[0], COMBINATIONS[0]),
            (1, 2100, 27, 16, 19, 8, 9),
            (0, 3, 0, 1, 2, 0, 1),
            (False, True, False, True, True, True, False),
            strict=True,
        )
    ),
    *(
        functools.partial(way_back, n=n, counter=counter, dtype=d, index=i)
        for (d, i), n, counter in zip(
            (COMBINATIONS[0], COMBINATIONS[0], *COMBINATIONS),
            (8, 4, 2100, 9, 1, 7),
            (5, 0, 3 * 2**64 - 2, 1, 2, 3),
            strict=True,
        )
    ),
]
