"""Does the stand-in catch the mistakes it is there for? Each one is planted here.

`Net` is one step of a small network written on `xp`, right as it stands. Each mistake is a small
change that NumPy does not notice.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support import fake_cupy
from tests.support.cuda_on_cpu import KernelError
from tests.support.fake_cupy import CaptureError, CUDARuntimeError, DeviceRuleError, state

pytestmark = pytest.mark.emulated

SOURCE = r"""
extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
extern "C" __global__ void scale_too_far(const float* x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = factor * x[i];
}
extern "C" __global__ void neighbours(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[(threadIdx.x + 1) % 64];
}
"""


@pytest.fixture
def cp() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


class Net:
    """A linear layer with softmax cross-entropy; `mistake` names what is done wrong."""

    def __init__(self, xp: Any, mistake: str = "") -> None:
        self.xp, self.mistake = xp, mistake
        self.W = xp.asarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))

    def step(self, X: Any, labels: Any) -> Any:
        xp = self.xp
        rows = xp.arange(len(X))
        logits = X @ self.W
        if self.mistake == "host array among device arrays":
            logits = logits + np.zeros(3, np.float32)
        if self.mistake == "host array in matmul":
            logits = X @ np.ones((4, 3), np.float32)
        exponential = xp.exp(logits - logits.max(axis=1, keepdims=True))
        if self.mistake == "numpy function":
            exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        if self.mistake == "numpy reduction":
            np.sum(exponential)
        probs = exponential / exponential.sum(axis=1, keepdims=True)
        if self.mistake == "conversion to numpy":
            np.asarray(probs)
        loss = -xp.log(probs[rows, labels]).mean()
        if self.mistake == "item" and loss.item() > 1e9:
            raise RuntimeError("diverged")
        if self.mistake == "truth value" and loss > 1e9:
            raise RuntimeError("diverged")
        if self.mistake == "boolean mask":
            probs[probs > 2].sum()
        if self.mistake == "formatting":
            f"{loss:.3f}"
        if self.mistake == "upload":
            loss = loss + xp.asarray(np.float32(0))
        if self.mistake == "list index":
            probs[[0, 1]]
        dlogits = probs.copy()
        if self.mistake == "np.add.at":
            np.add.at(dlogits, (rows, labels), -1)
        elif self.mistake == "repeated index assignment":
            dlogits[xp.zeros(2, int)] = dlogits[:2]
        else:
            dlogits[rows, labels] -= 1
        dW = X.T @ dlogits
        if self.mistake == "a name CuPy lacks":
            dW = xp.block([[dW]])
        if self.mistake == "a keyword CuPy lacks":
            dW = xp.sum(dW[None], axis=0, where=True)
        if self.mistake == "a ufunc keyword CuPy lacks":
            xp.add(dW, 1, out=dW, where=dW > 0)
        if self.mistake == "a reduction CuPy lacks":
            xp.maximum.reduce(dW)
        if self.mistake == "host array assigned":
            dW[...] = np.zeros((4, 3), np.float32)
        if self.mistake == "host array as index":
            dW[np.array([0])]
        self.W -= np.float32(0.1) * dW
        return loss


def batch(xp: Any) -> tuple[Any, Any]:
    X = np.linspace(-2, 3, 24, dtype=np.float32).reshape(6, 4)
    return xp.asarray(X), xp.asarray(np.array([0, 1, 2, 2, 1, 0]))


def test_the_sound_step_equals_numpy(cp: Any) -> None:
    on_host, on_device = Net(np), Net(cp)
    for _ in range(3):
        expected = on_host.step(*batch(np))
        loss = on_device.step(*batch(cp))
        np.testing.assert_allclose(loss.get(), expected, rtol=1e-6)
    np.testing.assert_allclose(on_device.W.get(), on_host.W, rtol=1e-6)


def test_the_sound_step_keeps_the_rules(cp: Any) -> None:
    net, (X, labels) = Net(cp), batch(cp)
    with fake_cupy.count() as events, fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        net.step(X, labels)
    assert 15 <= events["launch"] <= 25
    assert events["sync"] == events["h2d"] == events["d2h"] == 0


TYPE_ERRORS = {
    "host array among device arrays": "Unsupported type <class 'numpy.ndarray'>",
    "host array in matmul": "got numpy.ndarray",
    "numpy function": "np.exp on a device array",
    "numpy reduction": "np.sum on a device array",
    "conversion to numpy": "Implicit conversion to a NumPy array is not allowed",
    "np.add.at": "np.add.at on a device array",
    "a keyword CuPy lacks": "unexpected keyword argument 'where'",
    "a ufunc keyword CuPy lacks": "Wrong arguments",
    "host array as index": "Unsupported type <class 'numpy.ndarray'>",
}


@pytest.mark.parametrize("mistake", TYPE_ERRORS)
def test_type_errors(cp: Any, mistake: str) -> None:
    Net(np, mistake).step(*batch(np))  # NumPy does not notice
    with pytest.raises(TypeError) as caught:
        Net(cp, mistake).step(*batch(cp))
    assert TYPE_ERRORS[mistake] in str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "kind", "words"),
    [
        ("a name CuPy lacks", AttributeError, "NumPy has it, CuPy does not"),
        ("a reduction CuPy lacks", NotImplementedError, "cupy_maximum.reduce"),
        ("host array assigned", ValueError, "cannot be used for fill"),
        ("repeated index assignment", DeviceRuleError, "undefined"),
    ],
)
def test_other_errors(cp: Any, mistake: str, kind: type[Exception], words: str) -> None:
    Net(np, mistake).step(*batch(np))
    with pytest.raises(kind, match=words):
        Net(cp, mistake).step(*batch(cp))


WAITS = ("item", "truth value", "boolean mask", "formatting")
COPIES = ("upload", "list index")


@pytest.mark.parametrize("mistake", WAITS + COPIES)
def test_hidden_waits_and_copies(cp: Any, mistake: str) -> None:
    net, (X, labels) = Net(cp, mistake), batch(cp)
    net.step(X, labels)  # allowed outside
    event = "sync" if mistake in WAITS else "h2d"
    with pytest.raises(DeviceRuleError, match=event), fake_cupy.forbid(event):
        net.step(X, labels)


@pytest.mark.parametrize("name", ["nonzero", "flatnonzero", "argwhere", "unique", "where"])
def test_results_of_unknown_shape_wait(cp: Any, name: str) -> None:
    x = cp.arange(5)
    with pytest.raises(DeviceRuleError, match=f"sync .*{name}"), fake_cupy.forbid("sync"):
        getattr(cp, name)(x)
    with fake_cupy.forbid("sync"):
        cp.where(x > 2, x, 0)
        cp.sort(x)


def test_an_allocation_is_seen(cp: Any) -> None:
    x = cp.ones(3)
    with fake_cupy.forbid("alloc"):
        x += 1
        cp.add(x, x, out=x)
        x[1:] = 0
    with pytest.raises(DeviceRuleError, match="alloc"), fake_cupy.forbid("alloc"):
        x + 1


def test_forbid_knows_its_events() -> None:
    with pytest.raises(ValueError, match="no such event: synk"), fake_cupy.forbid("synk"):
        pass


# ----------------------------------------------------------------------------------- capture


@pytest.mark.parametrize("mistake", ["item", "boolean mask", "upload", "truth value", "formatting"])
def test_a_capture_refuses_waits_and_copies(cp: Any, mistake: str) -> None:
    def elementwise(x: Any) -> Any:
        actions = {
            "item": lambda: x.sum().item(),
            "boolean mask": lambda: x[x > 0],
            "upload": lambda: cp.asarray(np.ones(3)),
            "truth value": lambda: bool(x.sum()),
            "formatting": lambda: f"{x.sum()}",
        }
        return actions[mistake]()

    x, stream = cp.ones(3), cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(CaptureError, match="the current stream is capturing"):
            elementwise(x)
        stream.end_capture()


def test_a_capture_refuses_cublas(cp: Any) -> None:
    net, (X, labels) = Net(cp), batch(cp)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            net.step(X, labels)
        stream.end_capture()


def test_synchronising_spoils_a_capture(cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(CUDARuntimeError, match="StreamCaptureUnsupported"):
            stream.synchronize()
        with pytest.raises(CUDARuntimeError, match="StreamCaptureInvalidated"):
            stream.end_capture()


def test_a_captured_step_runs_on_launch_only(cp: Any) -> None:
    kernel = cp.RawKernel(SOURCE, "scale")
    x, y = cp.arange(4, dtype=np.float32), cp.zeros(4, np.float32)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        kernel((1,), (32,), (x, y, np.float32(2), np.int32(4)))
        z = y + 1
        x += z
        graph = stream.end_capture()
    assert x.get().tolist() == [0, 1, 2, 3]
    assert y.get().tolist() == [0, 0, 0, 0]
    assert np.isnan(z.get()).all()  # allocated, not computed
    graph.launch(stream)
    assert z.get().tolist() == [1, 3, 5, 7]
    assert x.get().tolist() == [1, 4, 7, 10]
    graph.launch(stream)
    assert x.get().tolist() == [4, 13, 22, 31]


# ----------------------------------------------------------------------------------- kernels


def launch(cp: Any, name: str, *args: Any, **kwargs: Any) -> None:
    cp.RawModule(code=SOURCE).get_function(name)((1,), (64,), args, **kwargs)


def test_a_sound_launch(cp: Any) -> None:
    x, y = cp.arange(50, dtype=np.float32), cp.empty(50, np.float32)
    with fake_cupy.count() as events:
        launch(cp, "scale", x, y, np.float32(2), np.int32(50))
    assert events["kernel:scale"] == events["launch"] == 1
    np.testing.assert_array_equal(y.get(), 2 * np.arange(50))


def test_wrong_launches(cp: Any) -> None:
    x, y = cp.zeros((8, 8), np.float32), cp.zeros((8, 8), np.float32)
    two, n = np.float32(2), np.int32(64)
    with pytest.raises(TypeError, match="float"):
        launch(cp, "scale", x, y, 2.0, n)  # a Python float is passed as a double
    with pytest.raises(TypeError, match="contiguous"):
        launch(cp, "scale", x.T, y, two, n)
    with pytest.raises(TypeError, match="float64"):
        launch(cp, "scale", x.astype(np.float64), y, two, n)
    with pytest.raises(TypeError, match=r"numpy\.ndarray"):
        launch(cp, "scale", np.zeros(64, np.float32), y, two, n)
    with pytest.raises(TypeError):
        launch(cp, "scale", x, y, two)
    with pytest.raises(TypeError, match="dynamic shared memory"):
        launch(cp, "scale", x, y, two, n, shared_mem=49 << 10)
    with pytest.raises(TypeError, match="overlap"):
        launch(cp, "scale", x, x, two, n)
    with pytest.raises(RuntimeError, match="named symbol not found"):
        launch(cp, "scales", x, y, two, n)


def test_wrong_kernels(cp: Any) -> None:
    x, y = cp.zeros(64, np.float32), cp.empty(64, np.float32)
    with pytest.raises(KernelError, match="out-of-bounds"):
        launch(cp, "scale_too_far", x[:50].copy(), cp.empty(50, np.float32), np.float32(2), 50)
    with pytest.raises(KernelError) as caught:
        launch(cp, "neighbours", x, y)
    assert caught.value.kinds & {"race-in-block", "uninitialised-shared"}
    with pytest.raises(KernelError, match="uninitialised-global"):
        unwritten = cp.empty(64, np.float32)
        launch(cp, "scale", unwritten, y, np.float32(2), np.int32(64))


def test_the_plain_flavour_checks_values_only(cp: Any) -> None:
    x, y = cp.zeros(64, np.float32), cp.empty(64, np.float32)
    before, state.flavour = state.flavour, "plain"
    try:
        launch(cp, "scale", y, x, np.float32(2), np.int32(64))
    finally:
        state.flavour = before
    assert np.isnan(x.get()).all()


# -------------------------------------------------------------------------------- memory


def test_poison(cp: Any) -> None:
    assert np.isnan(cp.empty((2, 2)).get()).all()
    assert np.isnan(cp.empty_like(cp.ones(3, np.float16)).get()).all()
    assert (cp.empty(3, np.int32).get() > 1e8).all()


def test_memory_is_given_back(cp: Any) -> None:
    pool = cp.get_default_memory_pool()
    gc.collect()  # tracebacks of earlier tests may hold arrays
    before = pool.used_bytes()
    x = cp.zeros(1000, np.float32)
    view = x[10:]
    assert pool.used_bytes() == before + 4096
    del x
    assert pool.used_bytes() == before + 4096  # the view still holds it
    del view
    assert pool.used_bytes() == before


def test_out_of_memory(cp: Any) -> None:
    pool = cp.cuda.MemoryPool()
    pool.set_limit(size=1024)
    with cp.cuda.using_allocator(pool.malloc):
        cp.zeros(256, np.float32)
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="limit set to: 1,024"):
            cp.zeros(257, np.float32)


def test_installing_leaves_no_trace() -> None:
    import sys

    before = {name: m for name, m in sys.modules.items() if name.startswith("cupy")}
    with fake_cupy.installed():
        import cupy

        assert cupy is fake_cupy.cupy
        with fake_cupy.installed():
            pass
        assert sys.modules["cupy"] is fake_cupy.cupy
    assert {name: m for name, m in sys.modules.items() if name.startswith("cupy")} == before
