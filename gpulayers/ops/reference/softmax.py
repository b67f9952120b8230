"""Softmax over rows, alone and together with the cross-entropy loss."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of
from gpulayers.ops._sums import sum_dtype


class ReferenceSoftmax:
    """Rows are shifted by their maximum first, so that nothing overflows; half precision is
    computed in float32 and rounded once."""

    def softmax_forward(self, Z: Array) -> Array:
        wide = Z.astype(sum_dtype(Z), copy=False)
        e = xp_of(Z).exp(wide - wide.max(axis=1, keepdims=True))
        return (e / e.sum(axis=1, keepdims=True)).astype(Z.dtype, copy=False)

    def softmax_backward(self, dY: Array, Y: Array) -> Array:
        # the Jacobian is diag(y) - y y^T; times dy that is y * (dy - <dy, y>)
        dtype = Y.dtype
        dY, Y = (a.astype(sum_dtype(a), copy=False) for a in (dY, Y))
        return (Y * (dY - (dY * Y).sum(axis=1, keepdims=True))).astype(dtype, copy=False)

    def softmax_cross_entropy_forward(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        # loss = log sum_j exp(z_j) - z_label
        xp = xp_of(logits)
        wide = logits.astype(sum_dtype(logits), copy=False)
        shifted = wide - wide.max(axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        hit = xp.arange(logits.shape[1]) == labels[:, None]
        picked = xp.where(hit, shifted, shifted.dtype.type(0)).sum(axis=1)
        # comparing instead of indexing: a label out of range hits nothing and is told by NaN
        losses = xp.where(hit.any(axis=1), xp.log(total[:, 0]) - picked, total.dtype.type("nan"))
        losses, probs = (a.astype(logits.dtype, copy=False) for a in (losses, e / total))
        return losses, probs

    def softmax_cross_entropy_backward(self, probs: Array, labels: Array, scale: float) -> Array:
        # d loss / d z_j = p_j - [j is the label]
        xp = xp_of(probs)
        hit = xp.arange(probs.shape[1]) == labels[:, None]
        # NumPy's product of a bfloat16 array and a number is float32
        return ((probs - hit.astype(probs.dtype)) * scale).astype(probs.dtype, copy=False)
