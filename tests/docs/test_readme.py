"""The README says what is true: its code runs, links lead somewhere, tables are complete."""

import re
from pathlib import Path

import pytest

import gpulayers
from gpulayers import backend, layers, random
from gpulayers.layers.base import LayerBase

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("library", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_block_runs(number: int, library: str, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(0)
    with backend.use_backend(library):
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    accuracy = re.search(r"([\d.]+)% of the test digits right", printed)
    if "compile" in BLOCKS[number]:
        losses = [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]
        assert len(losses) == 5 and losses[-1] < losses[0]
    elif "Trainer" in BLOCKS[number]:
        assert accuracy is not None
        assert float(accuracy[1]) > 85
    else:
        assert "(4, 28, 28, 8) (4, 28, 28, 1) (3, 3, 1, 8)" in printed


def test_there_are_python_blocks() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("kind", ["train", "test"])
def test_command_is_one_line_between_its_markers(kind: str) -> None:
    block = rf"<!-- {kind} command -->\n```sh\n(.*?)\n```\n<!-- end -->"
    found = re.findall(block, README, re.S)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_relative_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 5
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_layer_table_names_every_layer() -> None:
    table = README.split("## Layers")[1].split("## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    public = {
        name
        for name in layers.__all__
        if issubclass(getattr(layers, name), LayerBase) and name != "LayerBase"
    }
    assert public
    assert not public - named


def test_version_has_a_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{gpulayers.__version__}]" in changelog
