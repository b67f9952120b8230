"""The loss of a planned step: cross-entropy in a half type, with smoothed labels, or where examples
count differently; the squared error."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.ops._sums import sum_dtype

__all__ = ["cross_entropy", "squared_error", "weighted_cross_entropy"]


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


def weighted_cross_entropy(
    logits: Array,
    labels: Array,
    scale: Array | None,
    weights: Array | None,
    ignored: int | None,
    mean: bool,
    smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """Return (losses, dlogits) as `cross_entropy`, of the loss of `losses.SoftmaxCrossEntropy` with
    class weights or an ignored label; the losses add up to that of the batch.

    Parameters
    ----------
    weights : (classes,) of the dtype of sums, optional
    ignored : int, optional
        The label of examples that count nothing.
    mean : bool
        Over what the examples count, not the sum.
    """
    rows, classes = logits.shape
    losses = cupy.empty(rows, dtype=sum_dtype(logits))
    dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
    none = cupy.empty(0, dtype=losses.dtype)
    known = (none if weights is None else weights, none if scale is None else scale)
    flags = (weights is not None, ignored is not None, mean, scale is not None)
    label = (ignored or 0) % 2**64  # as its 64 bits
    args = (logits, labels, *known, losses, dlogits, rows, classes, *flags, label, smoothing)
    name = "weighted_cross_entropy_step"
    grid = (-(-rows // (table.KERNELS[name].block // 32)),)
    launch(name, logits.dtype, grid, args, table.index_for(logits.size))
    return losses, dlogits


def squared_error(outputs: Array, targets: Array, scale: Array | None) -> tuple[Array, Array]:
    """Return (losses, doutputs): half the sum of squares of each example's distances from its
    targets, of a half type in float32; and the gradient of their sum, multiplied by the loss scale.

    Parameters
    ----------
    outputs, targets : (n, ...), not empty
    scale : (1,) float32, optional
        The loss scale, on the device.
    """
    rows, name = len(outputs), "squared_error_step"
    losses = cupy.empty(rows, dtype=sum_dtype(outputs))
    doutputs = cupy.empty(outputs.shape, dtype=outputs.dtype)
    factor = cupy.empty(0, dtype=losses.dtype) if scale is None else scale
    width = outputs.size // rows
    args = (outputs, targets, factor, losses, doutputs, rows, width, scale is not None)
    grid = (-(-rows // (table.KERNELS[name].block // 32)),)
    launch(name, outputs.dtype, grid, args, table.index_for(outputs.size))
    return losses, doutputs
