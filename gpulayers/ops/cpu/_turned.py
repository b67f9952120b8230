"""Steps of a recurrent network with the examples last in memory, (n_t, width, n), beside rows,
(n_t, n, width)."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu._blocks import blocks
from gpulayers.ops.cpu.sequence import project

_LINE = 16  # rows that are turned at a time: what is written of each fills a line of the cache
_TALL = 8  # examples


def turned(rows: Array) -> Array:
    """Rows (n_t, n, width) as (n_t, width, n), a copy unless they lie like that."""
    view = rows.transpose(0, 2, 1)
    if view[:1].flags.c_contiguous:
        return view
    out = workspace.empty(view.shape, view.dtype)
    out[...] = view
    return out


def as_rows(array: Array) -> Array:
    """(n_t, width, n) seen as rows."""
    return array.transpose(0, 2, 1)


def operands(X: Array, h: int) -> Array:
    """[A_{t-1}, 1, X_t] of every step, (n_t + 1, h + 1 + n_in, n), the states yet to be filled."""
    n_t, n, n_in = X.shape
    stacked = workspace.empty((n_t + 1, h + 1 + n_in, n), X.dtype)
    stacked[:, h], stacked[:-1, h + 1 :] = 1, X.transpose(0, 2, 1)
    return stacked


def is_tall(X: Array) -> bool:
    """Whether there are examples enough for going over all weights in every step."""
    return X.shape[1] >= _TALL


def weights_for(X: Array, sign: Array, *pieces: Array) -> Array:
    """The pieces (rows, width) below one another, transposed and with the signs of the columns: in
    memory as well where X has examples enough, since BLAS reads them faster like that."""
    rows = workspace.empty((sum(len(piece) for piece in pieces), len(sign)), sign.dtype)
    start = 0
    for piece in pieces:
        np.multiply(piece, sign, out=rows[start : start + len(piece)])
        start += len(piece)
    if not is_tall(X):
        return rows.T
    W = workspace.empty((len(sign), len(rows)), sign.dtype)
    for part in blocks(slice(0, len(rows)), _LINE):
        W[:, part] = rows[part].T
    return W


def project_turned(
    X: Array, stacked: Array, weights: Array, bias: Array, sign: Array, out: Array
) -> None:
    """out (n_t, width, n) = (X_t W_x + bias) sign, for all steps; `stacked` are X's operands."""
    if is_tall(X):
        inputs = stacked[:-1, stacked.shape[1] - X.shape[2] - 1 :]
        np.matmul(weights_for(X, sign, bias[None], weights), inputs, out=out)
        return
    n_t, width, n = out.shape
    Z = workspace.empty((n_t, n, width), out.dtype)
    project(X, weights * sign, bias * sign, Z)
    out[...] = Z.transpose(0, 2, 1)
