"""The fixtures of conftest.py: backends do not leak, and what is missing is skipped or reported."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gpulayers import backend as library
from gpulayers import ops
from gpulayers.ops import softmax
from tests.conftest import Backend, no_gpu_reason, switched_to
from tests.support import fake_cupy
from tests.support.cuda_on_cpu.toolchain import REQUIRE_VARIABLE

LOGITS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def observe() -> tuple[object, ...]:
    current = library.current_backend()  # looks for CuPy if nobody did yet
    cuda = {name: id(module) for name, module in sys.modules.items() if "gpulayers.cuda" in name}
    return (
        sys.modules.get("cupy"),
        cuda,
        dict(ops._kernels._loaded),
        dict(library._module_of_type),
        library._cupy_status,
        current,
        fake_cupy.state.flavour,
    )


@pytest.mark.emulated
def test_nothing_is_left_behind() -> None:
    softmax.softmax_forward(LOGITS)
    before = observe()
    for _ in range(2):
        with switched_to("emulated") as emulated:
            assert library.xp is fake_cupy.cupy
            X = emulated.asarray(LOGITS)
            with emulated.count() as events:
                Y = softmax.softmax_forward(X)
            assert any(name.startswith("kernel:softmax_forward") for name in events)
            assert library.backend_of(Y) == "cupy"
        assert observe() == before
    with pytest.raises(library.DTypeError):
        library.xp_of(Y)  # an array of the stand-in is unknown outside


@pytest.mark.emulated
def test_an_error_inside_leaves_nothing_behind_either() -> None:
    before = observe()
    with pytest.raises(ZeroDivisionError), switched_to("emulated"):
        raise ZeroDivisionError
    assert observe() == before


def test_backend_object(backend: Backend) -> None:
    X = backend.asarray(LOGITS)
    assert isinstance(X, backend.xp.ndarray)
    assert library.current_backend() == backend.library
    np.testing.assert_array_equal(backend.asnumpy(X), LOGITS)
    with backend.count() as events:
        X + X
    assert (events["launch"] == 1) == backend.observed
    if backend.name != "numpy":
        with pytest.raises(TypeError, match="expected an array on"):
            backend.asnumpy(LOGITS)
    assert backend.asarray([1, 2], np.float16).dtype == np.float16


# ------------------------------------------------------------------------ skips and options


def run_pytest(pytestconfig: pytest.Config, *options: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options]
    run = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


TARGET = "tests/meta/test_fake_cupy_fixtures.py::test_backend_object"


def test_without_a_compiler(pytestconfig: pytest.Config) -> None:
    status, printed = run_pytest(pytestconfig, TARGET, PATH="", **{REQUIRE_VARIABLE: ""})
    assert status == 0, printed
    assert " passed, 1 skipped" in printed  # on NumPy, and with the C kernels where built
    assert "running kernels on the CPU needs" in printed
    status, printed = run_pytest(pytestconfig, TARGET, PATH="", **{REQUIRE_VARIABLE: "1"})
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"{REQUIRE_VARIABLE}=1: running kernels on the CPU needs" in printed


@pytest.mark.skipif(no_gpu_reason() is None, reason="there is a GPU here")
def test_without_a_gpu(pytestconfig: pytest.Config) -> None:
    status, printed = run_pytest(pytestconfig, TARGET, "-m", "gpu")
    assert status == 0, printed
    assert "needs a CUDA device" in printed
    status, printed = run_pytest(pytestconfig, TARGET, "-m", "gpu", "--require-gpu")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "--require-gpu: " in printed
