"""The matrix product."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of
from gpulayers.ops import workspace


class ReferenceProduct:
    """The product of the array library."""

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        A, B = A.T if transpose_a else A, B.T if transpose_b else B
        xp = xp_of(A, B)
        if xp.__name__ == "numpy" and A.dtype.itemsize > 2:
            return xp.matmul(A, B, out=workspace.empty((A.shape[0], B.shape[1]), A.dtype))
        # NumPy's product of bfloat16 matrices comes out as float32
        return (A @ B).astype(A.dtype, copy=False)

    def add_matmul(
        self, total: Array, A: Array, B: Array, transpose_a: bool, transpose_b: bool
    ) -> None:
        total += self.matmul(A, B, transpose_a, transpose_b)

    def batched_matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        """Half types in float32: CuPy has no batched product of theirs."""
        A, B = A.swapaxes(1, 2) if transpose_a else A, B.swapaxes(1, 2) if transpose_b else B
        if A.dtype.itemsize == 2:
            return (A.astype("float32") @ B.astype("float32")).astype(A.dtype)
        return A @ B
