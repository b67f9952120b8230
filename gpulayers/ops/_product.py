"""The matrix product, in the dtype of its operands."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace


def product(A: Array, B: Array) -> Array:
    """Return A B in the dtype of A (NumPy's product of bfloat16 matrices comes out as float32)."""
    if isinstance(A, np.ndarray) and A.dtype.kind == "f":
        return np.matmul(A, B, out=workspace.empty((A.shape[0], B.shape[1]), A.dtype))
    return (A @ B).astype(A.dtype, copy=False)


def batched_product(A: Array, B: Array) -> Array:
    """Return A[i] B[i] for every i, (m, n, k) times (m, k, p), in the dtype of A.

    Half types are multiplied and summed in float32: CuPy has no batched product of theirs.
    """
    if A.dtype.itemsize == 2:
        return (A.astype("float32") @ B.astype("float32")).astype(A.dtype)
    return A @ B
