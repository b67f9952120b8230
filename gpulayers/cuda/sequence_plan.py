"""Recurrent layers of a planned step on a GPU: what comes before and after the way through time."""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.product import TILES, come_in_runs, gemm, share_terms, tiles_of
from gpulayers.cuda.table_sequence import KINDS
from gpulayers.ops._sequence import Trace, Weights

__all__ = ["PLACES", "input_grad", "prepare", "weight_grad", "weight_parts"]


class _Named(NamedTuple):
    """The names of a kind's parameters: its gates' weights, as `Weights.recurrent` has them, how
    many gates on `Weights.input` begins, and the biases as they come in `Weights.biases`."""

    weights: tuple[str, ...]
    shift: int
    biases: tuple[str, ...]


_NAMES = {
    "lstm": _Named(("Wf", "Wu", "Wc", "Wo"), 0, ("bf", "bu", "bc", "bo")),
    "gru": _Named(("Wz", "Wr", "Wn"), 2, ("bn", "bz", "br", "ba")),
}
#: the order of the gradients in a part of what `weight_grad` writes
PLACES = {
    "rnn": ("Waa", "Wax", "ba", "bx"),
    "lstm": ("Wf", "bf", "Wu", "bu", "Wc", "bc", "Wo", "bo"),
    "gru": ("Wz", "bz", "Wr", "br", "Wn", "bn", "ba"),
}
#: block of dZ of the bias that comes last, -1 for none
_EXTRA = {"rnn": 0, "lstm": -1, "gru": 3}


def prepare(
    kind: str, X: Array, parameters: dict[str, Array], time_first: bool = False
) -> tuple[Array, Weights]:
    """X (n_ex, n_in, n_t) with time first, if it is not so yet, and the parameters as a step uses
    them: one launch."""
    n, n_in, n_t = (X.shape[1], X.shape[2], X.shape[0]) if time_first else X.shape
    turned = X if time_first else cupy.empty((n_t, n, n_in), dtype=X.dtype)
    none = cupy.empty(0, dtype=X.dtype)
    if kind == "rnn":
        p = parameters
        weights = Weights(p["Waa"], p["Wax"], (p["ba"].reshape(-1), p["bx"].reshape(-1)))
        given, made, gates, shift = [none] * 8, [none] * 3, 1, 0
        h = total = 0
    else:
        names = _NAMES[kind]
        gates, shift = len(names.weights), names.shift
        h = parameters[names.weights[0]].shape[1]
        made = [
            cupy.empty(shape, dtype=X.dtype)
            for shape in ((h, gates * h), (n_in, gates * h), len(names.biases) * h)
        ]
        weights = Weights(made[0], made[1], (made[2],))
        given = [parameters[name] for name in names.weights] + [none] * (4 - gates)
        given += [parameters[name] for name in names.biases]
        total = sum(array.size for array in made)
    moved = 0 if time_first else X.size
    total += moved
    numbers = (total, moved, n, n_in, n_t, h, gates, shift)
    args = (X, *given, none if time_first else turned, *made, *numbers)
    launch_elements("sequence_prepare", X.dtype, total, args, table.index_for(total))
    return turned, weights


def _tile_suffix(h: int, n_in: int, dtype: Any) -> str:
    """That of the tile by which the parameters' gradients are worked out."""
    there = tiles_of("sequence_weight_grad", dtype, come_in_runs(dtype, h, n_in))
    return "_tensor" if "_tensor" in there else ""


def weight_parts(kind: str, trace: Trace) -> int:
    """In how many parts the parameters' gradients come."""
    n_t, n, n_in = trace.X.shape
    h, gates = trace.states[0].shape[2], KINDS[kind].gates
    tile = TILES[_tile_suffix(h, n_in, trace.X.dtype)]
    parts = share_terms(h + n_in + 1, gates * h, n_t * n, tile)
    span = -(-n_t * n // parts)
    return -(-n_t * n // span)


def weight_grad(kind: str, dZ: Array, trace: Trace, grads: Array) -> None:
    """The gradients of all parameters in one launch, by tensor cores as a dense layer's are.

    Parameters
    ----------
    dZ : (n_t, n_ex, blocks * n_out)
    grads : (parts, numbers of all parameters), of the type that sums have
        Filled in the order of `PLACES`; `weight_parts` of them.
    """
    n_t, n, n_in = trace.X.shape
    h, gates, extra = trace.states[0].shape[2], KINDS[kind].gates, _EXTRA[kind]
    arrays = (trace.states[0], trace.X, dZ)
    suffix = _tile_suffix(h, n_in, dZ.dtype)
    if any(array.data.ptr % table.VECTOR_BYTES for array in arrays):
        suffix = ""
    tile, parts = TILES[suffix], grads.shape[0]
    span = -(-n_t * n // parts)
    across = -(-h // tile.cols)
    down = -(-h // tile.rows) + -(-(n_in + 1) // tile.rows)
    tiles = (gates * down + (extra >= 0)) * across
    sizes = (n_t * n, h, n_in, span, parts, gates, dZ.shape[2] // h, kind == "gru", extra)
    args = (*arrays, grads, *sizes)
    launch("sequence_weight_grad" + suffix, dZ.dtype, (tiles * parts,), args, "int32")


def input_grad(dZ: Array, weights: Weights, trace: Trace) -> Array:
    """The gradient of the input, time first."""
    rows, width = dZ.reshape(-1, dZ.shape[2]), weights.input.shape[1]
    product: Any = gemm(rows[:, :width], weights.input, transpose_b=True)
    return product.reshape(trace.X.shape)
