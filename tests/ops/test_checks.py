"""What every family refuses: wrong shapes, dtypes, things that are no arrays, mixed libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.ops import (
    Window,
    activation,
    conv,
    normalization,
    pool,
    recurrent,
    softmax,
    update,
)
from tests.ops.conftest import Engine

RELU = activations.ReLU()
WINDOW = Window((2, 2))
X_SHAPE = (2, 4, 5, 3)

# name: (operation, shapes of the floating arrays, how to call it with them)
CALLS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
    "im2col": ([X_SHAPE], lambda X: conv.im2col(X, WINDOW)),
    "col2im": ([(24, 12)], lambda C: conv.col2im(C, X_SHAPE, WINDOW)),
    "conv2d_forward": (
        [X_SHAPE, (2, 2, 3, 4), (4,)],
        lambda X, W, b: conv.conv2d_forward(X, W, b, WINDOW),
    ),
    "conv2d_input_grad": (
        [(2, 3, 4, 4), (2, 2, 3, 4)],
        lambda dZ, W: conv.conv2d_input_grad(dZ, W, X_SHAPE, WINDOW),
    ),
    "conv2d_weight_grad": (
        [X_SHAPE, (2, 3, 4, 4)],
        lambda X, dZ: conv.conv2d_weight_grad(X, dZ, WINDOW),
    ),
    "bias_grad": ([(2, 3)], conv.bias_grad),
    "max_pool2d_forward": ([X_SHAPE], lambda X: pool.max_pool2d_forward(X, WINDOW)),
    "avg_pool2d_forward": ([X_SHAPE], lambda X: pool.avg_pool2d_forward(X, WINDOW)),
    "avg_pool2d_backward": (
        [(2, 3, 4, 3)],
        lambda dY: pool.avg_pool2d_backward(dY, X_SHAPE, WINDOW),
    ),
    "bias_activation": ([(2, 3), (3,)], lambda Z, b: activation.bias_activation(Z, b, RELU)),
    "activation_backward": (
        [(2, 3), (2, 3)],
        lambda dY, Z: activation.activation_backward(dY, Z, RELU),
    ),
    "softmax_forward": ([(2, 3)], softmax.softmax_forward),
    "softmax_backward": ([(2, 3), (2, 3)], softmax.softmax_backward),
    "sgd_update": ([(2, 3)] * 3, lambda *a: update.sgd_update(*a, 0.1, 0.9)),
    "adagrad_update": ([(2, 3)] * 3, lambda *a: update.adagrad_update(*a, 0.1, 1e-7)),
    "rmsprop_update": ([(2, 3)] * 3, lambda *a: update.rmsprop_update(*a, 0.1, 0.9, 1e-7)),
    "adam_update": ([(2, 3)] * 4, lambda *a: update.adam_update(*a, 0.1, 0.9, 0.99, 1e-7, 1)),
    "rnn_step_forward": (
        [(2, 3), (2, 3), (3,), (3,)],
        lambda *a: recurrent.rnn_step_forward(*a, RELU),
    ),
    "rnn_step_backward": ([(2, 3)] * 3, lambda *a: recurrent.rnn_step_backward(*a, RELU)),
    "batchnorm_forward": (
        [(2, 3), (3,), (3,)],
        lambda *a: normalization.batchnorm_forward(*a, 1e-5),
    ),
    "batchnorm_backward": ([(2, 3), (2, 3), (3,), (3,)], normalization.batchnorm_backward),
}
operations = pytest.mark.parametrize("name", CALLS)


@operations
def test_the_call_itself_is_right(engine: Engine, name: str) -> None:
    shapes, call = CALLS[name]
    call(*(engine.array(np.ones(s)) for s in shapes))


@operations
@pytest.mark.parametrize("wrong", ["int64", "uint8", "bool", "complex128"])
def test_other_dtypes_are_refused(engine: Engine, name: str, wrong: str) -> None:
    shapes, call = CALLS[name]
    for position in range(len(shapes)):
        arrays = [engine.array(np.ones(s), "float64") for s in shapes]
        arrays[position] = engine.array(np.ones(shapes[position]), wrong)
        with pytest.raises(DTypeError, match=rf"{name}: \w+ .*({wrong}|float64)"):
            call(*arrays)


@operations
def test_mixed_float_dtypes_are_refused(engine: Engine, name: str) -> None:
    shapes, call = CALLS[name]
    for position in range(1, len(shapes)):
        arrays = [engine.array(np.ones(s), "float32") for s in shapes]
        arrays[position] = engine.array(np.ones(shapes[position]), "float64")
        with pytest.raises(DTypeError, match=rf"{name}: \w+ .*float64"):
            call(*arrays)


@operations
def test_one_axis_too_many_or_one_element_too_few(engine: Engine, name: str) -> None:
    shapes, call = CALLS[name]
    if name == "softmax_forward":
        pytest.skip("takes any shape")
    for position, shape in enumerate(shapes):
        wrongs = [(1, *shape, 2), (*shape[:-1], 1)]
        if name == "bias_grad":
            wrongs = [(3,), ()]
        elif name in ("im2col", "max_pool2d_forward", "avg_pool2d_forward"):
            wrongs = [(1, *shape), shape[1:], (2, 1, 5, 3)]
        elif name == "conv2d_weight_grad":  # any number of channels is right
            wrongs = [(1, *shape), shape[1:], (1, *shape[1:]), (2, 4, 4, 3)]
        for wrong in wrongs:
            arrays = [engine.array(np.ones(s)) for s in shapes]
            arrays[position] = engine.array(np.ones(wrong))
            with pytest.raises(ShapeError, match=rf"{name}: "):
                call(*arrays)


@operations
@pytest.mark.parametrize("thing", [[[1.0, 2.0]], 3.0, np.float64(3), "text"], ids=repr)
def test_things_that_are_no_arrays(engine: Engine, name: str, thing: Any) -> None:
    shapes, call = CALLS[name]
    for position in range(len(shapes)):
        arrays = [engine.array(np.ones(s)) for s in shapes]
        arrays[position] = thing
        kind = type(thing).__name__
        with pytest.raises(
            DTypeError, match=rf"{name}: \w+: expected a numpy or cupy array, got {kind}"
        ):
            call(*arrays)


@operations
def test_none_is_no_array(engine: Engine, name: str) -> None:
    shapes, call = CALLS[name]
    arrays = [engine.array(np.ones(s)) for s in shapes]
    with pytest.raises(DTypeError, match=rf"{name}: \w+: expected at least one array, got none"):
        call(None, *arrays[1:])


@operations
def test_mixed_libraries_are_refused(emulated: Any, name: str) -> None:
    shapes, call = CALLS[name]
    if len(shapes) < 2:
        pytest.skip("takes one array")
    for position in range(len(shapes)):
        arrays = [emulated.asarray(np.ones(s)) for s in shapes]
        arrays[position] = np.ones(shapes[position])
        with pytest.raises(BackendError, match=f"{name}: numpy and cupy arrays were mixed"):
            call(*arrays)


def test_labels_of_the_other_library(emulated: Any) -> None:
    logits = emulated.asarray(np.ones((2, 3)))
    with pytest.raises(BackendError, match="mixed"):
        softmax.softmax_cross_entropy_forward(logits, np.array([0, 1]))
    with pytest.raises(BackendError, match="mixed"):
        softmax.softmax_cross_entropy_backward(np.ones((2, 3)), emulated.asarray([0, 1]))


def test_argmax_of_the_other_library(emulated: Any) -> None:
    dY = emulated.asarray(np.ones((2, 3, 4, 3)))
    with pytest.raises(BackendError, match="mixed"):
        pool.max_pool2d_backward(dY, np.zeros(dY.shape, np.uint8), X_SHAPE, WINDOW)


# ------------------------------------------------------------------------- shapes beyond arrays


def test_wrong_target_shapes(engine: Engine) -> None:
    C, dZ, W = (engine.array(np.ones(s)) for s in [(24, 12), (2, 3, 4, 4), (2, 2, 3, 4)])
    with pytest.raises(ShapeError, match=r"col2im: x_shape must be \(n, rows, cols, ch\), got"):
        conv.col2im(C, (2, 4, 5), WINDOW)  # type: ignore[arg-type]
    with pytest.raises(
        ShapeError, match=r"col2im: columns must have shape \(24, 8\), got \(24, 12"
    ):
        conv.col2im(C, (2, 4, 5, 2), WINDOW)
    with pytest.raises(ShapeError, match=r"dZ must have shape \(2, 4, 4, 4\), got \(2, 3, 4, 4\)"):
        conv.conv2d_input_grad(dZ, W, (2, 5, 5, 3), WINDOW)
    with pytest.raises(ShapeError, match=r"W must have shape \(2, 2, 7, 4\), got \(2, 2, 3, 4\)"):
        conv.conv2d_input_grad(dZ, W, (2, 4, 5, 7), WINDOW)
    with pytest.raises(ShapeError, match="avg_pool2d_backward: x_shape must be"):
        pool.avg_pool2d_backward(dZ, (2, 4, 5), WINDOW)  # type: ignore[arg-type]


def test_col2im_modes(engine: Engine) -> None:
    with pytest.raises(ParameterError, match="mode must be 'gather' or 'scatter', got 'atomic'"):
        conv.col2im(engine.array(np.ones((24, 12))), X_SHAPE, WINDOW, "atomic")


def test_a_kernel_that_does_not_fit_names_the_operation(engine: Engine) -> None:
    X = engine.array(np.ones((1, 2, 9, 1)))
    with pytest.raises(ShapeError, match="conv2d_forward: the kernel spans 3 x 3 pixels, but"):
        conv.conv2d_forward(X, engine.array(np.ones((3, 3, 1, 1))), None, Window((3, 3)))
    for function, name in [
        (conv.im2col, "im2col"),
        (pool.max_pool2d_forward, "max_pool2d_forward"),
        (pool.avg_pool2d_forward, "avg_pool2d_forward"),
    ]:
        with pytest.raises(ShapeError, match=f"{name}: the kernel spans 3 x 3 pixels, but"):
            function(X, Window((3, 3)))


def test_argmax_of_the_wrong_dtype_or_shape(engine: Engine) -> None:
    dY = engine.array(np.ones((2, 3, 4, 3)))
    with pytest.raises(DTypeError, match="max_pool2d_backward: argmax must be uint8, got int64"):
        pool.max_pool2d_backward(dY, engine.array(np.zeros(dY.shape), "int64"), X_SHAPE, WINDOW)
    with pytest.raises(ShapeError, match="max_pool2d_backward: argmax must have shape"):
        pool.max_pool2d_backward(dY, engine.array(np.zeros((1, 3, 4, 3)), "uint8"), X_SHAPE, WINDOW)
