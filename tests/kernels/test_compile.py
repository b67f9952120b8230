"""Kernels come from CuPy's cache or are compiled: what a broken or foreign file there leads to."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest

from gpulayers.errors import BackendError
from tests.conftest import Backend

pytestmark = pytest.mark.emulated


class CUDADriverError(RuntimeError):
    """Of CuPy, when the driver refuses what it is to load."""


@pytest.fixture
def compile_module(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("gpulayers.cuda.compile")
    monkeypatch.setattr(module, "_kernels", {})
    return module


def failing(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, error: Any, times: int
) -> list[Any]:
    """`RawModule.get_function` raises at its first calls; returns the options of each."""
    found: list[Any] = []
    inner = emulated.xp.RawModule

    class Module(inner):
        def __init__(self, **arguments: Any) -> None:
            self.options = arguments["options"]
            super().__init__(**arguments)

        def get_function(self, name: str) -> Any:
            found.append(self.options)
            if len(found) <= times:
                raise error
            return super().get_function(name)

    monkeypatch.setattr(emulated.xp, "RawModule", Module)
    return found


def test_refused_machine_code_is_compiled_anew(
    emulated: Backend,
    compile_module: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under another key of the cache, once for each kernel; and it is said."""
    error = CUDADriverError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
    tries = failing(emulated, monkeypatch, error, 1)
    x = emulated.asarray([1.0, 2.0], "float32")
    y = emulated.xp.empty_like(x)
    with caplog.at_level(logging.WARNING, "gpulayers"):
        for _ in range(2):
            args = (x, y, 2, 2, 0.0, 0.0)
            compile_module.launch("activation_forward", x.dtype, (1,), args, "int32")
    assert emulated.asnumpy(y).tolist() == [1.0, 2.0]
    assert len(tries) == 2
    assert tries[0] != tries[1]
    assert "compiled anew" in caplog.text
    assert "CUDA_ERROR_INVALID_IMAGE" in caplog.text


def test_an_error_of_the_compiler_is_told_at_once(
    emulated: Backend, compile_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = failing(emulated, monkeypatch, RuntimeError("no such header"), 1)
    with pytest.raises(BackendError, match=r"did not compile for device 0:\nno such header"):
        compile_module.get_kernel("bias_add", "float32")
    assert len(tries) == 1
    compile_module.get_kernel("bias_add", "float32")


def test_a_driver_that_refuses_again(
    emulated: Backend, compile_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(emulated, monkeypatch, CUDADriverError("CUDA_ERROR_NO_BINARY_FOR_GPU"), 2)
    with pytest.raises(BackendError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        compile_module.get_kernel("bias_add", "float32")


def test_a_cache_that_cannot_be_written(
    emulated: Backend, compile_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(emulated, monkeypatch, PermissionError(13, "Permission denied", "/cache"), 1)
    with pytest.raises(BackendError, match=r"cache cannot be used \(.*/cache.*CUPY_CACHE_DIR"):
        compile_module.get_kernel("bias_add", "float32")


def test_an_error_of_a_launch_names_its_kernel(emulated: Backend, compile_module: Any) -> None:
    x = emulated.asarray([1.0], "float32")
    args = (x, x, 1, 2, 0.0, 0.0)
    with pytest.raises(Exception) as caught:  # of the driver, whatever its type
        compile_module.launch("activation_forward", x.dtype, (1,), args, "int32", block=2048)
    (note,) = caught.value.__notes__
    assert note.startswith("at the launch of kernel activation_forward for float32: (1,) blocks of")
    assert "2048 threads" in note
