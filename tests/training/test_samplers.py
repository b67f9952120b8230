"""Samplers: the order in which a feed takes its examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import ParameterError
from gpulayers.training import (
    BalancedSampler,
    SequentialSampler,
    ShuffledSampler,
    SubsetSampler,
    WeightedSampler,
)

# ----------------------------------------------------------------------------------------- samplers
from gpulayers.training.samplers import Sampler
from tests.training.test_data_feed import split


def draw(sampler: Sampler, seed: int = 0) -> np.ndarray:
    order = sampler.order(random.Generator(seed))
    assert order.dtype == np.int64 and order.shape == (len(sampler),)
    return order


def test_sequential_and_shuffled() -> None:
    assert draw(SequentialSampler(5)).tolist() == [0, 1, 2, 3, 4]
    order = draw(ShuffledSampler(30), 7)
    assert order.tolist() == random.Generator(7).permutation(30).tolist() != list(range(30))


def test_subset() -> None:
    chosen = [7, 1, 1, 30]
    assert draw(SubsetSampler(chosen, shuffle=False)).tolist() == chosen
    first, second = draw(SubsetSampler(range(50, 90)), 1), draw(SubsetSampler(range(50, 90)), 2)
    assert sorted(first) == sorted(second) == list(range(50, 90)) and (first != second).any()


def test_weighted_with_replacement() -> None:
    weights = np.array([0.0, 1, 3, 0, 6, 0])
    counts = np.bincount(draw(WeightedSampler(weights, 20_000)), minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    expected = 20_000 * weights / weights.sum()
    kept = weights > 0  # chi-squared, 2 degrees of freedom: 13.8 is the 0.1 % point
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 13.8
    assert len(WeightedSampler([1e308, 1e308, 5])) == 3
    lowest = SimpleNamespace(uniform=lambda shape, *_: np.zeros(shape))
    highest = SimpleNamespace(uniform=lambda shape, *_: np.full(shape, 1.0))  # as if rounded up
    for generator, want in ((lowest, 1), (highest, 4)):
        order = WeightedSampler(weights, 3).order(generator)  # type: ignore[arg-type]
        assert order.tolist() == [want] * 3


def test_weighted_without_replacement() -> None:
    sampler = WeightedSampler([0, 1, 3, 0, 6, 1e-320], replacement=False)
    assert sorted(draw(sampler)) == [1, 2, 4, 5]
    first = np.array([draw(WeightedSampler([1, 3, 6], 1, False), s)[0] for s in range(1500)])
    expected = 1500 * np.array([0.1, 0.3, 0.6])
    assert ((np.bincount(first) - expected) ** 2 / expected).sum() < 13.8


def test_balanced() -> None:
    labels = np.array([5] * 90 + [2] * 9 + [11])  # gaps in the labels, one example of a class
    order = draw(BalancedSampler(labels))
    taken = labels[order]
    assert [(taken == c).sum() for c in (2, 5, 11)] == [34, 33, 33]
    large = np.bincount(order[taken == 5])
    assert large.max() == 1  # some of the large class, none twice
    small = np.bincount(order[taken == 2])[90:]
    assert set(small.tolist()) == {3, 4}  # all of the small one, about equally often
    assert (np.diff(taken) != 0).sum() > 40  # mixed
    assert len(draw(BalancedSampler(split(), 5))) == 5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SequentialSampler(0), "n must be an integer >= 1"),
        (lambda: SubsetSampler([]), "at least one integer"),
        (lambda: SubsetSampler([0.5]), "at least one integer, got float64"),
        (lambda: SubsetSampler([[1]]), r"got int64 \(1, 1\)"),
        (lambda: SubsetSampler([1, -1]), "must be >= 0, got -1"),
        (lambda: WeightedSampler([]), "a sequence of numbers"),
        (lambda: WeightedSampler([1, -1]), "finite and >= 0"),
        (lambda: WeightedSampler([0, 0]), "one at least above 0"),
        (lambda: WeightedSampler([1, np.inf]), "finite and >= 0"),
        (lambda: WeightedSampler([1, np.nan]), "finite and >= 0"),
        (lambda: WeightedSampler([1, 0, 1], 3, False), "there are 2 examples .* for count=3"),
        (lambda: BalancedSampler([]), "at least one integer"),
        (lambda: BalancedSampler(np.array([0.0])), "got float64"),
    ],
)
def test_bad_samplers(make: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make()


def test_samplers_tell_themselves_apart() -> None:
    texts = [
        repr(s)
        for s in (
            SequentialSampler(3),
            ShuffledSampler(3),
            SubsetSampler([1, 2]),
            SubsetSampler([2, 1]),
            SubsetSampler([2, 1], False),
            WeightedSampler([1, 2]),
            WeightedSampler([1, 3]),
            BalancedSampler(np.array([1, 2])),
            BalancedSampler(np.array([2, 1])),
        )
    ]
    assert len(set(texts)) == len(texts)
    assert repr(SubsetSampler([1, 2])) == texts[2]
