"""conftest.py leaves out cases: which, and never a whole test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import _BESIDE, _FEW, _MANY, _OWN, CASES, ROOT, _sample, no_gpu_reason
from tests.support.fair import fair_part


class Item(SimpleNamespace):
    __hash__ = object.__hash__


def cases(name: str, engine: str | None, count: int) -> list[Any]:
    params = {} if engine is None else {"backend": engine}
    callspec = SimpleNamespace(params=params)
    return [Item(nodeid=f"{name}[{engine}-{i}]", callspec=callspec) for i in range(count)]


def test_numpy_and_the_gpu_run_everything() -> None:
    items = cases("a.py::t", "numpy", 200) + cases("tests/layers/a.py::t", "cupy", 200)
    items += cases("a.py::u", None, 200)
    items += cases("tests/layers/a.py::t", "numpy", _MANY)
    assert _sample(items) == (items, [])


def test_but_of_a_large_product_numpy_runs_a_third() -> None:
    for engine in ("numpy", None):
        items = cases("tests/layers/a.py::t", engine, _MANY + 3)
        kept, left_out = _sample(items)
        assert len(kept) == len(items) // _OWN
        assert len(kept) + len(left_out) == len(items)
        assert not set(kept) & set(left_out)


def test_the_others_run_a_part_in_order() -> None:
    items = cases("a.py::t", "compiled", 31)
    kept, left_out = _sample(items)
    assert len(kept) == -(-31 // _BESIDE)
    assert kept == [item for item in items if item in kept]
    assert sorted(map(id, kept + left_out)) == sorted(map(id, items))


@pytest.mark.parametrize("count", [_FEW + 1, _BESIDE, 9, 60, 61, 62, 500])
@pytest.mark.parametrize("engine", ["numpy", "compiled", "emulated"])
def test_no_test_is_left_out_whole(engine: str, count: int) -> None:
    kept, left_out = _sample(cases("tests/layers/a.py::t", engine, count))
    part = _BESIDE if engine != "numpy" else _OWN if count > _MANY else 1
    assert len(kept) == -(-count // part)
    assert len(left_out) == count - len(kept)


def test_a_test_with_few_cases_runs_them_all() -> None:
    items = cases("a.py::t", "emulated", _FEW)
    assert _sample(items) == (items, [])


def test_different_tests_leave_out_different_cases() -> None:
    kept = {
        tuple(
            item.nodeid.partition("[")[2] for item in _sample(cases(f"a.py::{n}", "compiled", 9))[0]
        )
        for n in "abcdefghij"
    }
    assert len(kept) > 5


def product(**values: Any) -> list[tuple[str, dict[str, Any]]]:
    """The cases of a test with these arguments, as pytest orders them: the last is innermost."""
    rows = itertools.product(*values.values())
    return [(f"a.py::t[{row}]", dict(zip(values, row, strict=True))) for row in rows]


PRODUCTS = {
    "innermost of two values": product(shape=range(12), case=range(5), dtype=["f", "d"]),
    "all even": product(a=range(4), b=range(4), c=range(4), d=[True, False]),
    "eight and four": product(shape=range(8), size=range(4), kind=["sum", "product"]),
    "a list and a number": product(sizes=[[1], [2]], dtype=["f", "d"], n=range(20)),
    "True is not 1": product(flag=[1, True, 1.0, 0], n=range(20)),
    "many of one": product(case=range(50), dtype=["f", "d"]),
}


@pytest.mark.parametrize("every", [_OWN, _BESIDE])
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_value_stays_where_there_is_room(name: str, every: int) -> None:
    given = PRODUCTS[name]
    kept = fair_part(given, every)
    room = -(-len(given) // every)
    assert room <= len(kept) <= room + 3
    for argument in given[0][1]:
        # by their text: 1, 1.0 and True are one element of a set
        there = {repr(arguments[argument]) for _, arguments in given}
        stayed = {repr(given[place][1][argument]) for place in kept}
        assert len(stayed) >= min(len(there), room) - 1
        if len(there) <= room:
            assert stayed == there


def test_what_stays_depends_on_no_other_run() -> None:
    given = PRODUCTS["all even"]
    kept = {given[place][0] for place in fair_part(given, _OWN)}
    assert kept == {given[place][0] for place in fair_part(list(given), _OWN)}
    there = list(reversed(given))
    of_reversed = {there[place][0] for place in fair_part(there, _OWN)}
    assert of_reversed == kept


SMALL_SUITE = """
import pytest

@pytest.mark.parametrize("backend", [
    "numpy", "compiled", pytest.param("cupy", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("n", range(24))
def test_product(n, backend):
    assert n < 24

@pytest.mark.gpu
@pytest.mark.parametrize("n", range(3))
def test_device(n):
    pass
"""


@pytest.mark.parametrize(
    "words, ran, left_out",
    [
        ([], 24 + 2, 22),  # every case on NumPy, a twelfth with the C kernels
        (["test_small.py::test_product[5-compiled]"], 1, 0),  # what is asked for by its id runs
        (["-m", "not gpu"], 24 + 2, 22),
    ],
)
def test_in_a_run(tmp_path: Path, words: list[str], ran: int, left_out: int) -> None:
    if no_gpu_reason() is None:
        pytest.skip("a GPU: other cases run")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    gpu\n    compiled\n    emulated\n"
    )
    (tmp_path / "test_small.py").write_text(SMALL_SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if k != CASES}
    environment["PYTHONPATH"] = str(ROOT)
    out = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout
    assert f"{ran} passed" in out, out
    assert (f"\n{left_out} cases left out" in out) == bool(left_out), out
    if not words:
        assert f"{24 + 3} tests need a CUDA device" in out
