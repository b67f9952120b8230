"""Batch normalisation inside a planned step, with activation, pooling and sum that follow it."""

from __future__ import annotations

import math
from typing import NamedTuple

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.cuda.fusible import Formula, constants
from gpulayers.cuda.geometry import column_blocks
from gpulayers.ops._sums import sum_dtype

__all__ = ["Moments", "Normed", "forward", "gradient_sums", "image_of", "input_grad", "parts_of"]

# Blocks of a launch at most: each adds up the parts of its columns' sums by itself, so that more
# blocks read them more often.
_BLOCKS = 256


class Moments(NamedTuple):
    """Of each span of rows the sum of their distances from a row, and that of the squared distances
    from their mean, (channels, spans) both; span k's are from row k * step."""

    sums: Array
    squares: Array
    span: int
    step: int


class Normed(NamedTuple):
    """What the way back needs of `forward`; shift and inverse are the columns' (channels,)."""

    X: Array
    shift: Array
    inverse: Array
    winners: Array
    act: Formula | None
    pooled: bool


def forward(
    X: Array,
    parameters: dict[str, Array],
    eps: float,
    momentum: float,
    act: Formula | None,
    pooled: bool,
    side: Array | None,
    moments: Moments | None = None,
) -> tuple[Array, Normed]:
    """Return act(scaler * X_hat + intercept), pooled, + side; each where wanted.

    Parameters
    ----------
    X : (..., channels), not empty; (n, rows, cols, channels) if pooled
    parameters : those of the layer, whose running mean and variance are updated
    momentum : float
        The weight of the running ones' past.
    act : Formula, optional
    pooled : bool
        The maxima of windows of 2 x 2 pixels, a row or column that is left over counts for none;
        only with activations that are told by their value.
    side : of the result's shape, optional
    moments : Moments, optional
        Those of X, if they are known.
    """
    channels = X.shape[-1]
    rows = X.size // channels
    wide = sum_dtype(X)
    sums, squares, span, step = _moments(X) if moments is None else moments
    parts = sums.shape[1]
    index = table.index_for(X.size, sums.size)
    Y = cupy.empty(_out_shape(X.shape, pooled), dtype=X.dtype)
    winners = cupy.empty(Y.shape if pooled else 0, dtype=cupy.uint8)
    shift, inverse = (cupy.empty(channels, dtype=wide) for _ in range(2))
    outputs = Y.size // channels
    width, across, out_span, out_parts = _spans(outputs, channels)
    p = parameters
    args = (
        *(X, sums, squares, p["scaler"], p["intercept"]),
        *(cupy.empty(0, dtype=X.dtype) if side is None else side,),
        *(p["running_mean"], p["running_var"], shift, inverse, Y, winners),
        *(rows, span, step, outputs, out_span, parts, channels, width, *image_of(X.shape)),
        *(act is not None, pooled, side is not None, eps, momentum, 1.0 - momentum),
    )
    launch("norm_forward", X.dtype, (across, max(out_parts, 1)), args, index, constants(act))
    return Y, Normed(X, shift, inverse, winners, act, pooled)


def _moments(X: Array) -> Moments:
    channels = X.shape[-1]
    rows = X.size // channels
    width, across, span, parts = _spans(rows, channels)
    sums, squares = (cupy.empty((channels, parts), dtype=sum_dtype(X)) for _ in range(2))
    index = table.index_for(X.size, sums.size)
    args = (X, sums, squares, rows, channels, width, span)
    launch("column_moments", X.dtype, (across, parts), args, index)
    return Moments(sums, squares, span, 0)


def parts_of(saved: Normed) -> int:
    """In how many parts `gradient_sums` gives the gradients of scaler and intercept."""
    channels = saved.X.shape[-1]
    outputs = math.prod(_out_shape(saved.X.shape, saved.pooled)[:-1])
    return max(_spans(outputs, channels)[3], 1)


def gradient_sums(dY: Array, saved: Normed, parameters: dict[str, Array], grads: Array) -> None:
    """Fill `grads` (parts, 2 * channels) with the gradients of scaler and, behind it, intercept,
    in the parts of `parts_of`."""
    channels = saved.X.shape[-1]
    outputs = dY.size // channels
    width, across, out_span, _ = _spans(outputs, channels)
    args = (
        *(*_known(dY, saved, parameters, grads), outputs, max(out_span, 1), channels, width),
        *(*image_of(saved.X.shape), saved.act is not None, saved.pooled),
    )
    index = table.index_for(saved.X.size, grads.size)
    fused = constants(saved.act)
    launch("norm_gradient_sums", dY.dtype, (across, len(grads)), args, index, fused)


def input_grad(dY: Array, saved: Normed, parameters: dict[str, Array], grads: Array) -> Array:
    """Return the input's gradient; `grads` is full."""
    channels = saved.X.shape[-1]
    rows = saved.X.size // channels
    dX = cupy.empty(saved.X.shape, dtype=dY.dtype)
    width, across, span, parts = _spans(rows, channels)
    args = (
        *(*_known(dY, saved, parameters, grads), dX, rows, span, len(grads), channels, width),
        *(*image_of(saved.X.shape), saved.act is not None, saved.pooled, 1.0 / rows),
    )
    index = table.index_for(saved.X.size, grads.size)
    launch("norm_input_grad", dY.dtype, (across, parts), args, index, constants(saved.act))
    return dX


def _known(
    dY: Array, saved: Normed, parameters: dict[str, Array], grads: Array
) -> tuple[Array, ...]:
    p = parameters
    return (
        *(saved.X, dY, saved.winners, p["scaler"], p["intercept"]),
        *(saved.shift, saved.inverse, grads),
    )


def _spans(rows: int, channels: int) -> tuple[int, int, int, int]:
    """(width, blocks across, rows of a span, spans); none of the spans is empty."""
    block = table.KERNELS["norm_forward"].block
    width, across, down = column_blocks(rows, channels, block)
    span = max(-(-rows // min(down, max(1, _BLOCKS // across))), 1)
    return width, across, span, -(-rows // span)


def image_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the images, 0 if there are none."""
    return (shape[1], shape[2]) if len(shape) == 4 else (0, 0)


def _out_shape(shape: tuple[int, ...], pooled: bool) -> tuple[int, ...]:
    if not pooled:
        return shape
    n, rows, cols, channels = shape
    return n, rows // 2, cols // 2, channels
