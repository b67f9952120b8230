"""The table in docs/porting_from_numpy_ml.md and the tests of this folder say the same."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NUMBERS = range(1, 46)


def numbers_of(function: Any) -> list[int]:
    marks = getattr(function, "pytestmark", [])
    return [mark.args[0] for mark in marks if mark.name == "defect"]


def marked() -> dict[int, dict[str, Any]]:
    """The test functions of this folder, as "file: name", by the defect they are marked with."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for path in sorted(HERE.glob("test_*.py")):
        module = importlib.import_module(f"tests.defects.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            for number in numbers_of(function):
                found[number][f"{path.stem}: {name}"] = function
    return found


def rows() -> dict[int, list[str]]:
    """The cells of the page's table, by number."""
    page = (ROOT / "docs" / "porting_from_numpy_ml.md").read_text(encoding="utf-8")
    section = page.split("## Defects of numpy-ml that are mended here")[1].split("\n## ")[0]
    lines = re.findall(r"^\| D(\d+) \| (.*) \|$", section, re.M)
    assert len(lines) == len({number for number, _ in lines})
    return {int(number): cells.split(" | ") for number, cells in lines}


@pytest.mark.parametrize("number", NUMBERS)
def test_every_defect_has_a_test_that_says_what_numpy_ml_does(number: int) -> None:
    functions = marked()[number]
    assert functions, f"no test is marked with defect({number})"
    for name, function in functions.items():
        assert "numpy-ml" in (function.__doc__ or "").replace("numpy_ml", "numpy-ml"), name


@pytest.mark.parametrize("number", NUMBERS)
def test_every_defect_has_a_row_that_names_its_tests(number: int) -> None:
    cells = rows()[number]
    assert len(cells) == 4 and all(cells)
    named = set()
    for part in cells[3].split("; "):
        file, _, names = part.partition(": ")
        named |= {f"{file.strip('`')}: {name.strip('`')}" for name in names.split(", ")}
    assert named == set(marked()[number])


def test_there_are_no_other_numbers() -> None:
    assert set(rows()) == set(marked()) == set(NUMBERS)


def test_numbers_cited_elsewhere_are_explained() -> None:
    """Whoever reads "D7" in a test is told there that numpy-ml is meant, and finds its row."""
    cited = set()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"\bD(\d+)\b", text):
            around = text[max(0, match.start() - 200) : match.end() + 200]
            assert "numpy-ml" in around, f"{path.name}: D{match[1]}"
            cited.add(int(match[1]))
    assert cited
    assert cited <= set(NUMBERS)
