"""Convolution, its gradients, im2col and col2im against loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from gpulayers.ops import Window, conv
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import conv as naive


@dataclass(frozen=True, eq=False)
class Case:
    """A geometry; `spacing` is the distance between taps. Gold values are computed once."""

    name: str
    x_shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    out_ch: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    spacing: tuple[int, int] = (1, 1)

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride, self.pad, self.spacing)

    @property
    def geometry(self):
        return self.stride, self.pad, self.spacing

    @cached_property
    def X(self):
        return eighths(self.x_shape, 1)

    @cached_property
    def W(self):
        return eighths((*self.kernel, self.x_shape[3], self.out_ch), 2, spread=8)

    @cached_property
    def b(self):
        return eighths((self.out_ch,), 3)

    @cached_property
    def Z(self):
        return naive.conv2d(self.X, self.W, self.b, *self.geometry)

    @cached_property
    def dZ(self):
        return eighths(self.Z.shape, 4, spread=8)

    @cached_property
    def dX(self):
        return naive.conv2d_input_grad(self.dZ, self.W, self.x_shape, *self.geometry)

    @cached_property
    def dW(self):
        return naive.conv2d_weight_grad(self.X, self.dZ, self.kernel, *self.geometry)

    @cached_property
    def columns(self):
        return naive.im2col(self.X, self.kernel, *self.geometry)

    @cached_property
    def dcolumns(self):
        return eighths(self.columns.shape, 5)

    @cached_property
    def gathered(self):
        return naive.col2im(self.dcolumns, self.x_shape, self.kernel, *self.geometry)


CASES = [
    Case("plain", (2, 5, 6, 3), (3, 3), 4),
    Case("pointwise", (2, 3, 5, 3), (1, 1), 2),
    Case("pointwise-strided", (2, 5, 4, 2), (1, 1), 3, stride=(2, 3)),
    Case("odd-everything", (3, 7, 5, 1), (2, 3), 5, (2, 1), (1, 0, 2, 1), (2, 1)),
    Case("stride-beyond-kernel", (1, 8, 7, 2), (2, 2), 3, stride=(3, 4)),
    Case("pad-beyond-kernel", (1, 3, 4, 2), (2, 2), 3, pad=(3, 3, 3, 3)),
    Case("dilated", (2, 9, 7, 2), (3, 2), 2, spacing=(3, 4), pad=(0, 2, 1, 0)),
    Case("whole-image", (2, 4, 3, 5), (4, 3), 7),
    Case("one-row", (2, 1, 9, 3), (1, 4), 2, stride=(1, 2), pad=(0, 0, 3, 0), spacing=(1, 2)),
    Case("one-pixel", (1, 1, 1, 1), (1, 1), 1),
    Case("wide-channels", (1, 3, 3, 33), (2, 2), 19),
    Case("last-pixels-unseen", (2, 6, 6, 2), (3, 3), 2, stride=(2, 2)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
def test_im2col(case: Case, engine: Engine, dtype: str) -> None:
    columns = engine.call(conv.im2col, engine.array(case.X, dtype), case.window)
    assert_same_bits(columns, case.columns.astype(dtype))


@cases
@pytest.mark.parametrize("mode", ["gather", "scatter"])
def test_col2im(case: Case, engine: Engine, dtype: str, mode: str) -> None:
    X = engine.call(
        conv.col2im, engine.array(case.dcolumns, dtype), case.x_shape, case.window, mode
    )
    assert X.dtype == dtype
    assert_close(X, case.gathered)


@cases
def test_col2im_is_the_adjoint_of_im2col(case: Case, engine: Engine) -> None:
    X, C = engine.array(case.X), engine.array(case.dcolumns)
    left = np.vdot(host(conv.im2col(X, case.window)), case.dcolumns)
    right = np.vdot(case.X, host(conv.col2im(C, case.x_shape, case.window)))
    assert left == pytest.approx(right, rel=1e-12)


@cases
@pytest.mark.parametrize("with_bias", [True, False])
def test_forward(case: Case, engine: Engine, dtype: str, with_bias: bool) -> None:
    X, W, b = (engine.array(a, dtype) for a in (case.X, case.W, case.b))
    Z = engine.call(conv.conv2d_forward, X, W, b if with_bias else None, case.window)
    assert Z.dtype == dtype
    assert_close(Z, case.Z if with_bias else case.Z - case.b)


@cases
def test_input_grad(case: Case, engine: Engine, dtype: str) -> None:
    dZ, W = engine.array(case.dZ, dtype), engine.array(case.W, dtype)
    dX = engine.call(conv.conv2d_input_grad, dZ, W, case.x_shape, case.window)
    assert dX.dtype == dtype
    assert_close(dX, case.dX)


@cases
def test_weight_grad(case: Case, engine: Engine, dtype: str) -> None:
    X, dZ = engine.array(case.X, dtype), engine.array(case.dZ, dtype)
    dW = engine.call(conv.conv2d_weight_grad, X, dZ, case.window)
    assert dW.dtype == dtype
    assert_close(dW, case.dW)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (2, 3, 5), (2, 3, 4, 33), (0, 4), (0, 2, 2, 3)])
def test_bias_grad(engine: Engine, dtype: str, shape: tuple[int, ...]) -> None:
    dZ = eighths(shape, 6)
    db = engine.call(conv.bias_grad, engine.array(dZ, dtype))
    assert db.dtype == dtype
    assert_close(db, naive.bias_grad(dZ))


# ------------------------------------------------------------------------------ memory layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    case = CASES[3]
    X, W, dZ, C = (engine.array(a) for a in (case.X, case.W, case.dZ, case.dcolumns))
    x, w, dz, c = (scrambled(a, layout) for a in (X, W, dZ, C))
    calls = [
        (conv.im2col, (X, case.window), (x, case.window)),
        (conv.col2im, (C, case.x_shape, case.window), (c, case.x_shape, case.window)),
        (conv.conv2d_forward, (X, W, None, case.window), (x, w, None, case.window)),
        (
            conv.conv2d_input_grad,
            (dZ, W, case.x_shape, case.window),
            (dz, w, case.x_shape, case.window),
        ),
        (conv.conv2d_weight_grad, (X, dZ, case.window), (x, dz, case.window)),
        (conv.bias_grad, (dZ,), (dz,)),
    ]
    for function, contiguous, other in calls:
        assert_same_bits(engine.call(function, *other), function(*contiguous))


def test_a_strided_bias(engine: Engine) -> None:
    case = CASES[0]
    X, W, b = (engine.array(a) for a in (case.X, case.W, case.b))
    Z = engine.call(conv.conv2d_forward, X, W, scrambled(b, "strided"), case.window)
    assert_close(Z, case.Z)


# --------------------------------------------------------------------------------- empty batch


def test_an_empty_batch_gives_empty_images_and_zero_gradients(engine: Engine, dtype: str) -> None:
    window = Window((2, 2), pad=(1, 0, 0, 1))
    X, W = (
        engine.array(np.zeros((0, 4, 5, 2)), dtype),
        engine.array(eighths((2, 2, 2, 3), 1), dtype),
    )
    dZ = engine.array(np.zeros((0, 4, 5, 3)), dtype)
    assert conv.im2col(X, window).shape == (0, 8)
    assert conv.col2im(engine.array(np.zeros((0, 8)), dtype), X.shape, window).shape == X.shape
    assert conv.conv2d_forward(X, W, None, window).shape == dZ.shape
    assert conv.conv2d_input_grad(dZ, W, X.shape, window).shape == X.shape
    dW = conv.conv2d_weight_grad(X, dZ, window)
    assert_same_bits(dW, np.zeros((2, 2, 2, 3), dtype))


def test_nan_and_infinity_reach_only_the_pixels_that_see_them(engine: Engine) -> None:
    X, W, window = np.ones((1, 4, 4, 1)), engine.array(np.ones((2, 2, 1, 1))), Window((2, 2))
    X[0, 0, 0, 0], X[0, 3, 3, 0] = np.nan, np.inf
    gold = np.full((1, 3, 3, 1), 4.0)
    gold[0, 0, 0, 0], gold[0, 2, 2, 0] = np.nan, np.inf
    assert_same_bits(conv.conv2d_forward(engine.array(X), W, None, window), gold)

    dZ = np.zeros((1, 3, 3, 1))
    dZ[0, 0, 0, 0], dZ[0, 2, 2, 0] = np.nan, np.inf
    gold = np.zeros((1, 4, 4, 1))
    gold[0, :2, :2, 0], gold[0, 2:, 2:, 0] = np.nan, np.inf
    dX = conv.conv2d_input_grad(engine.array(dZ), W, (1, 4, 4, 1), window)
    assert_same_bits(dX, gold)
