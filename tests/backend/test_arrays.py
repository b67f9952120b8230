"""Arrays decide: looking up their library, refusing mixtures, moving them, reporting."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as gpu_backend
from gpulayers.backend import asarray, backend_of, describe, to_backend, to_cpu, to_gpu, xp_of
from gpulayers.errors import BackendError, DTypeError
from tests.conftest import Backend

THINGS = [[1.0], 3.0, "text", (1, 2), np.float32(3), {}, object()]


def test_the_library_of_arrays(backend: Backend) -> None:
    x, y = backend.asarray(np.ones(2)), backend.asarray(np.ones((0, 3), np.int32))
    assert xp_of(x) is backend.xp
    assert xp_of(x, None, y) is backend.xp
    assert xp_of(None, y) is backend.xp
    assert backend_of(x) == backend.library


def test_subclasses_count_as_numpy(tmp_path: Path, numpy_backend: Backend) -> None:
    mapped = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=(3,))
    assert xp_of(mapped) is np
    assert xp_of(mapped, np.ones(2)) is np
    mapped._mmap.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_things_that_are_no_arrays(numpy_backend: Backend, thing: Any) -> None:
    expected = (
        rf"expected a numpy or cupy array, got {type(thing).__name__}; "
        r"convert it with gpulayers\.backend\.asarray"
    )
    for call in (
        lambda: xp_of(thing),
        lambda: xp_of(np.ones(1), thing),
        lambda: backend_of(thing),
        lambda: to_cpu(thing),
    ):
        with pytest.raises(DTypeError, match=expected):
            call()
    with pytest.raises(DTypeError, match=f"to_cpu: {expected}"):
        to_cpu(thing)
    with pytest.raises(DTypeError, match=f"to_backend: {expected}"):
        to_backend(thing, "numpy")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_with_rules_of_their_own_are_refused() -> None:
    """Formulas would forget which elements are masked, and take `*` for another product."""
    for array in (np.ma.masked_array(np.ones(3, np.float32), [0, 1, 0]), np.matrix([[1.0]])):
        for _ in range(2):  # whatever was remembered of the type
            message = f"got {type(array).__name__}; convert it with gpulayers.backend.asarray"
            with pytest.raises(DTypeError, match=message):
                xp_of(array)
            assert type(np.asarray(array)) is np.ndarray


def test_no_array_at_all() -> None:
    for arguments in [(), (None,), (None, None)]:
        with pytest.raises(DTypeError, match="expected at least one array, got none"):
            xp_of(*arguments)


def test_mixtures_are_refused(emulated: Backend) -> None:
    on_gpu, on_cpu = emulated.asarray(np.ones(2)), np.ones(2)
    for pair in [(on_gpu, on_cpu), (on_cpu, None, on_gpu)]:
        with pytest.raises(
            BackendError, match=r"numpy and cupy arrays were mixed .*to_cpu\(.*to_g"
        ):
            xp_of(*pair)


def test_moving(emulated: Backend) -> None:
    values = np.arange(6.0, dtype=np.float16).reshape(2, 3)
    on_gpu = to_gpu(values)
    assert isinstance(on_gpu, emulated.xp.ndarray)
    assert (on_gpu.dtype, on_gpu.shape) == ("float16", (2, 3))
    assert to_gpu(on_gpu) is on_gpu
    assert to_cpu(values) is values
    back = to_cpu(on_gpu)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, values)
    assert to_backend(on_gpu, "numpy").dtype == "float16"
    assert to_backend(values, "auto").shape == (2, 3)
    back[...] = 0  # a copy, no view into device memory
    np.testing.assert_array_equal(to_cpu(on_gpu), values)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 1, 3)], ids=str)
def test_moving_keeps_dtype_and_shape(emulated: Backend, dtype: str, shape: Any) -> None:
    values = np.ones(shape, dtype)
    back = to_cpu(to_gpu(values))
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(back, values)


def test_moving_views(emulated: Backend) -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    for view in (values.T, values[:, ::2], values[::-1], np.asfortranarray(values)):
        np.testing.assert_array_equal(to_cpu(to_gpu(view)), view)
        np.testing.assert_array_equal(to_cpu(to_gpu(view)[1:]), view[1:])


def test_unknown_targets(numpy_backend: Backend) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'gpu'"):
        to_backend(np.ones(1), "gpu")


def test_asarray_goes_to_the_current_backend(backend: Backend) -> None:
    for value in ([[1, 2], [3, 4]], 5.0, np.ones((2, 3), np.float16), (1.0,)):
        array = asarray(value)
        assert isinstance(array, backend.xp.ndarray)
        np.testing.assert_array_equal(backend.asnumpy(array), np.asarray(value))
        assert array.dtype == np.asarray(value).dtype
        assert asarray(value, "float32").dtype == "float32"
    there = backend.asarray(np.ones(2))
    assert asarray(there) is there


def test_asarray_brings_arrays_back(emulated: Backend) -> None:
    on_gpu = emulated.asarray(np.ones(3))
    with gpu_backend.use_backend("numpy"):
        assert type(asarray(on_gpu)) is np.ndarray
        assert asarray(on_gpu, "float32").dtype == "float32"


# ------------------------------------------------------------------------------------- reports


def test_report_with_a_gpu(emulated: Backend) -> None:
    report = describe()
    assert "backend:    cupy (asked for: cupy)" in report
    assert f"CuPy {emulated.xp.__version__} with 1 GPU(s)" in report
    assert "gpu 0:" in report
    assert "compute capability" in report
    assert "driver:     supports CUDA" in report
    assert "none usable" not in report


def test_report_without_a_gpu(numpy_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    status = gpu_backend._CupyStatus(None, "CuPy is not installed", "pip install cupy-something")
    monkeypatch.setattr(gpu_backend, "_cupy_status", status)
    report = describe()
    assert "backend:    numpy (asked for: numpy)" in report
    assert "why:        NumPy was asked for" in report
    assert "gpu:        none usable. If you expected one: pip install cupy-something" in report
    assert f"numpy:      {np.__version__}" in report
    assert f"python:     {sys.version.split()[0]}" in report
    assert "dtype:      float32" in report
    monkeypatch.setattr(gpu_backend, "_auto_choice", None)
    with gpu_backend.use_backend("auto"):
        assert "why:        CuPy is not installed" in describe()


def test_report_of_an_environment_that_cannot_be_met(
    numpy_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = gpu_backend._CupyStatus(None, "CuPy is not installed", "pip install it")
    monkeypatch.setattr(gpu_backend, "_cupy_status", status)
    monkeypatch.setenv("GPULAYERS_BACKEND", "cupy")
    token = gpu_backend._current.set(None)
    try:
        report = describe()
    finally:
        gpu_backend._current.reset(token)
    assert "backend:    none (asked for: cupy)" in report
    assert "but CuPy is not installed" in report


def test_the_shim_of_the_checkout(emulated: Backend) -> None:
    import backend as shim

    assert shim.xp is emulated.xp
    with shim.use_backend("numpy"):
        assert shim.xp is np
    assert shim.to_cpu is to_cpu
    assert set(gpu_backend.__all__) <= set(dir(shim))
