"""Convolution on a GPU without a matrix of windows: the products read the image itself.

Source: Chetlur et al., "cuDNN: Efficient primitives for deep learning" (2014), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.columns import CudaColumns
from gpulayers.cuda.compile import launch
from gpulayers.cuda.fusible import RELU, Formula, constants
from gpulayers.cuda.geometry import window_arguments
from gpulayers.cuda.product import (
    add_up,
    aligned,
    candidates,
    come_in_runs,
    named_precision,
    partial_sums,
)
from gpulayers.cuda.table_tiles import REACH
from gpulayers.cuda.tune import Candidate, Key, choose
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window

#: the pooling that a convolution takes along: 2 x 2, stride 2, no padding
POOLING = Window((2, 2), (2, 2))

#: whether a plan's convolutions are compiled for their shape, which takes a third of a second each
#: where the kernel cache has them not yet
SPECIALISED = True


def constants_of(
    numbers: Sequence[int], filters: int, pooled: bool, depth: int | None = None
) -> str:
    """The parameters of the kernels that stay, as `compile.get_kernel` takes them: the numbers of
    `window_arguments`, how many filters there are, and the channels of these, if not those of the
    image."""
    window = dict(zip(table.WINDOW_NAMES, numbers, strict=True))
    depth = window["channels"] if depth is None else depth
    known = (*window.items(), ("filters", filters), ("pooled", int(pooled)), ("depth", depth))
    return ",".join(f"{name}={value}" for name, value in known)


def serves(dtype: object, x_shape: Shape4, window: Window, filters: int) -> bool:
    """Whether the kernels take such a convolution; else it goes by im2col and a product."""
    n, rows, cols, channels = x_shape
    lines = (n * rows * cols, n * math.prod(window.output_size(rows, cols)))
    terms = window.taps * max(channels, filters) + 1
    fits = max(*lines, terms) <= table.INT32_LIMIT
    fits = fits and max(channels, filters) <= REACH
    return fits and str(dtype) in table.KERNELS["conv2d_forward"].dtypes


def conv_key(
    op: str, dtype: Any, x_shape: Shape4, filters: int, window: Window, *flags: bool
) -> Key:
    """What a kernel is chosen by; the last flag is `special`."""
    shape = (*x_shape, filters)
    detail = (*window.kernel, *window.stride, *window.pad, *window.dilation)
    numbers = (int(flag) for flag in (*flags[:-1], flags[-1] and SPECIALISED))
    return Key(op, shape, dtype.name, (*detail, *numbers), named_precision(dtype))


def forward_choice(
    x_shape: Shape4, filters: int, window: Window, pooled: bool, special: bool, dtype: Any
) -> Candidate:
    """The kernel of `forward`."""
    n, rows, cols, channels = x_shape
    out = window.output_size(rows, cols)
    pixels = n * (4 * (out[0] // 2) * (out[1] // 2) if pooled else math.prod(out))
    return choose(
        conv_key("conv2d_forward", dtype, x_shape, filters, window, pooled, special),
        lambda: candidates(
            *("conv2d_forward", dtype, pixels, filters, window.taps * channels, False),
            come_in_runs(dtype, channels, filters),
        ),
    )


def forward(
    X: Array,
    W: Array,
    b: Array | None,
    window: Window,
    act: Formula | None,
    pooled: bool = False,
    special: bool = False,
) -> tuple[Array, Array]:
    """Return (Z, winners) of a convolution with bias and the activation `act`, if there is one.

    With `pooled`, Z is the maximum over the windows of `POOLING` and winners (uint8, of its shape)
    the place in the window that gave it, 2 i + j; 4 where ReLU left zero. Else winners is empty.
    Then the activation must be one that is told by its value.
    `special`: by a kernel compiled for this shape, if `SPECIALISED`. X may have more channels than
    W, which are zeros.
    """
    n, rows, cols, _ = X.shape
    depth, filters = W.shape[2:]
    out = window.output_size(rows, cols)
    pixels = n * math.prod(out)
    if pooled:
        out = (out[0] // 2, out[1] // 2)
        pixels = 4 * n * math.prod(out)
    Z = cupy.empty((n, *out, filters), dtype=X.dtype)
    winners = cupy.empty(Z.shape if pooled else 0, dtype=cupy.uint8)
    if Z.size:
        none = cupy.empty(0, dtype=X.dtype)
        choice = forward_choice(X.shape, filters, window, pooled, special, X.dtype)
        X, W = aligned(choice, X, W)
        numbers = window_arguments(X.shape, window)
        args = (
            *(X, W, none if b is None else b, Z, winners, pixels, filters),
            *(b is not None, act is not None, pooled, depth, *numbers),
        )
        grid = (-(-pixels // choice.rows), -(-filters // choice.cols))
        known = ""
        if special and SPECIALISED:
            known = constants_of(numbers, filters, pooled, depth)
        launch(choice.kernel, X.dtype, grid, args, "int32", constants(act, known))
    return Z, winners


def input_grad(dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
    """Return dX."""
    dX = cupy.empty(x_shape, dtype=dZ.dtype)
    if dX.size:
        pixels, channels, filters = math.prod(x_shape[:3]), x_shape[3], W.shape[3]
        choice = choose(
            conv_key("conv2d_input_grad", dZ.dtype, x_shape, filters, window, False, False),
            lambda: candidates(
                *("conv2d_input_grad", dZ.dtype, pixels, channels, window.taps * filters, False),
                come_in_runs(dZ.dtype, channels, filters),
            ),
        )
        args = (*aligned(choice, dZ, W), dX, pixels, filters, *window_arguments(x_shape, window))
        grid = (-(-pixels // choice.rows), -(-channels // choice.cols))
        launch(choice.kernel, dZ.dtype, grid, args, "int32")
    return dX


def weight_grad(X: Array, dZ: Array, window: Window, bias: bool) -> Array:
    """Return dW as (taps * channels, filters), with `bias` the bias's gradient as one row more."""
    filters = dZ.shape[3]
    rows, pixels = window.taps * X.shape[3] + bias, math.prod(dZ.shape[:3])
    whole = cupy.empty((rows, filters), dtype=X.dtype)
    if not whole.size:
        return whole
    choice = choose(
        conv_key("conv2d_weight_grad", X.dtype, X.shape, filters, window, bias, False, False),
        lambda: candidates(
            *("conv2d_weight_grad", X.dtype, rows, filters, pixels, True),
            come_in_runs(X.dtype, X.shape[3], filters),
        ),
    )
    partial = partial_sums(choice.parts, rows, filters, X)
    numbers = (pixels, filters, choice.span, bias, *window_arguments(X.shape, window))
    args = (*aligned(choice, X, dZ), whole, partial, *numbers)
    grid = (-(-rows // choice.rows), -(-filters // choice.cols), choice.parts)
    launch(choice.kernel, X.dtype, grid, args, "int32")
    if choice.parts > 1:
        add_up(partial, whole)
    return whole


class CudaConv(CudaColumns):
    """The products, which read the images themselves; what is too large for them goes by im2col."""

    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        if not serves(X.dtype, X.shape, window, W.shape[3]):
            return super().conv2d_forward(X, W, b, window)
        return forward(X, W, b, window, act=None)[0]

    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array:
        if not serves(dZ.dtype, x_shape, window, W.shape[3]):
            return super().conv2d_input_grad(dZ, W, x_shape, window)
        return input_grad(dZ, W, x_shape, window)

    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array:
        if not serves(X.dtype, X.shape, window, dZ.shape[3]):
            return super().conv2d_weight_grad(X, dZ, window)
        return weight_grad(X, dZ, window, bias=False).reshape(*window.kernel, X.shape[3], -1)

    def conv2d_relu_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        if not serves(X.dtype, X.shape, window, W.shape[3]):
            return super().conv2d_relu_forward(X, W, b, window)
        return forward(X, W, b, window, act=RELU)[0]

    def conv2d_param_grads(self, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
        if not serves(X.dtype, X.shape, window, dZ.shape[3]):
            return super().conv2d_param_grads(X, dZ, window)
        grads = weight_grad(X, dZ, window, bias=True)
        return grads[:-1].reshape(*window.kernel, X.shape[3], -1), grads[-1]
