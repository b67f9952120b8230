"""What only a device can show: repeatability, memory, streams, graphs, huge arrays, compile limits.

Where the stand-in can follow, it runs the same test, so that the test itself is known to work.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.activations import ReLU
from gpulayers.cuda import table
from gpulayers.ops import activation, conv, pool, softmax
from gpulayers.ops.window import Window
from tests.conftest import Backend, switched_to


def size(device: Backend, large: int, small: int) -> int:
    """A real device gets enough work to fill it, the emulator a little."""
    return large if device.name == "cupy" else small


def window(kernel: int, stride: int, pad: int, rows: int, dilation: int = 1) -> Window:
    return Window.make(kernel, stride, pad, dilation, (rows, rows), "test")


def normal(device: Backend, *shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return device.asarray(values.astype(dtype))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ------------------------------------------------------------------------------- repeatability


def _col2im(device: Backend, mode: str) -> np.ndarray:
    n, rows = size(device, 64, 2), size(device, 57, 9)
    w = window(3, 2, 1, rows)
    out_rows, out_cols = w.output_size(rows, rows)
    columns = normal(device, n * out_rows * out_cols, 9 * 16, seed=3)
    return device.asnumpy(conv.col2im(columns, (n, rows, rows, 16), w, mode=mode))


def _pool_backward(device: Backend) -> np.ndarray:
    rows = size(device, 63, 9)
    X, w = normal(device, size(device, 64, 2), rows, rows, 5), window(3, 1, 1, rows)
    Y, argmax = pool.max_pool2d_forward(X, w)
    return device.asnumpy(pool.max_pool2d_backward(Y, argmax, X.shape, w))


def _bias_grad(device: Backend) -> np.ndarray:
    return device.asnumpy(conv.bias_grad(normal(device, size(device, 1 << 20, 3000), 33)))


DETERMINISTIC: dict[str, Callable[[Backend], np.ndarray]] = {
    "col2im gather": lambda device: _col2im(device, "gather"),
    "max pool backward": _pool_backward,
    "bias gradient": _bias_grad,
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_same_bits_every_time(device: Backend, name: str) -> None:
    first = DETERMINISTIC[name](device)
    for _ in range(size(device, 20, 2)):
        assert same_bits(DETERMINISTIC[name](device), first)


def test_scatter_equals_gather(device: Backend) -> None:
    """Atomic additions come in any order: equal up to rounding, not in every bit."""
    gathered, scattered = _col2im(device, "gather"), _col2im(device, "scatter")
    np.testing.assert_allclose(scattered, gathered, rtol=1e-5, atol=1e-5)


def test_random_words_equal_the_hosts(device: Backend) -> None:
    n = size(device, 1_000_003, 1003)
    on_host = random.Generator(7).uniform(n, np.float64, np)
    on_device = random.Generator(7).uniform(n, np.float64, device.xp)
    assert same_bits(device.asnumpy(on_device), on_host)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(device: Backend, dtype: str) -> None:
    """Storage is rounded, arithmetic inside a kernel is float32."""
    kind = np.dtype(dtype if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    logits = normal(device, 33, 10, dtype=kind)
    exact = device.asnumpy(logits).astype(np.float64)
    expected = np.exp(exact - exact.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    Y = softmax.softmax_forward(logits)
    assert Y.dtype == kind
    step = 2.0**-11 if dtype == "float16" else 2.0**-8  # half a unit in the last place of 1
    np.testing.assert_allclose(
        device.asnumpy(Y).astype(np.float64), expected, rtol=2 * step, atol=2.0**-24
    )


# -------------------------------------------------------------------------- memory and streams


def _work(device: Backend, X: Any, W: Any) -> Any:
    w = window(3, 1, 1, X.shape[1])
    Z = conv.conv2d_forward(X, W, None, w)
    conv.conv2d_weight_grad(X, Z, w)
    return conv.conv2d_input_grad(Z, W, X.shape, w)


def test_memory_does_not_grow(device: Backend) -> None:
    memory = device.xp.get_default_memory_pool()
    rows = size(device, 56, 6)
    X, W = normal(device, size(device, 32, 2), rows, rows, 4), normal(device, 3, 3, 4, 8)
    _work(device, X, W)
    gc.collect()  # tracebacks of earlier tests may hold arrays
    used, total = memory.used_bytes(), memory.total_bytes()
    for _ in range(size(device, 50, 3)):
        _work(device, X, W)
    assert memory.used_bytes() == used
    assert memory.total_bytes() == total


def test_kernels_follow_the_current_stream(device: Backend) -> None:
    """On a stream of its own a kernel must not start before that stream's earlier work."""
    xp = device.xp
    rows = size(device, 512, 6)
    X = normal(device, 4, rows, rows, 3)
    w = window(2, 2, 0, rows)
    expected = device.asnumpy(pool.max_pool2d_forward(X * 2 + 1, w)[0])
    xp.cuda.Device().synchronize()
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        Z = X
        for _ in range(10):  # keep the stream busy, so that a launch elsewhere would be too early
            Z = (Z + 1) - 1
        Y = pool.max_pool2d_forward(X * 2 + 1, w)[0]
    stream.synchronize()
    assert same_bits(device.asnumpy(Y), expected)


@contextlib.contextmanager
def captured(xp: Any, work: Callable[[], Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(graph, stream, result) of `work` captured with memory of its own."""
    memory = xp.cuda.MemoryPool()  # lives as long as the graph, or its blocks would be reused
    stream = xp.cuda.Stream(non_blocking=True)
    with xp.cuda.using_allocator(memory.malloc), stream:
        work()  # compiles the kernels and fills the pool
        stream.synchronize()
        stream.begin_capture()
        try:
            result = work()
        finally:
            graph = stream.end_capture()
    yield graph, stream, result
    del memory


def test_kernels_are_captured_and_replayed(device: Backend) -> None:
    """im2col, pooling, activation and softmax in one graph; new input, same graph, new result."""
    xp, rows = device.xp, size(device, 28, 6)
    X = normal(device, 4, rows, rows, 2)
    labels = device.asarray(np.array([0, 1, 2, 0]))
    w, halves = window(3, 1, 1, rows), window(2, 2, 0, rows)

    def work() -> Any:
        columns = conv.im2col(X, w)
        back = conv.col2im(columns, X.shape, w)
        Y, argmax = pool.max_pool2d_forward(activation.bias_activation(back, None, ReLU()), halves)
        logits = Y.reshape(4, -1)[:, :3]
        _, probs = softmax.softmax_cross_entropy_forward(xp.ascontiguousarray(logits), labels)
        dlogits = softmax.softmax_cross_entropy_backward(probs, labels, 0.25)
        return probs, dlogits, pool.max_pool2d_backward(Y, argmax, X.shape, halves)

    eager = [device.asnumpy(a) for a in work()]
    with captured(xp, work) as (graph, stream, results):
        graph.launch(stream)
        stream.synchronize()
        assert all(same_bits(device.asnumpy(a), b) for a, b in zip(results, eager, strict=True))
        X[...] = normal(device, *X.shape, seed=9)
        xp.cuda.Device().synchronize()
        again = [device.asnumpy(a) for a in work()]
        graph.launch(stream)
        stream.synchronize()
        assert all(same_bits(device.asnumpy(a), b) for a, b in zip(results, again, strict=True))
        assert not same_bits(again[0], eager[0])


# ------------------------------------------------------------------------------ device alone


@pytest.fixture
def gpu() -> Iterator[Backend]:
    with switched_to("cupy") as chosen:
        yield chosen


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(table.KERNELS))
def test_every_instance_compiles_without_spilling(gpu: Backend, name: str) -> None:
    from gpulayers.cuda.compile import get_kernel
    from gpulayers.cuda.precision import capability

    spec = table.KERNELS[name]
    if not spec.runs_on(capability()):
        pytest.skip(f"needs compute capability {(spec.only or spec.oldest) / 10}")
    for dtype in spec.dtypes:
        for index in ("int32", "int64"):
            kernel: Any = get_kernel(name, dtype, index)
            assert kernel.max_threads_per_block >= spec.block, (dtype, index, kernel.num_regs)
            # NVRTC 13.0 keeps four words of one kernel outside registers, 13.5 none of any
            assert kernel.local_size_bytes <= 16, (dtype, index, "spilled registers")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(gpu: Backend) -> None:
    """64-bit indices are chosen where 32 bits do not reach."""
    xp = gpu.xp
    cols = (1 << 30) + 64
    free, _ = xp.cuda.Device().mem_info
    if free < 12 << 30:
        pytest.skip(f"needs 12 GiB of free device memory, there are {free >> 30}")
    X = xp.zeros((1, 2, cols, 1), xp.float16)
    X[0, 0, -1, 0], X[0, 1, -2, 0], X[0, 0, 5, 0] = 3, 4, 5
    Y, argmax = pool.max_pool2d_forward(X, Window((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)))
    assert (float(Y[0, 0, -1, 0]), int(argmax[0, 0, -1, 0])) == (4.0, 2)
    assert (float(Y[0, 0, 2, 0]), int(argmax[0, 0, 2, 0])) == (5.0, 1)
    assert float(Y.astype(xp.float32).sum()) == 9.0
    del X, Y, argmax
    xp.get_default_memory_pool().free_all_blocks()


@pytest.mark.gpu
def test_running_out_of_memory_is_survived(gpu: Backend) -> None:
    xp = gpu.xp
    _, total = xp.cuda.Device().mem_info
    with pytest.raises(xp.cuda.memory.OutOfMemoryError):
        xp.empty(total, xp.float32)  # four times what there is
    rows = 8
    X, W = normal(gpu, 2, rows, rows, 4), normal(gpu, 3, 3, 4, 8)
    assert np.isfinite(gpu.asnumpy(_work(gpu, X, W))).all()


@pytest.mark.gpu
def test_flushing_denormals_is_the_only_difference(gpu: Backend) -> None:
    """CuPy compiles kernels with -ftz=true: float32 denormals may become 0, nothing else."""
    tiny = np.finfo(np.float32).tiny
    Z = np.array([[tiny / 4, tiny, -tiny / 4, 1.0]], np.float32)
    Y = gpu.asnumpy(activation.bias_activation(gpu.asarray(Z), None, ReLU()))
    np.testing.assert_array_equal(Y[0, [1, 2, 3]], [tiny, 0, 1])
    assert Y[0, 0] in (0, tiny / 4)
