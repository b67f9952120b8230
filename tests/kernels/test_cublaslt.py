"""The engine "cublaslt" on a library with cuBLASLt's functions that works on the host.

The numbers of attributes and the layout of structures in tests/support/cublaslt.cpp are those of
cublasLt.h, CUDA 11.4 to 13.2, written down there a second time.
"""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.cuda.fusible import RELU
from gpulayers.errors import BackendError
from gpulayers.layers import FullyConnected
from gpulayers.models import Sequential
from gpulayers.ops import _kernels, use_engine
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._product import product
from tests.conftest import Backend
from tests.support import fake_cupy
from tests.support.cuda_on_cpu.toolchain import gxx

pytestmark = pytest.mark.emulated

SOURCE = Path(__file__).parents[1] / "support" / "cublaslt.cpp"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("cublaslt") / "libcublasLt.so"
    flags = ("-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror")
    subprocess.run([gxx(), *flags, str(SOURCE), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


class Library:
    """The library, with its products as launches of the stand-in: counted, captured, replayed."""

    def __init__(self, built: ctypes.CDLL, types: dict[str, Any]) -> None:
        self._built = built
        for name, arguments in types.items():
            getattr(built, name).argtypes = arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._built, name)

    def cublasLtMatmul(self, *arguments: Any) -> int:
        assert arguments[-1] == fake_cupy.state.stream.ptr
        status = 0

        def work() -> None:
            nonlocal status
            status = self._built.cublasLtMatmul(*arguments)

        fake_cupy.state.note("kernel:cublasLt")
        fake_cupy.state.write(np.empty(0), work, "cublasLtMatmul")
        return status


@pytest.fixture
def cublaslt(
    emulated: Backend, built: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    module = importlib.import_module("gpulayers.cuda.cublaslt")
    library = Library(built, module._ARGUMENTS)
    monkeypatch.setattr(module, "load", lambda: library)
    monkeypatch.setattr(module, "LEAST", 1000)
    module._plan.cache_clear()
    module._handle.cache_clear()
    with use_engine("cublaslt"):
        yield module
    assert built.preferences_alive() == 0
    module._plan.cache_clear()
    module._handle.cache_clear()


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("turn_a", "turn_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_products(
    emulated: Backend, cublaslt: ModuleType, dtype: str, turn_a: bool, turn_b: bool
) -> None:
    a, b = numbers(13, 17, dtype=dtype), numbers(17, 11, dtype=dtype)
    A = emulated.asarray(np.ascontiguousarray(a.T) if turn_a else a)
    B = emulated.asarray(np.ascontiguousarray(b.T) if turn_b else b)
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h"):
        C = product(A.T if turn_a else A, B.T if turn_b else B)
    assert (events["launch"], events["kernel:cublasLt"]) == (1, 1)
    np.testing.assert_allclose(C.get(), a.astype(np.float64) @ b, rtol=1e-5, atol=1e-6)


def test_rows_that_lie_apart_and_addresses_off_a_boundary(
    emulated: Backend, cublaslt: ModuleType
) -> None:
    a, b = numbers(13, 40), numbers(17, 31)
    A, B = emulated.asarray(a)[:, 3:20], emulated.asarray(b)[:, 1:12]
    assert A.data.ptr % 16
    with emulated.count() as events:
        C = product(A, B)
    assert events["kernel:cublasLt"] == 1
    np.testing.assert_allclose(C.get(), a[:, 3:20] @ b[:, 1:12], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_way_back_of_a_dense_layer(emulated: Backend, cublaslt: ModuleType, dtype: str) -> None:
    x, w, dz = numbers(13, 17), numbers(17, 11), numbers(13, 11)
    engine: Any = kernels_for(emulated.asarray(x))
    assert engine.dense_parts(13, 17, 11, np.dtype("float32")) == 1
    grads = emulated.xp.empty((1, 18, 11), dtype=dtype)
    X, W, dZ = (emulated.asarray(array) for array in (x, w, dz))
    dX = engine.dense_backward(X, W, dZ, grads, RELU, True)
    dW = np.concatenate([x.T @ dz, dz.sum(axis=0)[None]])
    np.testing.assert_allclose(grads.get()[0], dW, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dX.get(), (dz @ w.T) * (x > 0), rtol=1e-5, atol=1e-5)
    assert engine.dense_backward(X, W, dZ, grads, RELU, False) is None


def test_a_dense_layer_with_what_a_plan_takes_along(
    emulated: Backend, cublaslt: ModuleType
) -> None:
    x, w, b, dz = numbers(13, 17), numbers(17, 11), numbers(11), numbers(13, 11)
    engine: Any = kernels_for(emulated.asarray(x))
    X, W, B, dZ = (emulated.asarray(array) for array in (np.tanh(x), w, b, dz))
    for act, expected in (
        (("tanh", 0.0, 0.0), np.tanh),
        (RELU, lambda z: np.maximum(z, 0)),
        (None, lambda z: z),
    ):
        Y = engine.dense_step(X, W, B, act)
        np.testing.assert_allclose(Y.get(), expected(np.tanh(x) @ w + b), rtol=1e-5, atol=1e-5)
    grads = emulated.xp.empty((1, 18, 11), dtype="float32")
    dX = engine.dense_backward(X, W, dZ, grads, ("tanh", 0.0, 0.0), True)
    np.testing.assert_allclose(dX.get(), (dz @ w.T) / np.cosh(x) ** 2, rtol=1e-4, atol=1e-5)


def test_tf32_where_it_is_asked_for(
    emulated: Backend, cublaslt: ModuleType, built: ctypes.CDLL
) -> None:
    precision = importlib.import_module("gpulayers.cuda.precision")
    X = {name: emulated.asarray(numbers(13, 13, dtype=name)) for name in ("float32", "float64")}
    found: list[int] = []
    for name in ("fp32", "tf32", "fp32"):
        with precision.use_precision(name):
            for dtype in X:
                product(X[dtype], X[dtype])
                found.append(built.last_compute_type())
    assert found == [68, 70, 77, 70, 68, 70]


def test_small_products_are_ours(emulated: Backend, cublaslt: ModuleType) -> None:
    with emulated.count() as events:
        product(emulated.asarray(numbers(9, 9)), emulated.asarray(numbers(9, 9)))
        engine = kernels_for(emulated.asarray(numbers(1)))
        shapes = ((9, 9), (9, 9), (9,))
        X, W, b = (emulated.asarray(numbers(*shape)) for shape in shapes)
        engine.dense_forward(X, W, b, True)
    assert events["kernel:cublasLt"] == 0
    assert events["launch"] == 2


def test_what_it_refuses(
    emulated: Backend, cublaslt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B = emulated.asarray(numbers(13, 17)), emulated.asarray(numbers(17, 11))
    with monkeypatch.context() as patch:
        patch.setattr(cublaslt, "WORKSPACE", 999)
        with pytest.raises(BackendError, match=r"no algorithm for float32 matrices \(13, 17\)"):
            product(A, B)
    with monkeypatch.context() as patch:
        patch.setattr(cublaslt, "_REDUCTION", 7)
        with pytest.raises(BackendError, match="cublasLtMatmul failed with status 7"):
            product(A, B)


def test_without_the_library(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("gpulayers.cuda.cublaslt")
    module.load.cache_clear()
    finder = type("Finder", (), {"load_nvidia_dynamic_lib": staticmethod(lambda name: None)})
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    monkeypatch.delitem(_kernels._loaded, ("cublaslt", "cupy"), raising=False)
    X = emulated.asarray(numbers(3, 3))
    with (
        use_engine("cublaslt"),
        pytest.raises(BackendError, match="needs the library cuBLASLt: pip install nvidia-cublas"),
    ):
        product(X, X)
    product(X, X)


def network() -> Sequential:
    random.seed(0)
    layers = [FullyConnected(12, act_fn="ReLU"), FullyConnected(30, act_fn="ReLU")]
    return Sequential([*layers, FullyConnected(3)], optimizer="SGD(lr=0.1)")


def test_a_captured_step(emulated: Backend, cublaslt: ModuleType) -> None:
    X, labels = emulated.asarray(numbers(8, 28)), emulated.asarray(np.arange(8) % 3)
    plan = network().compile(X.shape)
    with emulated.count() as events:
        losses = [float(plan.step(X, labels)) for _ in range(4)]
    # of both large layers: forward and the weight's gradient, the input's of the second one;
    # recorded before the first step, launched for it, recorded for the second
    assert events["kernel:cublasLt"] == 3 * 5
    assert events["graph_launch"] == 3
    with use_engine("raw"):
        ours = network().compile(X.shape)
        assert losses == pytest.approx([float(ours.step(X, labels)) for _ in range(4)], rel=1e-5)


def test_a_plan_whose_engine_changes(emulated: Backend, cublaslt: ModuleType) -> None:
    """Our gradients of 400 examples come in two parts, the library's in one."""
    X, labels = emulated.asarray(numbers(400, 8)), emulated.asarray(np.arange(400) % 3)
    plan, ours = network().compile(X.shape), network().compile(X.shape)
    for engine in ("raw", "cublaslt", "cublaslt", "raw", "raw"):
        with use_engine(engine):
            loss = float(plan.step(X, labels))
        with use_engine("raw"):
            assert loss == pytest.approx(float(ours.step(X, labels)), rel=1e-5)
