"""The loss of a planned step in a half type, or with smoothed labels."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.ops._sums import sum_dtype

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Array, labels: Array, scale: Array | None, weight: float, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Return (losses, dlogits): the losses of the rows, of a half type in float32, and the gradient
    of weight times their sum, multiplied by the loss scale and rounded to the logits' type.

    Parameters
    ----------
    logits : (n, classes)
    labels : (n,) int64
    scale : (1,) float32, optional
        The loss scale, on the device.
    smoothing : float
        The share of each target that all classes have alike. (Szegedy et al., "Rethinking the
        Inception architecture", 2016, section 7.)
    """
    rows, classes = logits.shape
    losses = cupy.empty(rows, dtype=sum_dtype(logits))
    dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
    factor = cupy.empty(0, dtype=losses.dtype) if scale is None else scale
    numbers = (rows, classes, scale is not None, weight, smoothing)
    args = (logits, labels, factor, losses, dlogits, *numbers)
    grid = (-(-rows // (table.KERNELS["cross_entropy_step"].block // 32)),)
    launch("cross_entropy_step", logits.dtype, grid, args, table.index_for(logits.size))
    return losses, dlogits
