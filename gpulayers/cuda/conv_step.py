"""Convolutions of a planned step with what stands beside them: forward with the moments that a
normalisation behind it needs, back in one launch with the sums for a normalisation before it, and
on tensor cores one more for the gradient before a pooling."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import conv, precision, table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.fusible import Formula, constants
from gpulayers.cuda.geometry import window_arguments
from gpulayers.cuda.norm import Moments, Normed, image_of
from gpulayers.cuda.product import aligned, candidates, come_in_runs, tile_of_both
from gpulayers.cuda.tune import Candidate, choose
from gpulayers.ops._protocol import Shape4
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.window import Window

__all__ = [
    "Before",
    "backward",
    "backward_choice",
    "counters",
    "forward",
    "pad",
    "padded_channels",
    "parts_before",
    "unpool",
    "unpools",
]

# parts that sums over pixels come in at most: so many numbers whoever needs the sums adds up
_PARTS = 128
_LEAST_COLS = 16  # of a tile


class Before(NamedTuple):
    """The normalisation that made a convolution's input: what `norm.forward` saved, the layer's
    parameters, and where the sums go, as `norm.backward` wants them."""

    saved: Normed
    parameters: dict[str, Array]
    sums: Array


def counters(channels: int) -> Array:
    """What kernels count their blocks by, for images of up to so many channels; all zeros between
    two launches. Not to be made in a capture, which would make zeros of it anew in each replay."""
    return cupy.zeros(_PARTS * -(-channels // _LEAST_COLS), dtype=cupy.uint32)


def _members(tiles: int) -> int:
    """Tiles below one another whose sums are added up by the last of them."""
    return -(-tiles // _PARTS)


def forward(
    X: Array, W: Array, b: Array, window: Window, arrived: Array
) -> tuple[Array, Moments | None]:
    """Return Z of a convolution with bias, and its moments for `norm.forward`, None if it is empty.
    X may have more channels than W, which are zeros.

    Parameters
    ----------
    arrived : of `counters`
    """
    n, rows, cols, _ = X.shape
    depth, filters = W.shape[2:]
    Z = cupy.empty((n, *window.output_size(rows, cols), filters), dtype=X.dtype)
    if not Z.size:
        return Z, None
    choice = conv.forward_choice(X.shape, filters, window, False, True, X.dtype)
    kernel = choice.kernel.replace("conv2d_forward", "conv2d_moments")
    pixels = math.prod(Z.shape[:3])
    tiles = -(-pixels // choice.rows)
    members = _members(tiles)
    parts = -(-tiles // members)
    wide = sum_dtype(X)
    each = cupy.empty((tiles, 2, filters), dtype=wide)
    sums, squares = (cupy.empty((filters, parts), dtype=wide) for _ in range(2))
    numbers = window_arguments(X.shape, window)
    args = (
        *aligned(choice, X, W),
        b,
        Z,
        each,
        arrived,
        sums,
        squares,
        pixels,
        filters,
        members,
        depth,
    )
    grid = (tiles, -(-filters // choice.cols))
    special = conv.constants_of(numbers, filters, False, depth) if conv.SPECIALISED else ""
    launch(kernel, X.dtype, grid, (*args, *numbers), "int32", special)
    return Z, Moments(sums, squares, members * choice.rows, members * choice.rows)


def backward_choice(
    x_shape: Shape4, filters: int, window: Window, pooled: bool, inputs: bool, dtype: Any
) -> Candidate:
    """The kernel of `backward`, and in how many parts the weight's gradient comes."""
    n, rows, cols, channels = x_shape
    out = window.output_size(rows, cols)
    pooled = pooled and not unpools(channels, filters, window, dtype)
    outputs = n * (4 * (out[0] // 2) * (out[1] // 2) if pooled else math.prod(out))
    weight = (window.taps * channels + 1, filters, outputs)
    image = (n * rows * cols * inputs, channels, window.taps * filters)
    runs = come_in_runs(dtype, channels, filters)
    name = "conv2d_backward"
    return choose(
        conv.conv_key(name, dtype, x_shape, filters, window, inputs, pooled, True),
        lambda: candidates(
            *(name, dtype, *weight, True, runs, tile_of_both(name, dtype, weight, image, runs))
        ),
    )


def unpools(channels: int, filters: int, window: Window, dtype: Any) -> bool:
    """Whether the gradient before a pooling is laid out by a pass of its own: tensor cores take it
    once for every tap, which costs more instructions if each time only what has won is kept."""
    runs = come_in_runs(dtype, channels, filters)
    return runs and window.taps > 1 and precision.takes_tensor_cores("conv2d_backward", dtype)


def unpool(dY: Array, winners: Array, out: tuple[int, int]) -> Array:
    """Return the gradient of what a 2 x 2 pooling takes, (n, *out, filters), from that of what it
    gives and the number of each window's winner (4: none)."""
    if dY.data.ptr % table.VECTOR_BYTES:
        dY = dY.copy()
    n, filters = len(dY), dY.shape[3]
    dZ = cupy.empty((n, *out, filters), dtype=dY.dtype)
    step = table.VECTOR_BYTES // dY.itemsize
    total = n * (-(-out[0] // 2)) * (-(-out[1] // 2)) * (filters // step)
    args = (dY, winners, dZ, total, *out, filters)
    launch_elements("unpool2d", dY.dtype, total, args, table.index_for(dZ.size))
    return dZ


def padded_channels(channels: int, filters: int, dtype: Any) -> int:
    """The channels that an image whose gradient nobody wants should have, more than it has where
    tensor cores then take it: they want whole runs."""
    step = table.VECTOR_BYTES // dtype.itemsize
    if filters % step or not precision.takes_tensor_cores("conv2d_backward", dtype):
        return channels
    return -(-channels // step) * step


def pad(X: Array, channels: int) -> Array:
    """Return the images with so many channels, those that there are more zero."""
    if X.shape[3] == channels:
        return X
    Y = cupy.empty((*X.shape[:3], channels), dtype=X.dtype)
    total = Y.size * X.dtype.itemsize // table.VECTOR_BYTES
    args = (X, Y, total, X.shape[3], channels)
    launch_elements("pad_channels", X.dtype, total, args, table.index_for(Y.size))
    return Y


def parts_before(x_shape: Shape4, choice: Candidate) -> int:
    """In how many parts `backward` gives the sums for the normalisation before."""
    tiles = -(-math.prod(x_shape[:3]) // choice.rows)
    return -(-tiles // _members(tiles))


def backward(
    X: Array,
    dZ: Array,
    W: Array,
    window: Window,
    winners: Array | None,
    grads: Array | None,
    inputs: bool,
    act: Formula | None = None,
    side: Array | None = None,
    before: Before | None = None,
    arrived: Array | None = None,
) -> Array | None:
    """The way back through a convolution in one launch, or two if it `unpools`: fill `grads` with
    the gradient of the weight, the bias's below it, and return that of the input if `inputs`.

    Parameters
    ----------
    X : array
        May have more channels than W, which are zeros, unless `inputs`.
    winners : array or None
        dZ is the gradient of `conv.forward`'s pooled Z.
    grads : (parts, taps * W's channels + 1, filters) of the dtype of sums, or None
        In the parts of `backward_choice`; None where nothing learns.
    act : Formula, optional
        The input is the output of this activation: its gradient is multiplied by the slope.
    side : of the input's shape, optional
        Added to the input's gradient.
    before : Before, optional
        The sums for it are made too, in the parts of `parts_before`.
    arrived : of `counters`; needed with `before`
    """
    channels = X.shape[3]
    depth, filters = W.shape[2:]
    if winners is not None and unpools(channels, filters, window, X.dtype):
        dZ, winners = unpool(dZ, winners, window.output_size(*X.shape[1:3])), None
    pooled = winners is not None
    choice = backward_choice(X.shape, filters, window, pooled, inputs, X.dtype)
    X, dZ, W = aligned(choice, X, dZ, W)
    dX = cupy.empty(X.shape if inputs else 0, dtype=X.dtype)
    outputs = math.prod(dZ.shape[:3]) * (4 if pooled else 1)
    pixels = math.prod(X.shape[:3])
    weight_blocks = 0
    if grads is not None:
        weight_blocks = -(-(window.taps * channels + 1) // choice.rows) * -(-filters // choice.cols)
        weight_blocks *= choice.parts
    tiles = -(-pixels // choice.rows)
    input_blocks = tiles * -(-channels // choice.cols) if inputs else 0
    none, wide, codes = (cupy.empty(0, dtype=d) for d in (X.dtype, sum_dtype(X), cupy.uint8))
    nobody = cupy.empty(0, dtype=cupy.uint32)
    known: tuple[Any, ...] = (none, codes, none, none, wide, wide, wide, nobody, wide)
    flags: tuple[int, ...] = (0, 0, 0, 0, 0, 1)
    fused = act  # a kernel has one; behind a normalisation it is that one's own
    if before is not None:
        saved, p, sums = before
        each = cupy.empty((tiles, 2, channels), dtype=sums.dtype)
        known = (saved.X, saved.winners, p["scaler"], p["intercept"], saved.shift, saved.inverse)
        known = (*known, each, arrived, sums)
        flags = (1, *image_of(saved.X.shape), saved.act is not None, saved.pooled, _members(tiles))
        fused = saved.act
    args = (
        *(X, dZ, codes if winners is None else winners, W, none if side is None else side),
        *(wide if grads is None else grads, dX, *known),
        *(outputs, pixels, filters, choice.span, choice.parts, weight_blocks),
        *(act is not None, side is not None, pooled, *flags, depth),
    )
    numbers = window_arguments(X.shape, window)
    special = conv.constants_of(numbers, filters, pooled, depth) if conv.SPECIALISED else ""
    grid = (weight_blocks + input_blocks,)
    macros = constants(fused if inputs else None, special)
    launch(choice.kernel, X.dtype, grid, (*args, *numbers), "int32", macros)
    return dX if inputs else None
