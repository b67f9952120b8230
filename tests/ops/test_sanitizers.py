"""The C kernels read and write no memory but their own, and rely on nothing C leaves undefined.

They are built with AddressSanitizer and UndefinedBehaviorSanitizer, and the tests of this folder
that run them, hostile shapes and all, are run again with that build in a process of its own: of a
test with many cases a third.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpulayers.ops.compiled import build as builder
from gpulayers.ops.compiled.library import FOLDER_VARIABLE, MOST_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.compiled]

ROOT = Path(__file__).parents[2]
RECORDED = "../models/test_plan_recorded.py"  # the one kernel that no test of operations calls
HOSTILE = sorted(path.name for path in Path(__file__).parent.glob("test_compiled_*.py"))
HOSTILE += ["test_fused.py", RECORDED]
# All tests of operations, every case, all instruction sets, take ten minutes: only on request.
ALL = os.environ.get("GPULAYERS_SANITIZERS") == "all"


def runtime() -> str:
    """The compiler's AddressSanitizer library, which the Python process must load first."""
    if sys.platform != "linux":
        pytest.skip("the sanitizers' runtime is loaded by LD_PRELOAD, which is Linux's")
    try:
        compiler = builder.find_compiler()
    except builder.BuildError as error:
        pytest.skip(str(error))
    if "clang" in builder._version(compiler):
        pytest.skip("the runtime that is loaded first is GCC's")
    asked = subprocess.run(
        [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True
    )
    found = asked.stdout.strip()
    if asked.returncode or not os.path.isabs(found):  # a bare name means: not found
        pytest.skip("the compiler has no AddressSanitizer")
    return found


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtime()
    folder = tmp_path_factory.mktemp("kernels")
    # the shortest vectors are as good a test
    builder.build(folder, sanitize=True, sets=None if ALL else ["baseline"])
    return folder


def run_with(
    folder: Path, log: Path, *arguments: str, instructions: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python with a sanitized build; reports go to files that begin with `log`."""
    environment = {
        **os.environ,
        FOLDER_VARIABLE: str(folder),
        MOST_VARIABLE: instructions,
        "GPULAYERS_ENGINE": "compiled",
        "LD_PRELOAD": runtime(),
        # Python itself ends with memory it never frees
        "ASAN_OPTIONS": f"detect_leaks=0:abort_on_error=0:exitcode=77:log_path={log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:exitcode=77:log_path={log}",
        "PYTHONMALLOC": "malloc",
        "GPULAYERS_WORKSPACE": "0",  # so that every array ends where its memory ends
        "OPENBLAS_NUM_THREADS": "1",
        "GPULAYERS_TEST_CASES": "all" if ALL else "",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def reports(log: Path) -> str:
    files = sorted(log.parent.glob(f"{log.name}.*"))
    return "\n".join(file.read_text(errors="replace")[:4000] for file in files)


def run_tests(
    folder: Path, log: Path, files: list[str], *plugins: str, instructions: str = ""
) -> None:
    options = ["-q", "-x", "-m", "compiled and not slow", "-p", "no:cacheprovider"]
    # where a fault was, the sanitizers say better
    options += ["-p", "no:faulthandler", *plugins]
    arguments = [*options, *(str(Path(__file__).parent / name) for name in files)]
    done = run_with(folder, log, "-m", "pytest", *arguments, instructions=instructions)
    assert not reports(log), reports(log)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_every_kernel_on_hostile_shapes(sanitized: Path, tmp_path: Path) -> None:
    files = ["", RECORDED] if ALL else HOSTILE
    run_tests(sanitized, tmp_path / "report", files, "-p", "tests.support.kernel_calls")


@pytest.mark.skipif(not ALL, reason="these sets are built only if all is asked for")
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(sanitized: Path, tmp_path: Path, name: str) -> None:
    """The same sources with shorter vectors have other remainders."""
    run_tests(sanitized, tmp_path / "report", HOSTILE, instructions=name)


def test_a_planted_fault_is_reported(sanitized: Path, tmp_path: Path) -> None:
    """Telling a kernel of one element more than there is must end in a report."""
    script = """if True:
        import numpy as np
        from gpulayers.ops.compiled import library
        kernel = library.bind("gl_activation_backward", "pppinff")
        a, b, c = (np.zeros(37, "float32") for _ in range(3))
        kernel(a.dtype, a, b, c, 37, 2, 0.0, 0.0)
        print("the right call is fine", flush=True)
        kernel(a.dtype, a, b, c, 38, 2, 0.0, 0.0)
    """
    log = tmp_path / "report"
    done = run_with(sanitized, log, "-c", script)
    assert "the right call is fine" in done.stdout, done.stderr[-3000:]
    assert "AddressSanitizer: heap-buffer-overflow" in reports(log)
    assert done.returncode != 0
