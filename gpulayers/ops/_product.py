"""The matrix product, in the dtype of its operands."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops._kernels import kernels_for


def product(A: Array, B: Array) -> Array:
    """Return A B in the dtype of A, for matrices of one floating dtype.

    Transposed views (``X.T``) are multiplied as they lie in memory, and so are matrices whose rows
    lie apart.
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0] or A.dtype != B.dtype:
        return (A @ B).astype(A.dtype, copy=False)  # which says what is wrong with the shapes
    A, transpose_a = _as_it_lies(A)
    B, transpose_b = _as_it_lies(B)
    return kernels_for(A, B).matmul(A, B, transpose_a, transpose_b)


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
    """Return A[i] B[i] for every i, (m, n, k) times (m, k, p), in the dtype of A.

    Half types are multiplied and summed in float32: CuPy has no batched product of theirs.
    """
    if A.dtype.itemsize == 2:
        return (A.astype("float32") @ B.astype("float32")).astype(A.dtype)
    return A @ B
