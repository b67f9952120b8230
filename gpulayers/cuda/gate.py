"""The gated activation unit inside a planned step."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements

__all__ = ["backward", "forward"]


def forward(X: Array) -> Array:
    """Return tanh(F) * sigmoid(G), where X = [F, G] along the last axis."""
    channels = X.shape[-1] // 2
    Y = cupy.empty((*X.shape[:-1], channels), dtype=X.dtype)
    args = (X, Y, Y.size, channels)
    launch_elements("gate_forward", X.dtype, Y.size, args, table.index_for(X.size))
    return Y


def backward(dY: Array, X: Array) -> Array:
    """Return dX."""
    dX = cupy.empty(X.shape, dtype=X.dtype)
    args = (dY, X, dX, dY.size, X.shape[-1] // 2)
    launch_elements("gate_backward", X.dtype, dY.size, args, table.index_for(X.size))
    return dX
