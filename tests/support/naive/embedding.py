"""Rows looked up one at a time, pooled by example; and where their gradients go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lookup(W, examples: Sequence[Sequence[int]], pool: str | None = None) -> np.ndarray:
    """(n_ex, n_in, width) of examples of one length, or (n_ex, 1, width) pooled."""
    W = np.asarray(W, np.float64)
    length = 1 if pool else len(examples[0]) if len(examples) else 0
    Y = np.zeros((len(examples), length, W.shape[1]))
    for m, ids in enumerate(examples):
        for j, i in enumerate(ids):
            for k in range(W.shape[1]):
                share = 1.0 / len(ids) if pool == "mean" else 1.0
                Y[m, 0 if pool else j, k] += share * W[int(i), k]
    return Y


def lookup_grad(shape, examples: Sequence[Sequence[int]], dY, pool: str | None = None):
    """dW: every occurrence of an id counts."""
    dW = np.zeros(shape)
    for m, ids in enumerate(examples):
        for j, i in enumerate(ids):
            for k in range(shape[1]):
                share = 1.0 / len(ids) if pool == "mean" else 1.0
                dW[int(i), k] += share * float(dY[m, 0 if pool else j, k])
    return dW
