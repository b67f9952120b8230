"""docs/correctness.md names every class, and what wrote it sees a wrong gradient."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.correctness import __main__ as command
from benchmarks.correctness.layers import Run, Subject
from benchmarks.correctness.measure import Row, Worst, errors, measure, relative_error
from benchmarks.correctness.page import FAMILIES, NO_GRADIENT, REFEREE, all_subjects, public_names
from tests.conftest import Backend

PAGE = (Path(__file__).parents[2] / "docs" / "correctness.md").read_text(encoding="utf-8")
SUBJECTS = all_subjects()
AGAIN = "run: python -m benchmarks.correctness"


def lines_of(family: str) -> dict[str, list[str]]:
    """The table's cells by class."""
    section = PAGE.split(f"\n## {family.capitalize()}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    return {name: cells.split(" | ") for name, cells in rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_class_is_in_the_page(family: str) -> None:
    public = public_names()[family]
    assert public
    named = lines_of(family)
    without = {name for name in NO_GRADIENT if f"`{name}` has no gradient" in PAGE}
    assert public - set(named) - without == set(), AGAIN
    assert set(named) <= public, AGAIN


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_class_is_measured(family: str) -> None:
    measured = {subject.name for subject in SUBJECTS if subject.family == family}
    assert measured == public_names()[family] - set(NO_GRADIENT)
    assert measured <= set(REFEREE)


def test_no_case_is_measured_twice() -> None:
    keys = [(s.family, s.name, s.case) for s in SUBJECTS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_small_and_none_is_missing(family: str) -> None:
    for name, cells in lines_of(family).items():
        cases, _, numeric, _, torch, referee, stand_in, _ = cells
        assert int(cases) >= 2, name
        assert referee.startswith(REFEREE[name]), name
        assert float(numeric) < 1e-7, name
        assert float(torch) < 1e-12, name
        assert float(stand_in) < 3e-4, name


# ------------------------------------------------------------------------------------ the measure


def test_the_relative_error() -> None:
    a, b = np.array([1.0, -4.0]), np.array([1.0, -5.0])
    assert relative_error(a, b, 1.0) == relative_error(b, a, 1.0) == pytest.approx(0.2)
    assert relative_error(a, b, 1e5) == pytest.approx(0.01)  # measured by the floor
    assert relative_error(0 * a, 0 * a, 0.0) == 0.0
    assert np.isnan(relative_error(a, b * np.nan, 1.0))
    with pytest.raises(ValueError, match="cannot agree"):
        relative_error(a, b[:1], 1.0)
    with pytest.raises(ValueError, match=r"got \['x'\], expected \['x', 'y'\]"):
        errors({"x": a}, {"x": a, "y": a})


def test_nan_is_the_worst() -> None:
    worst = Worst()
    worst.add({"x": 0.5, "y": float("nan"), "z": 7.0}, "a case")
    worst.add({"x": 9.0}, "another")
    assert worst.where == "y, a case"
    assert str(worst) == "nan"
    assert str(Worst()) == "-"


def _of(name: str) -> Subject:
    return next(s for s in SUBJECTS if s.name == name)


def _spoiled(subject: Subject, spoil: Any) -> Subject:
    """The subject with `spoil` done to its gradients."""

    def start(backend: Backend, dtype: str) -> Run:
        run = subject.start(backend, dtype)

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            return {k: spoil(g.copy()) for k, g in run.gradients(dYs).items()}

        return dataclasses.replace(run, gradients=gradients)

    return dataclasses.replace(subject, start=start)


def _first_off(gradient: Any) -> Any:
    gradient.flat[np.abs(gradient).argmax()] *= 1.01
    return gradient


@pytest.mark.parametrize("name", ["FullyConnected", "RNN", "SquaredError", "Tanh", "RBM"])
def test_a_wrong_gradient_shows(name: str) -> None:
    torch = importlib.util.find_spec("torch") is not None
    right, wrong, minus = (Row("", name) for _ in range(3))
    measure(_of(name), right, torch, False)
    measure(_spoiled(_of(name), _first_off), wrong, torch, False)
    measure(_spoiled(_of(name), lambda g: -g), minus, torch, False)
    assert right.numeric.error < 1e-7
    assert right.weakest == pytest.approx(1e-3, rel=0.1)
    assert wrong.numeric.error == pytest.approx(0.01, rel=0.1)
    assert minus.numeric.error == pytest.approx(2.0, rel=0.1)
    if torch:
        assert right.torch.error < 1e-12
        assert wrong.torch.error == pytest.approx(0.01, rel=0.1)


@pytest.mark.emulated
def test_one_class_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPULAYERS_EMULATOR", "plain")
    out = tmp_path / "page.md"
    assert command.main(["--only", "Softmax", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| `Softmax` \| 5 \| X \| .* softmax_backward, softmax_forward \|", printed)
    assert not out.exists()
    with pytest.raises(SystemExit):
        command.main(["--only", "Softmacks"])
