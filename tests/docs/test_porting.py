"""docs/porting_from_numpy_ml.md is complete and true.

`numpy_ml_calls.txt` lists how everything public in numpy-ml's neural nets is called: names,
arguments and defaults, as `inspect` shows them, one call on a line.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulayers
from gpulayers import backend, random

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "porting_from_numpy_ml.md").read_text(encoding="utf-8")
CALLS = (HERE / "numpy_ml_calls.txt").read_text(encoding="utf-8").splitlines()
NAMES = [call.partition("(")[0] for call in CALLS if call.partition("(")[0].count(".") == 1]
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)

# The page says so: one name for the gradient and the input of a cell, everywhere; a wrapper's
# update is called like a layer's.
RENAMED = {"dLdy": "dLdY", "dLdA": "dLdY", "dLdAt": "dLdY", "Xt": "X"}
RENAMED_ONCE = {("wrappers.Dropout.update", "lr"): "cur_loss"}


def found(dotted: str) -> Any:
    """What "layers.Conv2D.forward" or "models.vae.BernoulliVAE" names in gpulayers."""
    here: Any = gpulayers
    for k, part in enumerate(dotted.split(".")):
        if inspect.ismodule(here) and not hasattr(here, part):
            here = importlib.import_module(f"{here.__name__}.{part}")
        else:
            assert hasattr(here, part), f"{'.'.join(dotted.split('.')[: k + 1])} is missing"
            here = getattr(here, part)
    return here


def arguments(function: Any) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


# --------------------------------------------------------------------------------------- names


def section(heading: str) -> str:
    return PAGE.split(f"\n{heading}\n")[1].split("\n## ")[0]


def first_columns() -> dict[str, set[str]]:
    """The names in the tables of "Every class and function", by submodule."""
    out: dict[str, set[str]] = {}
    for part in section("## Every class and function").split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        cells = re.findall(r"^\| (`.*?) \|", body, re.M)
        for module in heading.split(", "):
            out[module] = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    return out


def test_the_list_is_whole() -> None:
    """66 classes and 21 functions in ten submodules; 59 of the classes can be used as they are."""
    kinds = [inspect.isclass(found(name)) for name in NAMES]
    assert (kinds.count(True), kinds.count(False)) == (66, 21)
    assert len({name.partition(".")[0] for name in NAMES}) == 10
    assert len(set(NAMES)) == len(NAMES)
    assert sum(name.endswith("Base") for name in NAMES) == 7


def test_every_name_is_here_and_on_the_page() -> None:
    columns = first_columns()
    parts = [name.partition(".") for name in NAMES]
    public = {m: importlib.import_module(f"gpulayers.{m}").__all__ for m, _, _ in parts}
    assert [f"{m}.{short}" for m, _, short in parts if short not in public[m]] == []
    assert [f"{m}.{short}" for m, _, short in parts if short not in columns[m]] == []


def test_the_tables_name_nothing_else() -> None:
    named = {name for names in first_columns().values() for name in names}
    assert named == {name.partition(".")[2] for name in NAMES}


def test_dotted_names_on_the_page_exist() -> None:
    dotted = set(re.findall(r"`gpulayers\.([\w.]*\w)(?:\(.*?\))?`", PAGE))
    dotted |= set(re.findall(r"`(losses\.\w+|layers\.(?!np|im2col)\w+|utils\.\w+)`", PAGE))
    assert len(dotted) >= 6
    for name in dotted:
        found(name)


def test_every_public_class_named_on_the_page_exists() -> None:
    """Words in backticks that look like classes are those of gpulayers; and Python's."""
    public: set[str] = set()
    for module in [*{name.partition(".")[0] for name in NAMES}, "errors", "training"]:
        public |= set(vars(importlib.import_module(f"gpulayers.{module}")))
    words = set(re.findall(r"`([A-Z]\w+)", PAGE))
    assert len(words) > 80
    variables = {word for word in words if word.startswith("GPULAYERS_")}
    assert words - variables - public - set(dir(builtins)) == {"X_skip", "Xt"}  # arguments


# ----------------------------------------------------------------------------------- arguments


def differences(call: str) -> list[str]:
    """What is not as in numpy-ml: the same arguments in the same places with the same defaults;
    others of ours may follow."""
    name, _, rest = call.partition("(")
    theirs = arguments(eval(f"lambda {rest[:-1]}: None"))
    try:
        ours = arguments(found(name))
    except (AssertionError, ImportError) as error:
        return [f"{name}: {error}"]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if name.endswith(".__call__") and tuple(p.kind for p in ours) == variable:
        ours = arguments(found(name.replace("__call__", "loss")))  # handed on
    expected = [RENAMED_ONCE.get((name, p.name), RENAMED.get(p.name, p.name)) for p in theirs]
    got = [p.name for p in ours[: len(theirs)]]
    if got != expected:
        return [f"{name}: expected {expected}, got {got}"]
    wrong = []
    for mine, known in zip(ours, theirs, strict=False):
        if mine.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            wrong.append(f"{name}: {mine.name} cannot be given both ways")
        if known.default not in (inspect.Parameter.empty, mine.default):
            wrong.append(f"{name}: {mine}, expected the default {known.default!r}")
    for extra in ours[len(theirs) :]:
        if extra.default is inspect.Parameter.empty and extra.kind not in variable:
            wrong.append(f"{name}: {extra.name} has no default")
    return wrong


def test_everything_is_called_as_in_numpy_ml() -> None:
    assert len(CALLS) > 400
    assert [line for call in CALLS for line in differences(call)] == []


@pytest.mark.parametrize(
    "call, words",
    [
        ("layers.Add(optimizer=None, act_fn=None)", "expected ['optimizer', 'act_fn']"),
        ("layers.Add(act_fn=3)", "expected the default 3"),
        ("layers.Dot(a)", "No module named 'gpulayers.layers.Dot'"),
        ("layers.Add.backwards(dLdY)", "layers.Add.backwards is missing"),
        ("layers.FullyConnected()", "n_out has no default"),
    ],
)
def test_a_difference_is_seen(call: str, words: str) -> None:
    assert words in "; ".join(differences(call))


def test_the_page_says_what_is_renamed() -> None:
    for old, new in RENAMED.items():
        assert f"`{old}`" in PAGE and f"`{new}`" in PAGE
    assert "`lr`" in PAGE and "`cur_loss`" in PAGE


# ------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {"W": rng.normal(size=(4, 10)), "b": np.zeros((1, 10))}  # as numpy-ml saves them
    np.savez(tmp_path / "fc.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    names: dict[str, Any] = {"__name__": "porting"}
    with backend.use_backend("numpy"):
        exec(compile(BLOCKS[number], f"porting page, block {number}", "exec"), names)
        if "fc.npz" in BLOCKS[number]:
            Y = names["layer"].forward(np.ones((1, 4), np.float32))
            right = np.maximum(arrays["W"].sum(axis=0), 0)[None]
            np.testing.assert_allclose(Y, right, rtol=1e-5, atol=1e-6)


def test_there_are_python_blocks() -> None:
    assert len(BLOCKS) == 2
    assert any("fc.npz" in block for block in BLOCKS)


def test_the_feature_table_has_no_empty_row() -> None:
    """Whatever numpy-ml has, gpulayers has."""
    rows = re.findall(r"^\| (?!feature|---)(.*) \|$", section("## Features side by side"), re.M)
    assert len(rows) >= 20
    for row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 3 and all(cells), row
        assert not re.match(r"(no|none|missing|-)\b", cells[2]), row


def test_no_table_has_an_empty_last_cell_but_for_same() -> None:
    for line in section("## Every class and function").splitlines():
        if line.startswith("| `"):
            _, kind, note = re.fullmatch(
                r"\| (`.*?`(?:, `\w+`)*) \| (\w+) \| ?(.*?) ?\|", line
            ).groups()
            assert kind in ("same", "differs")
            assert note or kind == "same", line


def test_relative_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert links
    assert not [link for link in links if not (HERE.parents[1] / "docs" / link).exists()]
