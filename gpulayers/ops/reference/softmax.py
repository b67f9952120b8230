"""Softmax over rows, alone and together with the cross-entropy loss."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of


class ReferenceSoftmax:
    """Rows are shifted by their maximum first, so that nothing overflows."""

    def softmax_forward(self, Z: Array) -> Array:
        e = xp_of(Z).exp(Z - Z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def softmax_backward(self, dY: Array, Y: Array) -> Array:
        # the Jacobian is diag(y) - y y^T; times dy that is y * (dy - <dy, y>)
        return Y * (dY - (dY * Y).sum(axis=1, keepdims=True))

    def softmax_cross_entropy_forward(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        # loss = log sum_j exp(z_j) - z_label
        xp = xp_of(logits)
        shifted = logits - logits.max(axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        hit = xp.arange(logits.shape[1]) == labels[:, None]
        picked = xp.where(hit, shifted, shifted.dtype.type(0)).sum(axis=1)
        # comparing instead of indexing: a label out of range hits nothing and is told by NaN
        losses = xp.where(hit.any(axis=1), xp.log(total[:, 0]) - picked, total.dtype.type("nan"))
        return losses, e / total

    def softmax_cross_entropy_backward(self, probs: Array, labels: Array, scale: float) -> Array:
        # d loss / d z_j = p_j - [j is the label]
        xp = xp_of(probs)
        hit = xp.arange(probs.shape[1]) == labels[:, None]
        return (probs - hit.astype(probs.dtype)) * scale
