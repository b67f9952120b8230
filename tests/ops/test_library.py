"""Loading the compiled kernels: what cannot be used is told, and NumPy computes instead."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpulayers.ops.compiled import build, library

ASK = """
import numpy as np
from gpulayers.ops import kernels_for, use_engine
from gpulayers.ops.compiled import report
print(report())
k = kernels_for(np.ones(1))
print(type(k).__name__)
print(k.relu_backward(np.ones(3, np.float32), np.array([1, -1, 0], np.float32)).tolist())
try:
    use_engine("compiled")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("compiled")
"""


def ask(folder: Path, **variables: str) -> list[str]:
    """What a fresh process says that finds the library in `folder`."""
    env = {k: v for k, v in os.environ.items() if k != "GPULAYERS_ENGINE"}
    env |= {library.FOLDER_VARIABLE: str(folder), **variables}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_refused(lines: list[str], reason: str) -> None:
    assert lines[0].startswith("not used: ") and reason in lines[0]
    assert lines[1:3] == ["Cpu", "[1.0, 0.0, 0.0]"]
    assert lines[3].startswith("BackendError: use_engine: the compiled kernels are not available")
    assert reason in lines[3] and "python -m gpulayers.ops.compiled" in lines[3]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    if library.unavailable_reason():
        pytest.skip(f"no compiled kernels: {library.unavailable_reason()}")
    return Path(shutil.copytree(build.LIBRARIES, tmp_path / "lib"))


def test_nothing_was_built(tmp_path: Path) -> None:
    assert_refused(ask(tmp_path / "gone"), "they were not built for the files in use; python -m")


def test_the_reason_of_a_failed_build_is_kept(tmp_path: Path) -> None:
    build.record_failure("no C compiler was found", tmp_path / "lib")
    assert_refused(ask(tmp_path / "lib"), "no C compiler was found")


def test_a_record_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text("{")
    assert_refused(ask(tmp_path), "they were not built")


def test_kernels_of_other_sources_are_not_used(copied: Path) -> None:
    record = json.loads((copied / "build.json").read_text())
    assert ask(copied)[1] == "Compiled"
    (copied / "build.json").write_text(json.dumps({**record, "sources": "0" * 64}))
    assert_refused(ask(copied), "built from other sources")


def test_a_broken_library(copied: Path) -> None:
    (copied / f"kernels-baseline{build.SUFFIX}").write_bytes(b"not a library")
    assert_refused(ask(copied), "the library could not be loaded")


def test_a_machine_without_the_better_instructions_gets_the_baseline(copied: Path) -> None:
    record = json.loads((copied / "build.json").read_text())
    (copied / "build.json").write_text(json.dumps({**record, "sets": ["baseline"]}))
    lines = ask(copied)
    assert lines == ["in use, built for baseline", "Compiled", "[1.0, 0.0, 0.0]", "compiled"]


@pytest.mark.parametrize(
    ("built", "most", "wanted"),
    [
        (["baseline", "avx2"], "", "avx2"),  # not the baseline, since avx512 is not there
        (["baseline", "avx512"], "avx2", "baseline"),
        (["baseline", "avx2", "avx512"], "avx2", "avx2"),
        (["baseline", "avx2", "avx512"], "baseline", "baseline"),
    ],
)
def test_the_best_set_there_is(copied: Path, built: list[str], most: str, wanted: str) -> None:
    if used() not in ("avx2", "avx512"):
        pytest.skip("the processor, or the compiler, has no AVX2")
    record = json.loads((copied / "build.json").read_text())
    (copied / "build.json").write_text(json.dumps({**record, "sets": built}))
    assert ask(copied, GPULAYERS_INSTRUCTIONS=most)[0] == f"in use, built for {wanted}"


def used() -> str:
    """The instruction set of the kernels in this process."""
    return library.report().rpartition(" ")[2]


def test_an_unknown_set_is_refused(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpulayers", "info"],
        env=os.environ | {"GPULAYERS_INSTRUCTIONS": "avx3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    expected = "GPULAYERS_INSTRUCTIONS: expected one of baseline, avx2, avx512, got 'avx3'"
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_a_compiler_that_knows_a_part_of_the_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *avx512*) exit 1;; esac\n')
    compiler.chmod(0o755)
    sets = build.instruction_sets([str(compiler)])
    assert sets[0] == "baseline" and "avx512" not in sets
    if platform.machine() in ("x86_64", "AMD64"):
        assert sets == ["baseline", "avx2"]
    assert build.instruction_sets([str(tmp_path / "none")]) == ["baseline"]


@pytest.mark.parametrize("name", ["avx2", "avx512"])
@pytest.mark.compiled
def test_the_other_instruction_sets(copied: Path, name: str) -> None:
    """The hostile shapes with vectors of another length, which have other remainders; this process
    uses the best set, the sanitizers' build the baseline."""
    if name == used() or ask(copied, GPULAYERS_INSTRUCTIONS=name)[0].split()[-1] != name:
        pytest.skip(f"not another set of this machine: {name}")
    options = ["-q", "-x", "-m", "compiled and not slow", "-p", "no:cacheprovider"]
    files = map(str, Path(__file__).parent.glob("test_compiled_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=os.environ | {"GPULAYERS_ENGINE": "compiled", "GPULAYERS_INSTRUCTIONS": name},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert " passed" in done.stdout


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"looked for \$CC, cc, gcc and clang"):
        build.build(tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'thing.c:1: error: it broke' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(build.BuildError, match=r"cc failed: thing\.c:1: error: it broke"):
        build.build(tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_what_is_built_is_current(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    record = json.loads((copied / "build.json").read_text())
    record["compiler"] = build._version(build.find_compiler())  # it may be a newer one by now
    (copied / "build.json").write_text(json.dumps(record))
    assert build.is_current(copied)
    for change in ({"sources": "0" * 64}, {"compiler": "cc 1.0"}, {"flags": []}, {"sets": []}):
        (copied / "build.json").write_text(json.dumps({**record, **change}))
        assert not build.is_current(copied), change
    (copied / "build.json").write_text(json.dumps(record))
    monkeypatch.setenv("CC", str(copied / "no-compiler"))
    assert not build.is_current(copied)
    monkeypatch.delenv("CC")
    (copied / f"kernels-baseline{build.SUFFIX}").unlink()
    assert not build.is_current(copied)
    assert not build.is_current(copied / "gone")
