"""The words of the generator: against loops on Python integers, NumPy's Philox, known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.backend import to_cpu
from gpulayers.ops import random as ops
from gpulayers.ops import use_engine
from tests.support.naive import philox as naive

KEYS = [(0, 0), (1, 2), (2**64 - 1, 2**63), (0x9E3779B97F4A7C15, 1)]
COUNTERS = [0, 1, 2**32 - 2, 2**64 - 3, 2**64 - 1, 2**64 + 5, 2**100 + 7]

# Random123's own test vectors (kat_vectors, "philox4x64 10"): counter, key, answer
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.fixture(params=["auto", "reference"])
def library(request: pytest.FixtureRequest, backend: Any):
    """The module, with each implementation of the words."""
    with use_engine(request.param):
        yield backend.xp


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_known_answers_of_the_gold(counter, key, answer) -> None:
    assert naive.block(counter, key) == answer


def numpy_words(key: tuple[int, int], counter: int, n: int) -> np.ndarray:
    words = [counter >> shift & (2**64 - 1) for shift in (0, 64, 128, 192)]
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(words, np.uint64))
    return generator.random_raw(n)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_words(library: Any, key: tuple[int, int], counter: int) -> None:
    words = to_cpu(ops.words(library, key, counter, 13))
    assert words.dtype == np.uint64
    assert [int(w) for w in words] == naive.words(key, counter, 13)
    np.testing.assert_array_equal(words, numpy_words(key, counter, 13))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 1027])
def test_any_number_of_words(library: Any, n: int) -> None:
    words = to_cpu(ops.words(library, (3, 4), 5, n))
    assert words.shape == (n,)
    np.testing.assert_array_equal(words, numpy_words((3, 4), 5, n))


def test_the_counter_carries_inside_one_call(library: Any) -> None:
    # blocks 2**64 - 2 ... 2**64 + 1: the second counter word goes from 0 to 1 in the middle
    words = [int(w) for w in to_cpu(ops.words(library, (7, 8), 2**64 - 3, 16))]
    assert words == naive.words((7, 8), 2**64 - 3, 16)
    assert len(set(words)) == 16


def test_each_bit_of_the_key_counts(library: Any) -> None:
    seen = {
        tuple(int(w) for w in to_cpu(ops.words(library, key, 0, 4)))
        for key in [(0, 0), (1, 0), (2**63, 0), (0, 1), (0, 2**63), (2**32, 0)]
    }
    assert len(seen) == 6
