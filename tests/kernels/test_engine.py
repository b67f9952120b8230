"""The launchers: the CUDA engine against the reference, on the CuPy stand-in and on CuPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.errors import BackendError
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window
from tests.conftest import Backend
from tests.support.compare import assert_close, assert_same_bits

REFERENCE = Reference()


def numbers(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def both(device: Backend, operation: str, *args: Any, factor: float = 1.0) -> Any:
    """Run an operation by the engine and by the reference on NumPy; compare; give the engine's."""

    def put(a: Any) -> Any:
        return device.asarray(a.copy()) if isinstance(a, np.ndarray) else a

    on_device = [put(a) for a in args]
    engine = kernels_for(*[a for a in on_device if isinstance(a, device.xp.ndarray)])
    assert type(engine).__name__ in ("Cuda", "Cublas")
    # half precision: the reference in float32, since the kernels sum in it
    wide = [
        a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float16 else a
        for a in args
    ]
    got = getattr(engine, operation)(*on_device)
    want = getattr(REFERENCE, operation)(*wide)
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for g, w in pairs:
        if w.dtype.kind == "f":
            assert g.dtype == args[0].dtype
            assert_close(g, w, factor=factor)
        else:
            assert_same_bits(g, w)
    return got


DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
#: more than one block, vector loads for float32 only when channels divide by 4
WINDOW = Window((3, 2), (2, 1), (1, 0, 1, 2), (1, 2))
POINT = Window((1, 1))


# ------------------------------------------------------------------------------------ convolution


@DTYPES
@pytest.mark.parametrize("window", [WINDOW, POINT], ids=["window", "pointwise"])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("n", [2, 0])
def test_convolution(device: Backend, dtype: str, window: Window, channels: int, n: int) -> None:
    x = numbers(n, 7, 6, channels, dtype=dtype)
    w = numbers(*window.kernel, channels, 5, dtype=dtype)
    b = numbers(5, dtype=dtype)
    dz = numbers(n, *window.output_size(7, 6), 5, dtype=dtype)
    both(device, "conv2d_forward", x, w, b, window, factor=3)
    both(device, "conv2d_forward", x, w, None, window, factor=3)
    both(device, "conv2d_input_grad", dz, w, x.shape, window, factor=3)
    both(device, "conv2d_weight_grad", x, dz, window, factor=3)


@DTYPES
@pytest.mark.parametrize("mode", ["gather", "scatter"])
def test_col2im_modes(device: Backend, dtype: str, mode: str) -> None:
    columns = numbers(2 * math.prod(WINDOW.output_size(7, 6)), 6 * 4, dtype=dtype)
    both(device, "col2im", columns, (2, 7, 6, 4), WINDOW, mode)


def test_arrays_that_do_not_align_take_scalar_loads(device: Backend) -> None:
    x = numbers(1, 4, 4, 4)
    whole = device.asarray(np.concatenate([numbers(1), x.ravel()]))
    shifted = whole[1:].reshape(x.shape)  # contiguous, 4 bytes past a 16-byte boundary
    window = Window((2, 2))
    got = kernels_for(shifted).im2col(shifted, window)
    assert_close(got, REFERENCE.im2col(x, window))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (300, 6), (40, 33), (5000, 3), (2, 9, 7, 35)])
@DTYPES
def test_bias_gradient(device: Backend, shape: tuple[int, ...], dtype: str) -> None:
    dz = numbers(*shape, dtype=dtype)
    got = kernels_for(device.asarray(dz)).bias_grad(device.asarray(dz))
    want = dz.astype(np.float64).reshape(-1, shape[-1]).sum(axis=0)
    assert got.dtype == dtype
    assert_close(got, want)


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 4, 2), (3, 0)])
def test_bias_gradient_of_nothing(device: Backend, shape: tuple[int, ...]) -> None:
    dz = device.asarray(np.empty(shape, np.float32))
    assert_close(kernels_for(dz).bias_grad(dz), np.zeros(shape[-1]))


# ----------------------------------------------------------------------------------------- pooling


@DTYPES
@pytest.mark.parametrize("n", [3, 0])
def test_pooling(device: Backend, dtype: str, n: int) -> None:
    x = np.round(numbers(n, 9, 8, 5, dtype=dtype))
    window = Window((3, 2), (2, 1), (1, 1, 1, 0))
    y, argmax = both(device, "max_pool2d_forward", x, window)
    assert argmax.dtype == np.uint8
    dy = numbers(*y.shape, dtype=dtype)
    both(device, "max_pool2d_backward", dy, device.asnumpy(argmax), x.shape, window)
    both(device, "avg_pool2d_forward", x, window)
    both(device, "avg_pool2d_backward", dy, x.shape, window)


@pytest.mark.parametrize("kernel", [(16, 16), (16, 17)])
def test_pooling_beyond_256_taps(device: Backend, kernel: tuple[int, int]) -> None:
    """One byte names the winner up to there; the winners here are the last taps."""
    x = np.arange(18 * 18 * 2, dtype=np.float32).reshape(1, 18, 18, 2)
    window = Window(kernel)
    y, argmax = both(device, "max_pool2d_forward", x, window)
    assert argmax.dtype == (np.uint8 if window.taps == 256 else np.int32)
    dy = numbers(*y.shape)
    both(device, "max_pool2d_backward", dy, device.asnumpy(argmax), x.shape, window)


# ------------------------------------------------------------------------ activations and softmax

ACTIVATIONS = [
    activations.Identity(),
    activations.Sigmoid(),
    activations.ReLU(),
    activations.LeakyReLU(0.1),
    activations.GELU(),
    activations.GELU(approximate=False),
    activations.Tanh(),
    activations.Affine(2.0, -1.0),
    activations.ELU(0.7),
    activations.Exponential(),
    activations.SELU(),
    activations.HardSigmoid(),
    activations.SoftPlus(),
]


class Cube(activations.ActivationBase):
    """A user's own activation: there is no CUDA code for it."""

    def fn(self, z: Any) -> Any:
        return z * z * z

    def grad(self, x: Any) -> Any:
        return 3 * x * x


@DTYPES
@pytest.mark.parametrize("act", [*ACTIVATIONS, Cube()], ids=str)
def test_activation(device: Backend, act: Any, dtype: str) -> None:
    z, b = numbers(30, 11, dtype=dtype), numbers(11, dtype=dtype, seed=1)
    dy = numbers(30, 11, dtype=dtype, seed=2)
    on_device, bias = device.asarray(z.copy()), device.asarray(b)
    y = kernels_for(on_device).bias_activation(on_device, bias, act)
    summed = (z.astype("f8") + b).astype(dtype)
    assert_close(on_device, summed)
    assert (y is on_device) == isinstance(act, activations.Identity)
    assert_close(y, act.fn(summed.astype("f8")), factor=3)
    both(device, "bias_activation", z, None, act, factor=3)
    both(device, "activation_backward", dy, z, act, factor=3)
    both(device, "bias_activation", z[:0], b, act)


@DTYPES
@pytest.mark.parametrize("act", [activations.Tanh(), activations.ReLU(), Cube()], ids=str)
def test_recurrent_step(device: Backend, act: Any, dtype: str) -> None:
    projected, recurrent, da, accumulator = (numbers(9, 33, dtype=dtype, seed=s) for s in range(4))
    ba, bx = numbers(33, dtype=dtype, seed=5), numbers(33, dtype=dtype, seed=6)
    z, _ = both(device, "rnn_step_forward", projected, recurrent, ba, bx, act, None, factor=3)
    z = device.asnumpy(z)
    both(device, "rnn_step_backward", da, accumulator, z, act, None, factor=3)
    both(device, "rnn_step_backward", da, None, z, act, None, factor=3)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (9, 10), (5, 33), (3, 1100), (0, 4)])
def test_softmax(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    z, dy = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    if not z.size:
        z_device = device.asarray(z)
        assert kernels_for(z_device).softmax_forward(z_device).shape == shape
        return
    y = device.asnumpy(both(device, "softmax_forward", z))
    both(device, "softmax_backward", dy, y)
    for kind in ("int32", "int64", "uint8"):
        labels = (np.arange(shape[0]) % shape[1]).astype(kind)
        both(device, "softmax_cross_entropy_forward", z, labels, factor=2)
        both(device, "softmax_cross_entropy_backward", y, labels, 0.5)


def test_a_bad_label_gives_nan_and_spares_the_others(device: Backend) -> None:
    z, labels = device.asarray(numbers(4, 3)), device.asarray(np.array([0, 3, -1, 2]))
    losses, probs = kernels_for(z).softmax_cross_entropy_forward(z, labels)
    np.testing.assert_array_equal(np.isnan(device.asnumpy(losses)), [False, True, True, False])
    assert np.isfinite(device.asnumpy(probs)).all()


# ---------------------------------------------------------------------------------- random, updates


@pytest.mark.parametrize("n", [0, 1, 4, 1030])
@pytest.mark.parametrize("counter", [0, 2**64 - 3, 2**100 + 5])
def test_random_words(device: Backend, n: int, counter: int) -> None:
    from gpulayers.ops import random

    got = random.words(device.xp, (3, 2**64 - 1), counter, n)
    assert got.dtype == np.uint64
    assert device.asnumpy(got).tolist() == random.words(np, (3, 2**64 - 1), counter, n).tolist()


@DTYPES
@pytest.mark.parametrize("shape", [(), (5,), (7, 41), (0, 3)])
def test_updates_are_in_place(device: Backend, shape: tuple[int, ...], dtype: str) -> None:
    rules = {
        "sgd_update": (1, (0.1, 0.9)),
        "adagrad_update": (1, (0.1, 1e-3)),
        "rmsprop_update": (1, (0.1, 0.9, 1e-3)),
        "adam_update": (2, (0.1, 0.9, 0.99, 1e-3, 3)),
    }
    for rule, (states, constants) in rules.items():
        host = [numbers(*shape, dtype=dtype, seed=s) for s in range(2)]
        host += [np.abs(numbers(*shape, dtype=dtype, seed=s + 2)) for s in range(states)]
        wide = [np.array(a, dtype="f8") for a in host]
        arrays = [device.asarray(np.asarray(a)) for a in host]
        getattr(kernels_for(*arrays), rule)(*arrays, *constants)
        getattr(REFERENCE, rule)(*wide, *constants)
        for array, want in zip(arrays, wide, strict=True):
            assert_close(array, want)


# ------------------------------------------------------------------------- which kernel is launched


def launched(events: Any) -> set[str]:
    return {event.removeprefix("kernel:") for event in events if event.startswith("kernel:")}


def test_long_rows_get_a_block_each(emulated: Backend) -> None:
    short, long = (emulated.asarray(numbers(2, n)) for n in (1023, 1024))
    with emulated.count() as events:
        kernels_for(short).softmax_forward(short)
    assert launched(events) == {"softmax_forward<float, float, int, 32>"}
    with emulated.count() as events:
        kernels_for(long).softmax_forward(long)
    assert launched(events) == {"softmax_forward<float, float, int, 256>"}


def test_identity_launches_nothing(emulated: Backend) -> None:
    z, dy = emulated.asarray(numbers(3, 4)), emulated.asarray(numbers(3, 4))
    with emulated.count() as events:
        assert kernels_for(z).bias_activation(z, None, activations.Identity()) is z
        assert kernels_for(z).activation_backward(dy, z, activations.Identity()) is dy
    assert not launched(events)


def test_64_bit_indices_once_any_array_needs_them(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 100 elements: input above it and output below, and the other way round."""
    x = emulated.asarray(numbers(1, 9, 9, 2))  # 162 elements
    small = emulated.asarray(numbers(1, 6, 6, 2))  # 72
    engine, gaps, dense = kernels_for(x), Window((2, 1), (4, 4)), Window((3, 3), pad=(1, 1, 1, 1))
    from gpulayers.cuda import table

    monkeypatch.setattr(table, "INT32_LIMIT", 100)
    act = activations.Tanh()
    z, b = emulated.asarray(numbers(10, 12)), emulated.asarray(numbers(12))
    labels = emulated.asarray(np.zeros(10, np.int64))
    with emulated.count() as events:
        engine.im2col(x, gaps)
        columns = engine.im2col(small, dense)
        engine.col2im(columns, small.shape, dense)
        engine.col2im(columns, small.shape, dense, "scatter")
        engine.col2im(engine.im2col(x, gaps), x.shape, gaps)
        y, argmax = engine.max_pool2d_forward(x, gaps)
        engine.max_pool2d_backward(y, argmax, x.shape, gaps)
        engine.avg_pool2d_forward(x, gaps)
        engine.avg_pool2d_backward(y, x.shape, gaps)
        wide = Window((1, 1), pad=(1, 1, 1, 1))  # 128 outputs
        y, argmax = engine.max_pool2d_forward(small, wide)
        engine.max_pool2d_backward(y, argmax, small.shape, wide)
        engine.avg_pool2d_backward(engine.avg_pool2d_forward(small, wide), small.shape, wide)
        engine.bias_activation(z, b, act)
        engine.bias_activation(z, None, act)
        engine.bias_activation(z, b, activations.Identity())
        engine.activation_backward(z, z.copy(), act)
        engine.rnn_step_backward(z, z.copy(), z.copy(), act, None)
        engine.rnn_step_forward(z, z.copy(), b, b.copy(), act, None)
        engine.softmax_backward(z, engine.softmax_forward(z))
        probs = engine.softmax_cross_entropy_forward(z, labels)[1]
        engine.softmax_cross_entropy_backward(probs, labels, 1.0)
        engine.sgd_update(z, z.copy(), z.copy(), 0.1, 0.9)
        engine.bias_grad(emulated.asarray(numbers(8, 2)))  # its threads count beyond the limit
        engine.philox_words(emulated.xp, (1, 2), 0, 101)
    for name in launched(events):
        assert "long long" in name, name


# ------------------------------------------------------------------------------------- bad launches


def test_arrays_that_are_not_contiguous_are_refused(device: Backend) -> None:
    z = device.asarray(numbers(4, 6)).T
    with pytest.raises(BackendError, match=r"kernel softmax_forward: expected C-contiguous CuPy"):
        kernels_for(z).softmax_forward(z)


def test_a_compile_failure_names_the_kernel(
    device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulayers.cuda import compile as compiler

    def broken(file: str) -> str:
        return "template <typename T, typename Acc, typename Index>\n__global__ void bias_add( {"

    monkeypatch.setattr(compiler, "_kernels", {})
    monkeypatch.setattr(compiler, "load_source", broken)
    with pytest.raises(BackendError, match=r"bias_add<float, float, int> \(activation.cu\)"):
        compiler.get_kernel("bias_add", "float32")


def test_a_kernel_is_compiled_once(device: Backend) -> None:
    from gpulayers.cuda.compile import get_kernel

    assert get_kernel("bias_add", "float32") is get_kernel("bias_add", "float32")
    assert get_kernel("bias_add", "float32") is not get_kernel("bias_add", "float32", "int64")


def test_an_activation_without_cuda_code_is_named(device: Backend) -> None:
    class Strange(Cube):
        @property
        def kernel(self) -> tuple[str, float, float]:
            return ("sigmoidd", 0.0, 0.0)

    z = device.asarray(numbers(2, 2))
    with pytest.raises(BackendError, match=r"no CUDA code for the activation 'sigmoidd'.*sigmoid"):
        kernels_for(z).bias_activation(z, None, Strange())
