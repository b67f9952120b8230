"""The matrix product, in the dtype of its operands."""

from __future__ import annotations

from gpulayers.backend import Array


def product(A: Array, B: Array) -> Array:
    """Return A B in the dtype of A (NumPy's product of bfloat16 matrices comes out as float32)."""
    return (A @ B).astype(A.dtype, copy=False)
