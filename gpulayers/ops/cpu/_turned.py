"""Steps of a recurrent network with the examples last in memory: a step is then (width, n).

Three ways to lie: rows (n_t, n, width), as others see all of them; turned (n_t, width, n), where a
step is one piece of memory, so that NumPy and BLAS are fast in it; and by unit (width, n_t, n),
where all steps are one matrix, for the products of all of them at once. From the second to the
third, n numbers are copied at a time (`lines`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpulayers import threads
from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights, by_unit
from gpulayers.ops.cpu import _blas
from gpulayers.ops.cpu.sequence import TALL, States, new_like, project

_LONG = 64  # examples that NumPy goes over at their place
_MANY = 256  # examples of one step that make a good product by themselves


class Own(NamedTuple):
    """What the pass ahead has at hand besides what is shown."""

    operands: Array  # [A_{t-1}, 1, X_t] by unit, (h + 1 + n_in, n_t + 1, n); X's last step is void
    products: Array | None  # LSTM: [G_f C_{t-1}, G_u C~], (n_t, 2 h, n)


def turned(rows: Array) -> Array:
    """Rows (n_t, n, width) as (n_t, width, n), a copy unless they lie like that."""
    view = rows.transpose(0, 2, 1)
    if view[:1].flags.c_contiguous:
        return view
    out = workspace.empty(view.shape, view.dtype)
    out[...] = view
    return out


def steps_of(rows: Array) -> Array:
    """Rows (n_t, n, width) as (n_t, width, n), a step of which may be lines that lie apart."""
    units = by_unit(rows)
    if units is None:
        return turned(rows)
    if units.shape[2] >= _LONG:
        return units.transpose(1, 0, 2)
    width, n_t, n = units.shape
    out = workspace.empty((n_t, width, n), rows.dtype)
    lines(out)[...] = lines(units).T
    return out


def as_rows(array: Array) -> Array:
    """(n_t, width, n) seen as rows."""
    return array.transpose(0, 2, 1)


def lines(array: Array) -> Array:
    """(a, b, n) seen as (a, b), an item of raw bytes for each n numbers that lie side by side."""
    item = np.dtype((np.void, array.shape[2] * array.itemsize))
    return array.view(item)[:, :, 0]


def operands(X: Array, h: int) -> Array:
    """[A_{t-1}, 1, X_t] of every step, (n_t + 1, h + 1 + n_in, n), the states yet to be filled."""
    n_t, n, n_in = X.shape
    stacked = workspace.empty((n_t + 1, h + 1 + n_in, n), X.dtype)
    stacked[:, h] = 1
    units = by_unit(X)
    if units is None:
        stacked[:-1, h + 1 :] = X.transpose(0, 2, 1)
    else:
        lines(stacked)[:-1, h + 1 :] = lines(units).T
    return stacked


def operands_by_unit(stacked: Array) -> Array:
    """The operands of all steps as `Own` has them."""
    n_t, width, n = stacked.shape
    out = workspace.empty((width, n_t, n), stacked.dtype)
    if out.size:
        lines(out)[...] = lines(stacked).T
    return out


def units_as_rows(units: Array) -> Array:
    """(width, n_t, n) seen as rows."""
    return units.transpose(1, 2, 0)


def is_tall(X: Array) -> bool:
    """Whether there are examples enough for going over all weights in every step."""
    return X.shape[1] >= TALL


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
    _blas.turn(rows[None], W[None])
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
    """Gradients of X and the weights, from dZ_t (columns, n) of every step.

    As of a fully connected layer on [A_{t-1}, 1, X_t]. A GRU has dZ = [n, z, r, M]: the first three
    blocks are the input's, the last three the state's. The dZ of all steps are kept by unit, for
    one product; of many examples a product for each step is as good, and nothing need be kept.
    """

    def __init__(
        self, trace: Trace, weights: Weights, columns: int, params: bool, inputs: bool
    ) -> None:
        (n_t, n, n_in), dtype = trace.X.shape, trace.X.dtype
        self.h, self.width = weights.recurrent.shape
        self.W = weights.input
        self.dX = workspace.empty((n_in, n_t, n), dtype) if inputs else None
        self.dZ = workspace.empty((columns, n_t, n), dtype) if n < _MANY else None
        self.pieces: list[tuple[Array, slice, Array]] = []  # operands, columns of dZ, their product
        if not params:
            return
        own = trace.own.operands if isinstance(trace.own, Own) else _operands_of(trace)
        places = [(own, slice(0, columns))]
        if columns > self.width:
            state = slice(columns - self.width, columns)
            places = [(own[: self.h + 1], state), (own[self.h :], slice(0, self.width))]
        for operand, part in places:
            total = workspace.zeros((len(operand), part.stop - part.start), dtype)
            self.pieces.append((operand, part, total))

    def take(self, steps: slice, dZ: Array) -> None:
        """Count in dZ (steps, columns, n) of these steps."""
        if self.dZ is not None:
            if dZ.size:
                lines(self.dZ)[:, steps] = lines(dZ).T
            return
        products = [new_like(total) for _, _, total in self.pieces]
        for t, d in zip(range(steps.start, steps.stop), dZ, strict=True):
            if self.dX is not None:
                np.matmul(self.W, d[: self.width], out=self.dX[:, t])
            for (operand, part, total), product in zip(self.pieces, products, strict=True):
                np.matmul(operand[:, t], d[part].T, out=product)
                np.add(total, product, out=total)

    def all(self, states: States) -> SequenceGradients:
        """All of them, with those of the first states."""
        if self.dZ is not None:
            all_steps = self.dZ.reshape(len(self.dZ), -1)
            with threads.threaded_blas():
                if self.dX is not None:
                    dX = self.dX.reshape(len(self.dX), -1)
                    np.matmul(self.W, all_steps[: self.width], out=dX)
                for operand, part, total in self.pieces:
                    rows = operand.reshape(len(operand), -1)[:, : all_steps.shape[1]]
                    np.matmul(rows, all_steps[part].T, out=total)
        dX = None if self.dX is None else units_as_rows(self.dX)
        return SequenceGradients(dX, self._of_weights(), states)

    def _of_weights(self) -> Weights | None:
        totals, h = [total for _, _, total in self.pieces], self.h
        if not totals:
            return None
        if len(totals) == 1:
            return Weights(totals[0][:h], totals[0][h + 1 :], (totals[0][h],))
        state, inputs = totals
        return Weights(state[:h], inputs[1:], (np.concatenate([inputs[0], state[h, -h:]]),))


def _operands_of(trace: Trace) -> Array:
    """The operands by unit of a pass that kept none."""
    (n_t, n, n_in), A = trace.X.shape, trace.states[0]
    h = A.shape[2]
    out = workspace.empty((h + 1 + n_in, n_t, n), trace.X.dtype)
    out[:h], out[h], out[h + 1 :] = A[:-1].transpose(2, 0, 1), 1, trace.X.transpose(2, 0, 1)
    return out
