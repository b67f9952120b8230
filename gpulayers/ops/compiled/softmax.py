"""Softmax and its cross-entropy, a row at a time."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.reference.softmax import ReferenceSoftmax

__all__ = ["CompiledSoftmax", "softmax_cross_entropy_both"]

_forward = bind("gl_softmax_forward", "ppppii")
_backward = bind("gl_softmax_backward", "pppii")
_cross_entropy_backward = bind("gl_cross_entropy_backward", "pppiif")
_both = bind("gl_cross_entropy_both", "ppppiif")


def _numbers(labels: Array) -> Array:
    """The labels as the kernels read them: contiguous int64."""
    return np.ascontiguousarray(labels, dtype=np.int64)


def softmax_cross_entropy_both(logits: Array, labels: Array, scale: float, dlogits: Array) -> Array:
    """The losses (m,), and the gradient of ``scale * sum(losses)`` into `dlogits`, in one pass.

    logits and dlogits (m, classes) float32 or float64 and C-contiguous, labels (m,) of integers,
    unchecked but for labels out of range: their loss is NaN.
    """
    losses = workspace.empty((len(logits),), logits.dtype)
    _both(logits.dtype, logits, _numbers(labels), losses, dlogits, *logits.shape, scale)
    return losses


class CompiledSoftmax(ReferenceSoftmax):
    """float32 and float64 rows; what is no number is treated as in the reference."""

    def softmax_forward(self, Z: Array) -> Array:
        if Z.dtype not in DTYPES:
            return super().softmax_forward(Z)
        Y = workspace.empty(Z.shape, Z.dtype)
        _forward(Z.dtype, Z, None, Y, None, *Z.shape)
        return Y

    def softmax_backward(self, dY: Array, Y: Array) -> Array:
        if Y.dtype not in DTYPES:
            return super().softmax_backward(dY, Y)
        dZ = workspace.empty(Y.shape, Y.dtype)
        _backward(Y.dtype, dY, Y, dZ, *Y.shape)
        return dZ

    def softmax_cross_entropy_forward(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        if logits.dtype not in DTYPES:
            return super().softmax_cross_entropy_forward(logits, labels)
        probs = workspace.empty(logits.shape, logits.dtype)
        losses = workspace.empty((len(logits),), logits.dtype)
        _forward(logits.dtype, logits, _numbers(labels), probs, losses, *logits.shape)
        return losses, probs

    def softmax_cross_entropy_backward(self, probs: Array, labels: Array, scale: float) -> Array:
        if probs.dtype not in DTYPES:
            return super().softmax_cross_entropy_backward(probs, labels, scale)
        dlogits = workspace.empty(probs.shape, probs.dtype)
        _cross_entropy_backward(probs.dtype, probs, _numbers(labels), dlogits, *probs.shape, scale)
        return dlogits
