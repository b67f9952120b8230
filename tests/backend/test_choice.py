"""Which library computes: use_backend, environment variables, unknown names, no silent fallback."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import gpulayers
from gpulayers import backend
from gpulayers.backend import use_backend
from gpulayers.errors import BackendError, ParameterError
from tests.conftest import Backend


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where CuPy is not installed."""
    status = backend._CupyStatus(None, "CuPy is not installed", "pip install it")
    monkeypatch.setattr(backend, "_cupy_status", status)
    monkeypatch.setattr(backend, "_auto_choice", None)


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("GPULAYERS_BACKEND", raising=False)
    token = backend._current.set(None)
    yield
    backend._current.reset(token)


# -------------------------------------------------------------------------------- use_backend


def test_at_once_and_as_a_context_manager(emulated: Backend) -> None:
    assert backend.current_backend() == "cupy"
    use_backend("numpy")
    assert backend.current_backend() == "numpy"
    assert backend.xp is np
    with use_backend("cupy") as chosen:
        assert chosen.name == "cupy"
        assert backend.xp is emulated.xp
        with use_backend("numpy"):
            assert backend.xp is np
        assert backend.xp is emulated.xp
    assert backend.xp is np


def test_the_former_choice_returns_after_an_error(emulated: Backend) -> None:
    with pytest.raises(ZeroDivisionError), use_backend("numpy"):
        _ = 1 / 0
    assert backend.current_backend() == "cupy"


def test_names_are_forgiving_in_case_and_spaces(numpy_backend: Backend) -> None:
    with use_backend(" NumPy "):
        assert backend.current_backend() == "numpy"


@pytest.mark.parametrize(
    "name, hint",
    [("nunpy", "numpy"), ("cupyy", "cupy"), ("atuo", "auto"), ("cuda", "cupy"), ("", "")],
)
def test_unknown_names(numpy_backend: Backend, name: str, hint: str) -> None:
    suggestion = rf" \(did you mean '{hint}'\?\)" if hint else "$"
    expected = rf"unknown backend '{name}', expected one of numpy, cupy, auto{suggestion}"
    with pytest.raises(BackendError, match=f"use_backend: {expected}"):
        use_backend(name)
    with pytest.raises(BackendError, match=f"module: {expected}"):
        backend.module(name)
    assert backend.current_backend() == "numpy"


def test_another_thread_keeps_its_own_choice(emulated: Backend) -> None:
    seen = []

    def look() -> None:
        with use_backend("numpy"):
            seen.append(backend.current_backend())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == ["numpy"]
    assert backend.current_backend() == "cupy"


def test_cupy_that_is_not_there_is_an_error(no_cupy: None) -> None:
    with use_backend("numpy"):
        expected = "'cupy' was asked for, but CuPy is not installed. To mend it: pip install it"
        with pytest.raises(BackendError, match=expected):
            use_backend("cupy")
        assert backend.current_backend() == "numpy"
        for call in (lambda: backend.module("cupy"), lambda: backend.to_gpu(np.ones(2))):
            with pytest.raises(BackendError, match=expected):
                call()
        assert backend.available() == ("numpy",)


def test_auto_takes_what_is_there(no_cupy: None, nothing_chosen: None) -> None:
    assert backend.current_backend() == "numpy"
    with use_backend("auto"):
        assert backend.current_backend() == "numpy"
        assert backend.xp is np
    assert backend.module("auto") is np


def test_auto_prefers_a_gpu(emulated: Backend, nothing_chosen: None) -> None:
    assert backend.current_backend() == "cupy"
    assert backend.available() == ("numpy", "cupy")
    assert backend.xp is emulated.xp


# ---------------------------------------------------------------------- environment variables


def test_the_environment_chooses_until_told_otherwise(
    emulated: Backend, nothing_chosen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULAYERS_BACKEND", "NUMPY")
    assert backend.current_backend() == "numpy"
    monkeypatch.setenv("GPULAYERS_BACKEND", "cupy")
    assert backend.current_backend() == "cupy"
    with use_backend("numpy"):
        assert backend.current_backend() == "numpy"
    monkeypatch.setenv("GPULAYERS_BACKEND", "")
    assert backend.current_backend() == "cupy"  # auto


def test_a_wrong_environment(nothing_chosen: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpi")
    with pytest.raises(BackendError, match=r"GPULAYERS_BACKEND: unknown backend 'numpi'.*'numpy'"):
        backend.current_backend()
    assert "unknown backend 'numpi'" in backend.describe()


def test_cupy_by_the_environment_where_there_is_none(
    no_cupy: None, nothing_chosen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULAYERS_BACKEND", "cupy")
    with pytest.raises(BackendError, match="'cupy' was asked for, but CuPy is not installed"):
        backend.current_backend()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPULAYERS_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_variables_in_a_fresh_process() -> None:
    code = (
        "import gpulayers, numpy as np; from gpulayers import backend, layers\n"
        "Y = layers.FullyConnected(2).forward(np.ones((3, 4)))\n"
        "print(backend.current_backend(), backend.default_dtype(), Y.dtype)"
    )
    done = run(code, GPULAYERS_BACKEND="numpy", GPULAYERS_DTYPE="float64")
    assert done.stdout.split() == ["numpy", "float64", "float64"], done.stderr
    done = run(code, GPULAYERS_BACKEND="numpy")
    assert done.stdout.split() == ["numpy", "float32", "float32"], done.stderr
    done = run(code, GPULAYERS_BACKEND="numpy", GPULAYERS_DTYPE="float23")
    assert done.returncode == 1
    assert "GPULAYERS_DTYPE: expected a floating dtype" in done.stderr
    assert "did you mean 'float32'?" in done.stderr


# ------------------------------------------------------------------------------- dtype policy


@pytest.fixture
def float32():
    before = backend.default_dtype()
    yield
    backend.set_default_dtype(before)


@pytest.mark.parametrize("value", ["float16", "float64", np.float32, np.dtype("float64"), float])
def test_set_default_dtype(float32: None, value: Any) -> None:
    backend.set_default_dtype(value)
    assert backend.default_dtype() == np.dtype(value)
    assert isinstance(backend.default_dtype(), np.dtype)


def test_the_default_dtype_of_other_threads(float32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the docstring says: each has its own, the process's is that of the environment."""
    seen: dict[str, str] = {}

    def look(name: str) -> None:
        seen[name] = backend.default_dtype().name
        backend.set_default_dtype("float16")

    def run_in(name: str, call: Any) -> None:
        thread = threading.Thread(target=call, args=(name,))
        thread.start()
        thread.join()

    monkeypatch.delenv("GPULAYERS_DTYPE", raising=False)
    backend.set_default_dtype("float64")
    run_in("new", look)
    context = contextvars.copy_context()
    run_in("copied", lambda name: context.run(look, name))
    monkeypatch.setenv("GPULAYERS_DTYPE", "float64")
    run_in("environment", look)
    assert seen == {"new": "float32", "copied": "float64", "environment": "float64"}
    assert backend.default_dtype() == np.float64


def test_bfloat16(float32: None) -> None:
    pytest.importorskip("ml_dtypes")
    backend.set_default_dtype("bfloat16")
    assert backend.default_dtype().name == "bfloat16"


@pytest.mark.parametrize(
    "value", ["int32", int, "float128x", "flaot32", bool, 3, "complex64", None, (1, 2), [3]]
)
def test_other_default_dtypes_are_refused(float32: None, value: Any) -> None:
    before = backend.default_dtype()
    with pytest.raises(ParameterError, match="set_default_dtype: expected a floating dtype"):
        backend.set_default_dtype(value)
    assert backend.default_dtype() == before


def test_a_misspelt_dtype_gets_a_suggestion(float32: None) -> None:
    with pytest.raises(ParameterError, match=r"got 'flaot32' \(did you mean 'float32'\?\)"):
        backend.set_default_dtype("flaot32")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating(dtype: str) -> None:
    assert backend.is_floating(dtype)
    assert backend.is_floating(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "uint64", "S3", "O"])
def test_not_floating(dtype: str) -> None:
    assert not backend.is_floating(dtype)


# ----------------------------------------------------------------------------- public surface


def test_everything_named_is_there() -> None:
    assert set(backend.__all__) <= set(dir(backend))
    with pytest.raises(AttributeError, match="has no attribute 'yp'"):
        _ = backend.yp  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="module 'gpulayers' has no attribute 'kernels'"):
        _ = gpulayers.kernels  # type: ignore[attr-defined]
    assert sorted(gpulayers.__all__) == dir(gpulayers)


def test_the_package_gives_its_public_names() -> None:
    from gpulayers import available, layers, ops, to_cpu

    assert gpulayers.available is available is backend.available
    assert gpulayers.to_cpu is to_cpu is backend.to_cpu
    assert gpulayers.layers is layers
    assert gpulayers.use_engine is ops.use_engine
    for name in gpulayers.__all__:
        assert getattr(gpulayers, name) is not None, name
