"""conftest.py leaves out cases: which, and never a whole test."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from tests.conftest import _BESIDE, _FEW, _MANY, _OWN, _sample


class Item(SimpleNamespace):
    __hash__ = object.__hash__


def cases(name: str, engine: str | None, count: int) -> list[Any]:
    params = {} if engine is None else {"backend": engine}
    callspec = SimpleNamespace(params=params)
    return [Item(nodeid=f"{name}[{engine}-{i}]", callspec=callspec) for i in range(count)]


def test_numpy_and_the_gpu_run_everything() -> None:
    items = cases("a.py::t", "numpy", 200) + cases("tests/layers/a.py::t", "cupy", 200)
    items += [*cases("a.py::u", None, 200), Item(nodeid="tests/ops/a.py::v")]
    items += cases("tests/layers/a.py::t", "numpy", _MANY)
    assert _sample(items) == (items, [])


def test_but_of_a_large_product_numpy_runs_half() -> None:
    for engine in ("numpy", None):
        items = cases("tests/layers/a.py::t", engine, _MANY + 2)
        kept, left_out = _sample(items)
        assert len(kept) == len(left_out) == len(items) // _OWN
        assert not set(kept) & set(left_out)


def test_the_others_run_a_part_in_order() -> None:
    items = cases("a.py::t", "compiled", 31)
    kept, left_out = _sample(items)
    places = [items.index(item) for item in kept]
    assert places[0] < _BESIDE
    assert {b - a for a, b in itertools.pairwise(places)} == {_BESIDE}
    assert sorted(map(id, kept + left_out)) == sorted(map(id, items))


def test_a_test_with_few_cases_runs_them_all() -> None:
    items = cases("a.py::t", "emulated", _FEW)
    assert _sample(items) == (items, [])


def test_different_tests_leave_out_different_cases() -> None:
    firsts = {
        int(_sample(cases(f"a.py::t{n}", "compiled", 9))[0][0].nodeid.split("-")[1][:-1])
        for n in range(20)
    }
    assert firsts == set(range(_BESIDE))
