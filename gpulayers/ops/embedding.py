"""Rows of a table by their number, and the sum of rows that share a number: one is the adjoint of
the other.

Source: Bengio et al., "A neural probabilistic language model" (2003), section 2 (the matrix C).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from gpulayers.backend import Array, xp_of
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for


def embedding_forward(W: Array, ids: Array) -> Array:
    """Y[i] = W[ids[i]].

    Parameters
    ----------
    W : (count, width), floating, count >= 1
    ids : any shape, integer, 0 <= id < count

    Returns
    -------
    Y : (*ids.shape, width), a new array

    Raises
    ------
    ParameterError
        For an id out of range, on NumPy. On a GPU looking would make the host wait: there the rows
        of such ids are NaN.
    ShapeError, DTypeError, BackendError
    """
    name = "embedding_forward"
    check.rank(name, "W", W, 2, "(count, width)")
    if not W.shape[0]:
        raise ShapeError(f"{name}: W needs at least one row, got shape {W.shape}")
    flat = _flat_ids(name, ids, W.shape[0])
    check.one_library(name, W, flat)
    (W,) = check.same_float(name, W=W)
    return kernels_for(W, flat).embedding_forward(W, flat).reshape(*ids.shape, W.shape[1])


def embedding_backward(dY: Array, ids: Array, count: int) -> Array:
    """dW[k] = sum of dY[i] over all i with ids[i] = k: an id that occurs twice counts twice.

    The order of the additions is fixed by the ids, so the result is the same in every run.

    Parameters
    ----------
    dY : (*ids.shape, width), floating
    ids : any shape, integer
    count : int
        Rows of dW.

    Returns
    -------
    dW : (count, width)

    Raises
    ------
    ParameterError
        For an id out of range, on NumPy; on a GPU such ids are left out.
    ShapeError, DTypeError, BackendError
    """
    name = "embedding_backward"
    flat = _flat_ids(name, ids, count)
    check.array(name, "dY", dY)
    if dY.ndim != ids.ndim + 1 or dY.shape[:-1] != ids.shape:
        raise ShapeError(
            f"{name}: dY must have shape (*{ids.shape}, width) for ids {ids.shape}, got {dY.shape}"
        )
    check.one_library(name, dY, flat)
    (dY,) = check.same_float(name, dY=dY)
    rows = dY.reshape(flat.size, dY.shape[-1])
    return kernels_for(rows, flat).embedding_backward(rows, flat, count)


def segments(counts: Sequence[int], xp: ModuleType) -> Array:
    """Return 0 ``counts[0]`` times, 1 ``counts[1]`` times, ...: the example of each joined id."""
    return xp.asarray(np.repeat(np.arange(len(counts)), counts))


def _flat_ids(name: str, ids: Array, count: int) -> Array:
    """`ids` as a vector of int64."""
    check.array(name, "ids", ids)
    if ids.dtype.kind not in "iu":
        raise DTypeError(f"{name}: ids must be integers, got {ids.dtype}")
    if xp_of(ids) is np and ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise ParameterError(f"{name}: ids must be in 0..{count - 1}, got {ids.min()}..{ids.max()}")
    return ids.reshape(-1).astype(np.int64, copy=False)
