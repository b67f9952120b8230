"""The loss of a planned step in a half type."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.ops._sums import sum_dtype

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Array, labels: Array, scale: Array | None, weight: float
) -> tuple[Array, Array]:
    """Return (losses, dlogits): the losses of the rows in float32, and the gradient of weight times
    their sum, multiplied by the loss scale and rounded to the logits' type.

    Parameters
    ----------
    logits : (n, classes)
    labels : (n,) int64
    scale : (1,) float32, optional
        The loss scale, on the device.
    """
    rows, classes = logits.shape
    losses = cupy.empty(rows, dtype=sum_dtype(logits))
    dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
    factor = cupy.empty(0, dtype=losses.dtype) if scale is None else scale
    args = (logits, labels, factor, losses, dlogits, rows, classes, scale is not None, weight)
    grid = (-(-rows // (table.KERNELS["cross_entropy_step"].block // 32)),)
    launch("cross_entropy_step", logits.dtype, grid, args, table.index_for(logits.size))
    return losses, dlogits
