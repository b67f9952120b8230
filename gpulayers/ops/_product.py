"""The matrix product, in the dtype of its operands."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.ops._kernels import kernels_for


def product(A: Array, B: Array) -> Array:
    """Return A B in the dtype of A, for matrices of one floating dtype.

    Transposed views (``X.T``) are multiplied as they lie in memory, and so are matrices whose rows
    lie apart.
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
        raise ShapeError(
            f"product: expected matrices (n, k) and (k, m), got shapes {A.shape} and {B.shape}"
        )
    if A.dtype != B.dtype:
        return _mixed(A, B).astype(A.dtype, copy=False)
    A, transpose_a = _as_it_lies(A)
    B, transpose_b = _as_it_lies(B)
    return kernels_for(A, B).matmul(A, B, transpose_a, transpose_b)


def _mixed(A: Array, B: Array) -> Array:
    """A B of two dtypes, in the one that holds both."""
    both = np.promote_types(A.dtype, B.dtype)
    return product(A.astype(both, copy=False), B.astype(both, copy=False))


def add_product(total: Array, A: Array, B: Array) -> None:
    """Add A B to `total`, a C-contiguous matrix of its shape, for operands as `product` takes them.

    Where an implementation can, without an array for A B.
    """
    fits = A.ndim == B.ndim == 2 and A.shape[1] == B.shape[0]
    if not fits or not A.dtype == B.dtype == total.dtype:
        total += product(A, B)
        return
    A, transpose_a = _as_it_lies(A)
    B, transpose_b = _as_it_lies(B)
    kernels_for(total, A, B).add_matmul(total, A, B, transpose_a, transpose_b)


def _as_it_lies(A: Array) -> tuple[Array, bool]:
    """`A`, or its transpose where that one has its rows in one piece, and whether it is that."""
    if A.flags.c_contiguous:
        return A, False
    if A.flags.f_contiguous:
        return A.T, True
    step = A.dtype.itemsize
    by_row, by_col = A.strides
    if by_col == step and by_row >= step * A.shape[1] and by_row % step == 0:
        return A, False
    if by_row == step and by_col >= step * A.shape[0] and by_col % step == 0:
        return A.T, True
    return A.copy(), False


def batched_product(A: Array, B: Array) -> Array:
    """Return A[i] B[i] for every i, (m, n, k) times (m, k, p), in the dtype of A, for arrays of one
    floating dtype. Views with the last two axes swapped are multiplied as they lie in memory."""
    transpose_a, transpose_b = _is_swapped(A), _is_swapped(B)
    A, B = A.swapaxes(1, 2) if transpose_a else A, B.swapaxes(1, 2) if transpose_b else B
    return kernels_for(A, B).batched_matmul(A, B, transpose_a, transpose_b)


def _is_swapped(A: Array) -> bool:
    return not A.flags.c_contiguous and A.swapaxes(1, 2).flags.c_contiguous
