"""What passes between a recurrent layer and the operations over whole sequences. Time comes first.

Sequences (n_t, n_ex, ch) may lie in memory by unit, which is (ch, n_t, n_ex): see `by_unit`. k is
the number of products of a step: 1 for a simple network, 4 for an LSTM, 3 for a GRU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpulayers.backend import Array

SIDE_BY_SIDE: type[Any] = np.ndarray  # how all steps are kept at once; one by one they are a list


class Weights(NamedTuple):
    """The parameters as a step uses them, or their gradients."""

    recurrent: Array  # (n_out, k * n_out)
    input: Array  # (n_in, k * n_out)
    biases: tuple[Array, ...]


class Trace(NamedTuple):
    """What a pass over sequences leaves for the way back."""

    X: Array  # (n_t, n_ex, n_in)
    mask: Array | None  # (n_t, n_ex, 1) bool
    states: tuple[Array, ...]  # (n_t + 1, n_ex, n_out) each: before the first step, after each
    kept: tuple[Any, ...]  # one item a step each, or None; what they are depends on the kind
    own: Any = None  # what the implementation that went ahead has at hand besides, for itself alone


class SequenceGradients(NamedTuple):
    """What the way back gives; None where it was not wanted."""

    X: Array | None  # (n_t, n_ex, n_in)
    weights: Weights | None
    states: tuple[Array, ...]  # (n_ex, n_out) each, of the states before the first step


def by_unit(X: Array) -> Array | None:
    """(n_t, n_ex, ch) seen as (ch, n_t, n_ex), if each unit's numbers lie together in memory.

    NumPy's networks with gates compute with the examples last, and from there a batch of sequences
    (n_ex, ch, n_t) is one matrix turned around. Of one unit or one example, both may be said.
    """
    if not isinstance(X, SIDE_BY_SIDE) or not X.size:
        return None
    units: Array = X.transpose(2, 0, 1)
    flags = units[0].flags
    return units if flags.c_contiguous and flags.aligned and X.dtype.isnative else None
