"""Dropout inside a planned step."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements

__all__ = ["backward", "blocks_of", "forward"]

_NUMBERS = 8  # float32 numbers that a Philox block gives


def blocks_of(size: int) -> int:
    """Philox blocks that a mask of `size` elements takes."""
    return -(-size // _NUMBERS)


def forward(X: Array, draws: Array, offset: int, p: float, masked: bool) -> tuple[Array, Array]:
    """Return (Y, kept): X / (1 - p) where it stays, and where gradients pass, uint8.

    Parameters
    ----------
    draws : (4,) uint64
        Key and counter of the stream, the low word of each first.
    offset : int
        At how many blocks behind the counter the mask begins.
    masked : bool
        X is the output of a ReLU, whose slope is taken along.
    """
    Y, kept = cupy.empty(X.shape, dtype=X.dtype), cupy.empty(X.shape, dtype=cupy.uint8)
    blocks = blocks_of(X.size)
    rounded = float(cupy.dtype("float32").type(p))  # as the numbers that it is compared with
    args = (X, draws, Y, kept, X.size, offset, masked, rounded, _scale(X, p))
    # threads of the last block count past the end
    overhang = _NUMBERS * table.KERNELS["dropout_forward"].block
    index = table.index_for(X.size + overhang, offset + blocks)
    launch_elements("dropout_forward", X.dtype, blocks, args, index)
    return Y, kept


def backward(dY: Array, kept: Array, draws: Array, p: float) -> Array:
    """Return dX; the stream's counter goes on behind the mask."""
    dX = cupy.empty(dY.shape, dtype=dY.dtype)
    args = (dY, kept, dX, draws, dY.size, _scale(dY, p))
    launch_elements("dropout_backward", dY.dtype, dY.size, args, table.index_for(dY.size))
    return dX


def _scale(X: Array, p: float) -> float:
    return float(X.dtype.type(1.0 / (1.0 - p)))  # rounded, as the layer's mask is
