"""Distributions, state, streams: the same on every backend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import random
from gpulayers.backend import to_cpu
from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.random import Generator
from tests.support.naive import philox as naive

BITS = {"float16": 11, "float32": 24, "float64": 53}
dtypes = pytest.mark.parametrize("dtype", BITS)


def gold_uniform(key: tuple[int, int], counter: int, n: int, dtype: str) -> list[float]:
    """The top bits of each word (float64) or of its halves, the low one first."""
    bits = BITS[dtype]
    if dtype == "float64":
        return [(word >> 11) / 2**53 for word in naive.words(key, counter, n)]
    halves = [
        half
        for word in naive.words(key, counter, -(-n // 2))
        for half in (word & 0xFFFFFFFF, word >> 32)
    ]
    return [(half >> (32 - bits)) / 2**bits for half in halves[:n]]


@dtypes
@pytest.mark.parametrize("n", [0, 1, 2, 3, 9, 64])
def test_uniform_word_by_word(backend: Any, dtype: str, n: int) -> None:
    generator = Generator(11, 3)
    for _ in range(2):
        counter = generator.counter
        u = generator.uniform(n, dtype)
        assert isinstance(u, backend.xp.ndarray)
        assert u.dtype == dtype
        assert to_cpu(u).tolist() == gold_uniform((11, 3), counter, n, dtype)


@dtypes
def test_uniform_is_below_one(backend: Any, dtype: str) -> None:
    u = to_cpu(Generator(1).uniform(40_000, dtype))
    assert u.min() >= 0
    assert u.max() < 1  # rounding the word itself to float16 would give 1.0 for one in 4096
    assert u.max() > 0.999
    assert abs(u.mean(dtype=np.float64) - 0.5) < 5 * (1 / 12 / u.size) ** 0.5


def test_the_largest_words_stay_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulayers.ops import random as ops

    monkeypatch.setattr(ops, "words", lambda xp, key, counter, n: np.full(n, 2**64 - 1, np.uint64))
    for dtype, bits in BITS.items():
        assert (ops.uniform(np, (0, 0), 0, 5, dtype) == 1 - 2.0**-bits).all()


def test_shapes_and_defaults(backend: Any) -> None:
    generator = Generator(5)
    assert generator.uniform(3).shape == (3,)
    assert generator.uniform((2, 3)).shape == (2, 3)
    assert generator.uniform(()).shape == ()
    assert generator.uniform((0, 4)).shape == (0, 4)
    assert generator.uniform(1).dtype == backends.default_dtype()
    assert generator.normal((2, 3)).shape == (2, 3)
    assert isinstance(generator.uniform(2, xp=np), np.ndarray)


@dtypes
def test_normal(backend: Any, dtype: str) -> None:
    x = Generator(2).normal(20_001, mean=3.0, std=0.5, dtype=dtype)
    assert x.dtype == dtype
    x = (to_cpu(x).astype(np.float64) - 3.0) / 0.5
    n = x.size
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.std() - 1) < 5 / (2 * n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    below = np.mean(x < 1.0)
    assert abs(below - 0.8413447) < 5 * (0.8413 * 0.1587 / n) ** 0.5


def test_normal_is_box_muller(backend: Any) -> None:
    u = gold_uniform((9, 0), 0, 6, "float64")
    gold = []
    for first, second in zip(u[:3], u[3:], strict=True):
        radius = (-2.0 * np.log1p(-first)) ** 0.5
        gold += [radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)]
    x = Generator(9).normal(5, dtype="float64")
    np.testing.assert_allclose(to_cpu(x), gold[:5], rtol=1e-13)


def test_integers(backend: Any) -> None:
    x = Generator(3).integers(-2, 5, (50, 40))
    assert isinstance(x, backend.xp.ndarray)
    x = to_cpu(x)
    assert x.dtype == np.int64
    counts = np.bincount(x.ravel() + 2, minlength=7)
    assert len(counts) == 7
    expected = 2000 / 7
    assert np.sum((counts - expected) ** 2 / expected) < 30  # chi-square, 6 degrees of freedom
    assert to_cpu(Generator(3).integers(4, 5, 9)).tolist() == [4] * 9


@pytest.mark.parametrize("low, high", [(3, 3), (3, 2), (0, 2**53 + 1)])
def test_integers_of_an_impossible_range(low: int, high: int) -> None:
    with pytest.raises(ParameterError, match=r"integers low < high <= low \+ 2\*\*53"):
        Generator(0).integers(low, high, 3)


DRAWS: list[tuple[str, Any]] = [
    ("uniform: shape", lambda g: g.uniform((3.0, 4))),
    ("uniform: shape", lambda g: g.uniform(-4)),
    ("uniform: shape", lambda g: g.uniform((2, -3))),
    ("uniform: shape", lambda g: g.uniform("ab")),
    ("uniform: shape", lambda g: g.uniform(None)),
    ("uniform: shape", lambda g: g.uniform(2.0)),
    ("uniform: shape", lambda g: g.uniform((True, 2))),
    ("uniform: dtype", lambda g: g.uniform(3, "int32")),
    ("uniform: xp must be the module numpy", lambda g: g.uniform(3, "float32", "numpy")),
    ("normal: shape", lambda g: g.normal((2.5,))),
    ("normal: dtype", lambda g: g.normal(3, dtype="int32")),
    ("normal: mean", lambda g: g.normal(3, mean="a")),
    ("normal: std", lambda g: g.normal(3, std=-1.0)),
    ("integers: shape", lambda g: g.integers(0, 3, (2.0,))),
    ("integers: expected integers low < high", lambda g: g.integers(0, 2.5, 3)),
    ("integers: expected integers low < high", lambda g: g.integers("a", 3, 3)),
    ("permutation: n must be an integer >= 0", lambda g: g.permutation(3.0)),
    ("permutation: n must be an integer >= 0", lambda g: g.permutation(-4)),
    ("spawn: index must be an integer >= 0", lambda g: g.spawn(-1)),
]


@pytest.mark.parametrize("message, draw", DRAWS)
def test_a_draw_that_is_refused_leaves_the_state(message: str, draw: Any) -> None:
    generator = Generator(7)
    generator.uniform(9)
    before = generator.state
    with pytest.raises(ParameterError, match=f"Generator.{message}"):
        draw(generator)
    assert generator.state == before
    assert type(generator.counter) is int


def test_a_shape_may_come_from_numpy(numpy_backend: Any) -> None:
    sizes = np.array([2, 3])
    assert Generator(1).uniform(sizes).shape == (2, 3)
    assert Generator(1).uniform((np.int64(2), 3)).shape == (2, 3)
    assert Generator(1).permutation(np.int32(4)).shape == (4,)


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_permutation(backend: Any, n: int) -> None:
    generator = Generator(4)
    p = generator.permutation(n)
    assert type(p) is np.ndarray
    assert p.dtype == np.int64
    assert sorted(p.tolist()) == list(range(n))
    words = naive.words((4, 0), 0, n)
    assert p.tolist() == sorted(range(n), key=lambda k: words[k])


def test_every_permutation_of_three_comes_up() -> None:
    generator, seen = Generator(6), {}
    for _ in range(1200):
        p = tuple(generator.permutation(3).tolist())
        seen[p] = seen.get(p, 0) + 1
    assert len(seen) == 6
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 30


# -------------------------------------------------------------------------- streams and states


@dtypes
def test_the_same_bits_on_both_backends(emulated: Any, dtype: str) -> None:
    on_gpu = Generator(8).uniform((3, 5), dtype, emulated.xp)
    on_cpu = Generator(8).uniform((3, 5), dtype, np)
    np.testing.assert_array_equal(to_cpu(on_gpu), on_cpu)


def test_drawing_on_a_gpu_makes_no_copy_and_does_not_wait(emulated: Any) -> None:
    Generator(8).uniform(10)
    with emulated.forbid("sync", "h2d", "d2h"):
        Generator(8).uniform((4, 5))


def test_consecutive_draws_do_not_overlap() -> None:
    generator = Generator(12)
    draws = [generator.uniform(n, "float64", np) for n in (1, 5, 4, 3)]
    values = np.concatenate(draws)
    assert len(set(values.tolist())) == values.size
    assert generator.counter == 1 + 2 + 1 + 1  # blocks of four words


def test_state_round_trip_through_json(backend: Any) -> None:
    generator = Generator(13, 2)
    generator.uniform(7)
    state = json.loads(json.dumps(generator.state))
    first = [to_cpu(generator.uniform(6)), to_cpu(generator.normal(3)), generator.permutation(5)]
    other = Generator(99)
    other.state = state
    second = [to_cpu(other.uniform(6)), to_cpu(other.normal(3)), other.permutation(5)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.state == generator.state


def test_a_state_far_along(backend: Any) -> None:
    generator = Generator(1)
    generator.state = {**generator.state, "counter": 2**64 - 2}
    u = generator.uniform(16, "float64")
    assert to_cpu(u).tolist() == gold_uniform((1, 0), 2**64 - 2, 16, "float64")
    assert generator.counter == 2**64 + 2


@pytest.mark.parametrize(
    "state, message",
    [
        ({}, "needs the entries algorithm, key"),
        ({"algorithm": "mt19937", "key": [0, 0], "counter": 0}, "expected 'philox4x64-10'"),
        ({"algorithm": "philox4x64-10", "key": [0, 0]}, "needs the entries"),
        ({"algorithm": "philox4x64-10", "key": ["a", 0], "counter": 0}, "needs the entries"),
        ({"algorithm": "philox4x64-10", "key": 3, "counter": 0}, "needs the entries"),
        ({"algorithm": "philox4x64-10", "key": [1], "counter": 0}, "bad key or counter"),
        ({"algorithm": "philox4x64-10", "key": [1, 2], "counter": -1}, "bad key or counter"),
        ({"algorithm": "philox4x64-10", "key": [1, -2], "counter": 0}, "bad key or counter"),
        ({"algorithm": "philox4x64-10", "key": [2**64, 0], "counter": 0}, "bad key or counter"),
        (None, "needs the entries"),
    ],
)
def test_bad_states_are_refused_and_change_nothing(state: Any, message: str) -> None:
    generator = Generator(5)
    before = generator.state
    with pytest.raises(CheckpointError, match=message):
        generator.state = state
    assert generator.state == before


def test_seeds_and_streams_differ() -> None:
    streams = [Generator(0), Generator(1), Generator(0, 1), Generator(1, 1), Generator(2**64 - 1)]
    draws = {tuple(g.uniform(4, "float64", np).tolist()) for g in streams}
    assert len(draws) == len(streams)
    assert Generator(np.int64(3)).state == Generator(3).state


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ParameterError, match="Generator: seed must be"):
        Generator(seed)
    with pytest.raises(ParameterError, match="Generator: stream must be"):
        Generator(0, seed)


def test_spawned_generators_are_independent_and_repeatable() -> None:
    parent = Generator(21)
    children = [parent.spawn(k) for k in range(4)]
    assert parent.counter == 0
    draws = {tuple(g.uniform(4, "float64", np).tolist()) for g in (parent, *children)}
    assert len(draws) == 5
    again = Generator(21).spawn(2)
    assert (again.key, again.counter) == (children[2].key, 0)
    assert Generator(21, 2**64 - 1).spawn(0).key == (21, 0)


def test_the_default_generator() -> None:
    before = random.get_state()
    try:
        random.seed(5)
        first = random.default_generator().uniform(3, xp=np)
        state = random.get_state()
        second = random.default_generator().uniform(3, xp=np)
        random.seed(5)
        np.testing.assert_array_equal(random.default_generator().uniform(3, xp=np), first)
        random.set_state(state)
        np.testing.assert_array_equal(random.default_generator().uniform(3, xp=np), second)
        generator = random.default_generator()
        random.seed(6)
        assert random.default_generator() is generator  # who holds it sees the new seed
        with pytest.raises(ParameterError, match="seed must be"):
            random.seed(-1)
        assert generator.key == (6, 0)
    finally:
        random.set_state(before)


def test_repr_tells_the_position() -> None:
    generator = Generator(7, 1)
    generator.permutation(9)
    assert repr(generator) == "Generator(seed=7, stream=1, counter=3)"
