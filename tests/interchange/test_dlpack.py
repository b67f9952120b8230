"""DLPack: the same memory on both sides, and clear refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import BackendError, DTypeError, InterchangeError
from gpulayers.interchange import from_dlpack, to_dlpack
from tests.conftest import Backend


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


class Elsewhere:
    """Speaks DLPack for another array, and says that it lies on another device."""

    def __init__(self, array: Any, device: tuple[int, int]) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_memory_is_shared_both_ways(torch: Any) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    array = from_dlpack(tensor)
    assert type(array) is np.ndarray and array.dtype == np.float32
    array[1, 2] = -1
    tensor[0, 0] = 7
    assert tensor[1, 2] == -1 and array[0, 0] == 7

    layer = layers.FullyConnected(2)
    layer.forward(array)
    W = torch.from_dlpack(to_dlpack(layer.parameters["W"]))
    W.zero_()
    assert not layer.parameters["W"].any()
    assert W.data_ptr() == layer.parameters["W"].ctypes.data


def test_strides_are_kept(torch: Any) -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[::2]
    array = from_dlpack(tensor)
    assert array.strides == (8, 48, 16) and not array.flags.c_contiguous
    array[1, 0, 0] = 99
    assert tensor[1, 0, 0] == 99
    X = np.arange(12.0, dtype=np.float32).reshape(3, 4).T
    back = torch.from_dlpack(to_dlpack(X))
    assert back.stride() == (1, 4) and back.data_ptr() == X.ctypes.data
    Y = layers.Softmax().forward(array)  # a layer takes it as any other
    np.testing.assert_allclose(Y, torch.softmax(tensor, -1).numpy(), rtol=1e-5, atol=1e-30)


def test_an_exporter_lives_as_long_as_the_array(torch: Any) -> None:
    tensor = torch.full((1000,), 3.0)
    array = from_dlpack(tensor)
    del tensor
    torch.full((1000,), 5.0)
    assert (array == 3.0).all()


def test_read_only() -> None:
    X = np.arange(4.0)
    X.flags.writeable = False
    assert not from_dlpack(X).flags.writeable
    with pytest.raises(InterchangeError, match=r"read-only.*copy=True"):
        to_dlpack(X)
    copy = to_dlpack(X, copy=True)
    assert copy.flags.writeable and not np.shares_memory(copy, X)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_dtypes(torch: Any, dtype: str) -> None:
    X = np.ones((2, 3), dtype)
    tensor = torch.from_dlpack(to_dlpack(X))
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert from_dlpack(tensor).dtype == X.dtype


def test_dtypes_without_a_counterpart(torch: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (object, "U3", ">f4", np.dtype([("a", "f4")]), "M8[s]", ml_dtypes.bfloat16):
        with pytest.raises(DTypeError, match="DLPack has no dtype"):
            to_dlpack(np.zeros(3, dtype))
    with pytest.raises(DTypeError, match=r"no counterpart of torch.Tensor .*bfloat16"):
        from_dlpack(torch.zeros(3, dtype=torch.bfloat16))


def test_what_is_refused(torch: Any) -> None:
    with pytest.raises(DTypeError, match="expected an array with __dlpack__, got list"):
        from_dlpack([1.0, 2.0])
    with pytest.raises(DTypeError, match=r"to_dlpack: array: expected .* array, got Tensor"):
        to_dlpack(torch.zeros(3))
    with pytest.raises(InterchangeError, match=r"does not give its memory.*grad"):
        from_dlpack(torch.zeros(3, requires_grad=True))
    half = np.zeros(4, [("a", "u1"), ("b", "<f4")])["b"]
    with pytest.raises(InterchangeError, match=r"strides \(5,\) are no multiples"):
        to_dlpack(half)


def test_devices() -> None:
    X = np.zeros(3, np.float32)
    with pytest.raises(BackendError, match="device of DLPack type 7, expected the host"):
        from_dlpack(Elsewhere(X, (7, 0)))
    with pytest.raises(BackendError, match=r"on GPU 2, not on the backend 'numpy'.*to_backend"):
        from_dlpack(Elsewhere(X, (2, 2)), "numpy")
    with pytest.raises(BackendError, match="in host memory, not on the backend 'cupy'"):
        from_dlpack(X, "cupy")
    assert from_dlpack(X, "numpy").ctypes.data == X.ctypes.data


def test_a_gpu_array_needs_cupy(monkeypatch: pytest.MonkeyPatch, numpy_backend: Backend) -> None:
    from gpulayers import backend

    monkeypatch.setattr(backend, "_cupy_status", backend._CupyStatus(None, "no GPU", "buy one"))
    with pytest.raises(BackendError, match="'cupy' was asked for, but no GPU"):
        from_dlpack(Elsewhere(np.zeros(3), (2, 0)))


def test_numpy_cannot_look_into_a_gpu(emulated: Backend) -> None:
    """An array of the GPU does not become one of the host behind one's back."""
    layer = layers.FullyConnected(2)
    Y = layer.forward(emulated.asarray(np.ones((2, 3), np.float32)))
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(Y)
    with pytest.raises(BackendError, match=r"input 1 is a numpy array.*to_backend"):
        layers.Add().forward([Y, np.ones((2, 2), np.float32)])


@pytest.mark.gpu
def test_memory_on_a_gpu_is_shared() -> None:
    import cupy

    from gpulayers import backend

    X = cupy.arange(6, dtype=np.float32).reshape(2, 3)
    Y = from_dlpack(to_dlpack(X))
    Y[0, 0] = 5
    assert X[0, 0] == 5 and Y.data.ptr == X.data.ptr
    assert backend.backend_of(Y) == "cupy"
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(X)
    with pytest.raises(BackendError, match="on GPU 0, not on the backend 'numpy'"):
        from_dlpack(X, "numpy")
