"""The pages of docs/: their code runs and says what is promised, their commands exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import backend, errors, random
from gpulayers.cli import main
from tests.support.cuda_on_cpu.toolchain import unavailable_reason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
ENTRY = re.compile(r"### (\w+): (.*?)\n\n```python\n(.*?)```", re.S)
PAGES = sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))
WITH_CODE = [p for p in PAGES if "```python" in (DOCS / p).read_text(encoding="utf-8")]
NEEDS_COMPILER = {"howto/custom_kernel.md"}
IN_ORDER = {"howto/own_images.md"}  # whose commands belong with its code, one after another

PRINTS = {  # what a page's code must have printed
    "tutorial.md": [r"\(10000, 28, 28, 1\)", r"(8[5-9]|9\d)\.\d% of the test digits", r"loss \d"],
    "howto/gpu.md": ["ndarray numpy"],
    "howto/own_images.md": [
        r"128 training and 32 test images, 2 classes",
        r"epoch 6/6",
        r"000\.png: cross [\d.]+%  disc.*\n.*000\.png: disc",
        r"(9\d|100)% of 32 right",
    ],
    "onnx.md": [],
    "porting_from_numpy_ml.md": [],
    "howto/custom_layer.md": [
        r"\{'X': '\de-\d\d', 'a': '\de-\d\d'\}",
        r"gradient of a\[0, ",
        "0.25",
    ],
    "howto/custom_kernel.md": ["problem.*prelu_input_grad", "out.of.bounds|outside"],
    "howto/speed.md": [r"\[\d\.\d+, \d\.\d+, \d\.\d+\]", "True"],
    "explanation/backward.md": ["True"],
    "explanation/memory_and_kernels.md": ["True"],
}


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def run(page: str, code: str, scope: dict[str, Any]) -> None:
    exec(compile(code, page, "exec"), scope)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; `tests` is still found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    random.seed(0)
    arrays = {"W": np.ones((3, 10)), "b": np.zeros((1, 10))}
    np.savez(tmp_path / "fc.npz", **arrays)  # as the page on porting has it
    return tmp_path


#: what a reader computes with, who has chosen nothing
LIBRARIES = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("page", [p for p in WITH_CODE if p != "errors.md"])
def test_the_code_runs(
    page: str, library: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if page in NEEDS_COMPILER and unavailable_reason():
        pytest.skip(str(unavailable_reason()))
    if page in IN_ORDER:
        pytest.importorskip("PIL")
    scope: dict[str, Any] = {"__name__": "docs"}
    with backend.use_backend(library):
        for language, code in BLOCK.findall(text(page)):
            if language == "python":
                run(page, code, scope)
            elif language == "sh" and page in IN_ORDER:
                for line in code.splitlines():
                    assert main(shlex.split(line)[1:]) == 0, line
    printed = capsys.readouterr().out
    for wanted in PRINTS[page]:
        assert re.search(wanted, printed), f"{wanted} in\n{printed}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_error_is_raised_as_it_is_told(library: str, elsewhere: Path) -> None:
    page = text("errors.md")
    entries = ENTRY.findall(page)
    assert len(entries) == page.count("\n### ") >= 20
    scope: dict[str, Any] = {"__name__": "docs"}
    with backend.use_backend(library):
        run("errors.md", BLOCK.findall(page)[0][1], scope)
        for kind, message, code in entries:
            with pytest.raises(getattr(errors, kind)) as caught:
                run(f"errors.md: {message}", code, scope)
            assert message in str(caught.value)
            assert type(caught.value).__name__ == kind  # as a traceback shows it


def test_the_table_of_errors_is_whole() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", text("errors.md"), re.M))
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GPULayersError)
    }
    assert named == kinds - {"GPULayersError"}


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in [*PAGES, "../README.md", "../CONTRIBUTING.md"]:
        for language, code in BLOCK.findall(text(page)):
            found += [(page, line) for line in code.splitlines() if language == "sh" and line]
    return found


def test_shell_lines_name_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(shell_lines()) >= 10
    for page, line in shell_lines():
        command = line.split("#")[0].strip()
        for extras in re.findall(r'"\.\[([\w,]+)', command):
            for extra in extras.split(","):
                assert f"\n{extra} = [" in project, (page, line)
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile, (page, line)
        for script in re.findall(r"python (\S+\.py)", command):
            assert (ROOT / script).exists(), (page, line)


@pytest.mark.parametrize(
    "page, line",
    [(p, li) for p, li in shell_lines() if li.startswith("gpulayers ") and p not in IN_ORDER],
)
def test_commands_run(
    page: str, line: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with backend.use_backend("numpy"):
        assert main(shlex.split(line, comments=True)[1:]) == 0
    printed = capsys.readouterr().out
    if "train" in line:
        assert list(elsewhere.glob("runs/*/model.safetensors"))
    else:
        assert "numpy" in printed.lower()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)", text(page)):
            if "://" not in link:
                assert ((DOCS / page).parent / link).exists(), (page, link)
