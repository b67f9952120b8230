"""Steps of a recurrent network with the examples last in memory, (n_t, width, n), beside rows,
(n_t, n, width)."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.cpu import _blas
from gpulayers.ops.cpu._blocks import blocks
from gpulayers.ops.cpu.sequence import States, gradients, new_like, project

_LINE = 16  # rows that are turned at a time: what is written of each fills a line of the cache
_TALL = 8  # examples
_MANY = 256  # examples of one step that make a good product by themselves


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
    project(X, np.multiply(weights, sign, out=new_like(weights)), bias * sign, Z)
    out[...] = Z.transpose(0, 2, 1)


class Gradients:
    """Gradients of X and the weights, from dZ_t (columns, n) of every step; see `gradients`.

    Of few examples the dZ of all steps become rows, for one product. To turn many takes longer than
    to add up a product for each step.
    """

    def __init__(
        self, trace: Trace, weights: Weights, columns: int, params: bool, inputs: bool
    ) -> None:
        (n_t, n, _), dtype = trace.X.shape, trace.X.dtype
        self.trace, self.weights, self.wanted = trace, weights, (params, inputs)
        self.rows = self.dX = self.sums = None
        if n < _MANY:
            self.rows = workspace.empty((n_t, n, columns), dtype)
            return
        if inputs:
            self.dX = new_like(trace.X)
        if params:
            dW_a, dW_x = (workspace.zeros(W.shape, dtype) for W in weights[:2])
            self.sums = dW_a, dW_x, np.zeros(columns, dtype)

    def take(self, steps: slice, dZ: Array) -> None:
        """Count in dZ (steps, columns, n) of these steps."""
        if self.rows is not None:
            _blas.turn(dZ, self.rows[steps])
            return
        width = self.weights.input.shape[1]
        for t, d in zip(range(steps.start, steps.stop), dZ, strict=True):
            if self.dX is not None:
                np.matmul(d[:width].T, self.weights.input.T, out=self.dX[t])
            if self.sums is not None:
                dW_a, dW_x, db = self.sums
                _add_product(self.trace.states[0][t], d[len(d) - width :], dW_a)
                _add_product(self.trace.X[t], d[:width], dW_x)
                np.add(db, np.add.reduce(d, axis=1), out=db)

    def all(self, states: States) -> SequenceGradients:
        """All of them, with those of the first states."""
        if self.rows is not None:
            return gradients(self.trace, self.rows, self.weights, *self.wanted, states)
        grads = None
        if self.sums is not None:
            dW_a, dW_x, db = self.sums
            grads = Weights(dW_a, dW_x, (db,))
        return SequenceGradients(self.dX, grads, states)


def _add_product(rows: Array, d: Array, total: Array) -> None:
    """total += rows^T d^T, of (n, k) and (width, n)."""
    product = new_like(total)
    np.matmul(rows.T, d.T, out=product)
    np.add(total, product, out=total)
