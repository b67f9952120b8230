"""Rows of a table by their number, and the sum of rows that share a number, on NumPy."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array


class CpuEmbedding:
    """The ids are known to be in range; the rows of one id are added in their order."""

    def embedding_forward(self, W: Array, ids: Array) -> Array:
        return W[ids]

    def embedding_backward(self, dY: Array, ids: Array, count: int) -> Array:
        dW = np.zeros((count, dY.shape[1]), dtype=dY.dtype)
        if not ids.size:
            return dW
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        rows = dY[order].astype(np.float32 if dY.dtype.itemsize == 2 else dY.dtype, copy=False)
        dW[ids[starts]] = np.add.reduceat(rows, starts, axis=0)
        return dW
