"""Softmax and cross-entropy on the CPU: in place, sums of rows as products with ones, threads."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import (
    BLOCK,
    block_lengths,
    blocks,
    ones,
    row_by_row,
    row_shares,
)
from gpulayers.ops.reference.softmax import ReferenceSoftmax
from gpulayers.threads import run_shares

_PASSES = 16  # what a softmax costs, in passes of an addition
_FEW = 4096  # probabilities up to which comparing with all labels is cheaper than looking them up
_BLOCK = 4 * BLOCK  # few passes, of which one takes most of the time
_NEAR = 30.0  # scores whose exponentials, their sums and the quotients of these are normal numbers


def _plain(labels: Array, scores: Array) -> bool:
    """Whether the fast way serves: a float dtype BLAS has, and labels that can be an index."""
    if scores.dtype.itemsize < 4 or not scores.size:
        return False
    return bool(labels.min() >= 0) and bool(labels.max() < scores.shape[1])


def _near_zero(z: Array) -> bool:
    """Whether exp(z) can do without the maximum of each row taken off first, which takes longer
    than this; not with a NaN."""
    return bool(z.min() >= -_NEAR and z.max() <= _NEAR)


def _less_maximum(z: Array, out: Array) -> Array:
    return np.subtract(z, z.max(axis=1, keepdims=True), out=out)


class CpuSoftmax(ReferenceSoftmax):
    """The reference's formulas with ``out=``."""

    def softmax_forward(self, Z: Array) -> Array:
        if Z.dtype.itemsize < 4 or not Z.size:
            return super().softmax_forward(Z)
        Y = workspace.empty(Z.shape, Z.dtype)
        one = ones(Z.shape[1], Z.dtype)

        def work(i: int, part: slice) -> None:
            z, y = Z[part], Y[part]
            np.exp(z if _near_zero(z) else _less_maximum(z, y), out=y)
            np.divide(y, (y @ one)[:, None], out=y)

        with row_by_row(Z.shape[1]):
            run_shares(work, row_shares(*Z.shape, passes=_PASSES))
        return Y

    def softmax_backward(self, dY: Array, Y: Array) -> Array:
        # the Jacobian is diag(y) - y y^T; times dy that is y * (dy - <dy, y>)
        if Y.dtype.itemsize < 4 or not Y.size:
            return super().softmax_backward(dY, Y)
        dZ = workspace.empty(Y.shape, Y.dtype)
        one = ones(Y.shape[1], Y.dtype)

        def work(i: int, part: slice) -> None:
            dz, dy, y = dZ[part], dY[part], Y[part]
            np.multiply(dy, y, out=dz)
            np.subtract(dy, (dz @ one)[:, None], out=dz)
            np.multiply(y, dz, out=dz)

        with row_by_row(Y.shape[1]):
            run_shares(work, row_shares(*Y.shape, passes=4))
        return dZ

    def softmax_cross_entropy_forward(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        # loss = log sum_j exp(z_j) - z_label
        if 0 < logits.size <= _FEW and logits.dtype.itemsize >= 4:
            few = _few_cross_entropies(logits, labels)
            return few or super().softmax_cross_entropy_forward(logits, labels)
        if not _plain(labels, logits):
            return super().softmax_cross_entropy_forward(logits, labels)
        shape: tuple[int, int] = logits.shape
        m, classes = shape
        probs = workspace.empty(shape, logits.dtype)
        losses = workspace.empty((m,), logits.dtype)
        one, number = ones(classes, logits.dtype), np.arange(m)
        parts = row_shares(m, classes, _PASSES)
        steps = block_lengths(parts, max(1, _BLOCK // classes))

        def work(i: int, part: slice) -> None:
            for block in blocks(part, steps[i]):
                p, z, loss = probs[block], logits[block], losses[block]
                of_label = number[: len(p)], labels[block]
                near = _near_zero(z)
                if not near:
                    z = _less_maximum(z, p)
                score = z[of_label]
                np.exp(z, out=p)
                total = p @ one
                if near:  # log(total) and the score may be large and all but the same
                    np.log(total / p[of_label], out=loss)
                else:
                    np.subtract(np.log(total), score, out=loss)
                np.divide(p, total[:, None], out=p)

        with row_by_row(classes):
            run_shares(work, parts)
        return losses, probs

    def softmax_cross_entropy_backward(self, probs: Array, labels: Array, scale: float) -> Array:
        # d loss / d z_j = p_j - [j is the label]
        if 0 < probs.size <= _FEW and probs.dtype.itemsize >= 4:
            few = workspace.empty(probs.shape, probs.dtype)
            np.subtract(probs, _hit(labels, probs.shape[1]), out=few)
            return np.multiply(few, probs.dtype.type(scale), out=few)
        if not _plain(labels, probs):
            return super().softmax_cross_entropy_backward(probs, labels, scale)
        dlogits = workspace.empty(probs.shape, probs.dtype)
        number, factor = np.arange(len(probs)), probs.dtype.type(scale)

        def work(i: int, part: slice) -> None:
            dz, rows = dlogits[part], number[: part.stop - part.start]
            np.multiply(probs[part], factor, out=dz)
            dz[rows, labels[part]] = (probs[part][rows, labels[part]] - 1) * factor

        run_shares(work, row_shares(*probs.shape, passes=2), blas=False)
        return dlogits


@lru_cache(maxsize=64)
def _class_numbers(classes: int) -> Array:
    numbers = np.arange(classes)
    numbers.setflags(write=False)
    return numbers


def _hit(labels: Array, classes: int) -> Array:
    """Whether a class is the label: (m, classes)."""
    return _class_numbers(classes) == labels[:, None]


def _few_cross_entropies(logits: Array, labels: Array) -> tuple[Array, Array] | None:
    """Losses and probabilities in as few calls as can be; None where a label is out of range."""
    m, classes = logits.shape
    probs = workspace.empty(logits.shape, logits.dtype)
    near = _near_zero(logits)
    if near:
        np.exp(logits, out=probs)
    else:
        np.subtract(logits, np.maximum.reduce(logits, axis=1, keepdims=True), out=probs)
    of_label = probs[_hit(labels, classes)]
    if len(of_label) < m:
        return None
    if not near:
        np.exp(probs, out=probs)
    total = probs.dot(ones(classes, logits.dtype))
    losses = np.log(total / of_label if near else total)
    if not near:
        np.subtract(losses, of_label, out=losses)
    np.divide(probs, total[:, None], out=probs)
    return losses, probs
