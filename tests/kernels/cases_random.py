"""random.cu: against Philox in Python integers and against NumPy's own generator."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import Launcher, blocks, poisoned

KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
_MASK = 2**64 - 1


def words(launcher: Launcher, n: int, counter: int, index: str) -> None:
    out = poisoned(n, "uint64")
    args = (out, n, *KEY, counter & _MASK, counter >> 64)
    launcher.launch("philox_words", "float64", index, blocks(-(-n // 4), "philox_words"), args)
    assert out.tolist() == gold.philox(KEY, counter, n)
    key, start = np.array(KEY, dtype=np.uint64), np.zeros(4, dtype=np.uint64)
    start[:2] = counter & _MASK, counter >> 64
    stream = np.random.Philox(key=key, counter=start)
    assert out.tolist() == stream.random_raw(n).tolist()


CASES = [
    functools.partial(words, n=n, counter=counter, index=index)
    for n, counter, index in (
        (1, 0, "int32"),
        (5, 7, "int32"),  # the last block holds a single word
        (6, 5, "int64"),
        (7, 2**64 - 2, "int32"),  # the low half of the counter wraps inside
        (4, 2**64 - 1, "int32"),
        (1031, 3 * 2**64 + 17, "int32"),
    )
]
