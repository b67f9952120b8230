"""Convolutions of small images in a planned step, by whole examples: for few channels and filters,
where the tiles of a matrix product would be all but empty."""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import conv, table
from gpulayers.cuda.compile import launch
from gpulayers.cuda.fusible import Formula, constants
from gpulayers.cuda.mega_tiles import example_constants
from gpulayers.cuda.precision import takes_tensor_cores
from gpulayers.cuda.product import come_in_runs
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window

__all__ = ["backward", "forward", "parts", "serves"]

# Blocks that share the weights' gradients: of so many examples each, more for few parameters; fixed
# numbers, not the device's, so that results are the same on every GPU
_EXAMPLES, _PARTS, _NUMBERS = 4, 128, 1 << 14
# blocks that share the input's gradient
_BLOCKS = 1024
# weights that a block goes over for each example; with more, a product shares them among examples
_MOST_WEIGHTS, _MOST_CHANNELS = 4096, 16
_WIDEST = 64  # taps of a row, which are written out one by one
# shared memory that a block has on every device that compiles the kernels, less what it keeps
_MOST_SHARED = 63 << 10


def serves(dtype: Any, x_shape: Shape4, filters: int, window: Window, pooled: bool) -> bool:
    """Whether a convolution is one of those, its forward pass and both gradients, if plans' are
    compiled for their shape."""
    channels = x_shape[3]
    weights = window.taps * channels * filters
    if not conv.SPECIALISED or dtype.name not in table.KERNELS["example_conv_forward"].dtypes:
        return False
    if max(channels, filters) > _MOST_CHANNELS or weights > _MOST_WEIGHTS:
        return False
    if window.kernel[1] > _WIDEST:
        return False
    if come_in_runs(dtype, channels, filters) and takes_tensor_cores("convolution", dtype):
        return False
    image = (x_shape[1], x_shape[2], channels)
    how = (image, filters, window, pooled, None, None)
    return all(example_constants(*how, back)[1] <= _MOST_SHARED for back in (False, True))


def parts(batch: int, parameters: int) -> int:
    """In how many parts `backward` gives the gradients of so many parameters."""
    return min(batch, _PARTS, max(-(-batch // _EXAMPLES), _NUMBERS // parameters))


def forward(
    X: Array, W: Array, b: Array, window: Window, act: Formula | None, pooled: bool
) -> tuple[Array, Array]:
    """Return (Z, winners), as `conv.forward`."""
    n, rows, cols, channels = X.shape
    filters = W.shape[3]
    out = window.output_size(rows, cols)
    if pooled:
        out = (out[0] // 2, out[1] // 2)
    Z = cupy.empty((n, *out, filters), dtype=X.dtype)
    winners = cupy.empty(Z.shape if pooled else 0, dtype=cupy.uint8)
    if Z.size:
        how = (act, None, False)
        known, shared = example_constants((rows, cols, channels), filters, window, pooled, *how)
        args = (X, W, b, Z, winners, n)
        _launch("example_conv_forward", X, (n,), args, constants(act, known), shared)
    return Z, winners


def backward(
    X: Array,
    dZ: Array,
    winners: Array | None,
    W: Array,
    window: Window,
    grads: Array | None,
    inputs: bool,
    act: Formula | None,
) -> Array | None:
    """As `conv_step.backward`; `grads` in `parts`."""
    n, rows, cols, channels = X.shape
    dX = cupy.empty(X.shape if inputs else 0, dtype=X.dtype)
    none, codes = cupy.empty(0, dtype="float32"), cupy.empty(0, dtype=cupy.uint8)
    pooled, how = winners is not None, (None, act, True)
    known, shared = example_constants((rows, cols, channels), W.shape[3], window, pooled, *how)
    args = (X, dZ, codes if winners is None else winners, W, none if grads is None else grads, dX)
    weight_blocks = 0 if grads is None else len(grads)
    grid = (weight_blocks + (min(n, _BLOCKS) if inputs else 0),)
    fused = constants(act, known)
    _launch("example_conv_backward", X, grid, (*args, n, weight_blocks), fused, shared)
    return dX if inputs else None


def _launch(
    name: str, X: Array, grid: tuple[int], args: tuple[Any, ...], known: str, shared: int
) -> None:
    launch(name, X.dtype, grid, args, "int32", known, shared=shared)
