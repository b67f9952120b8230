"""Rules the sources keep: who may name which array library, and what goes into the wheel."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from gpulayers.cuda import table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gpulayers"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [p for p in SOURCES if (PACKAGE / "layers") in p.parents]
MAY_NAME_CUPY = [PACKAGE / "backend.py", *(PACKAGE / "cuda").glob("*.py")]


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a source imports, also by import_module("...")."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                found.add(str(first.value).partition(".")[0])
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import cupy as cp",
        "from cupy.cuda import Stream",
        "def f():\n    import cupy.linalg",
        "import importlib\nimportlib.import_module('cupy')",
        "__import__('cupy')",
    ],
)
def test_the_rule_sees_every_form(source: str) -> None:
    assert "cupy" in imported(source)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def importing(paths: list[Path], *names: str) -> list[str]:
    """Those of the sources that import one of these modules."""
    return [relative(path) for path in paths if imported(path.read_text()) & set(names)]


def test_layers_name_no_array_library() -> None:
    assert len(LAYERS) >= 5
    assert importing(LAYERS, "numpy", "cupy", "cupyx") == []


def test_cupy_is_imported_in_two_places_only() -> None:
    assert importing([p for p in SOURCES if p not in MAY_NAME_CUPY], "cupy", "cupyx") == []
    assert importing(SOURCES, "cupy"), "the rule looks at something"


def test_no_assert_in_library_code() -> None:
    """`python -O` drops asserts: checks raise instead."""
    assert len(SOURCES) > 200
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


# ------------------------------------------------------------------------------- package data


def kernel_sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".cu", ".cuh"))


def test_every_kernel_source_is_in_the_wheel() -> None:
    """Ask the build backend itself which files the wheel will hold."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    wanted = {relative(p) for p in kernel_sources()} | {"gpulayers/py.typed"}
    assert len(wanted) > 5
    assert wanted - packed == set()


def test_no_kernel_source_is_ignored_by_git() -> None:
    """Hatchling leaves out what .gitignore names."""
    paths = [str(p) for p in kernel_sources()]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *paths]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if run.returncode == 128:
        pytest.skip("not a git checkout")
    assert run.stdout == ""


def test_every_source_has_kernels_in_the_table() -> None:
    """A .cu that no launch table entry names is dead, an entry without file cannot run."""
    on_disk = {p.name for p in kernel_sources() if p.suffix == ".cu"}
    assert {spec.file for spec in table.KERNELS.values()} == on_disk
