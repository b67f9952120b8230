"""Rows of a table by their number, and the sum of rows that share a number."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of


class ReferenceEmbedding:
    """Source: Bengio et al., "A neural probabilistic language model" (2003), section 2; the sums:
    Hillis & Steele, "Data parallel algorithms" (1986), the scan, cut at the bounds of segments."""

    def embedding_forward(self, W: Array, ids: Array) -> Array:
        xp = xp_of(W)
        known = (ids >= 0) & (ids < len(W))
        return xp.where(known[:, None], W[xp.where(known, ids, 0)], W.dtype.type(float("nan")))

    def embedding_backward(self, dY: Array, ids: Array, count: int) -> Array:
        # Sorted by id, equal ids lie together. After the round with distance k each row holds the
        # sum of (up to) the last 2k rows of its id; at the end the last row of an id holds all.
        # Atomic additions would be shorter, and of another order in every run.
        xp = xp_of(dY)
        if not ids.size:
            return xp.zeros((count, dY.shape[1]), dtype=dY.dtype)
        order = xp.argsort(ids, kind="stable")
        ids = ids[order]
        sums = dY[order].astype("float32" if dY.dtype.itemsize == 2 else dY.dtype, copy=False)
        zero = sums.dtype.type(0)
        k = 1
        while k < len(ids):
            same = ids[k:] == ids[:-k]
            sums[k:] += xp.where(same[:, None], sums[:-k], zero)
            k *= 2
        wanted = xp.arange(count)
        last = xp.maximum(xp.searchsorted(ids, wanted, side="right") - 1, 0)
        found = ids[last] == wanted
        return xp.where(found[:, None], sums[last], zero).astype(dY.dtype, copy=False)
