"""Matrix products on NumPy, by BLAS with the library's number of threads."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.reference.product import ReferenceProduct
from gpulayers.threads import threaded_blas


class CpuProduct(ReferenceProduct):
    """One product is cut better by BLAS than by Python's threads, which wait for one another."""

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        if A.dtype.itemsize < 4:
            return super().matmul(A, B, transpose_a, transpose_b)
        left, right = A.T if transpose_a else A, B.T if transpose_b else B
        out = workspace.empty((left.shape[0], right.shape[1]), A.dtype)
        with threaded_blas():
            return np.matmul(left, right, out=out)
