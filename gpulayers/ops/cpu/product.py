"""Matrix products on NumPy, their rows or columns cut for the threads."""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.reference.product import ReferenceProduct
from gpulayers.threads import run_shares, shares, single_threaded_blas

_SHARE = 1 << 21  # multiplications that are worth a thread
_LINES = 16  # rows or columns below which a share's product is too thin


class CpuProduct(ReferenceProduct):
    """BLAS at one thread for each share: its own threads go on looking for work after a product,
    on the cores of what comes next."""

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        if A.dtype.itemsize < 4:
            return super().matmul(A, B, transpose_a, transpose_b)
        left, right = A.T if transpose_a else A, B.T if transpose_b else B
        (m, k), n = left.shape, right.shape[1]
        out = workspace.empty((m, n), A.dtype)
        lines = max(m, n)
        grain = max(_LINES, -(-_SHARE // max(1, min(m, n) * k)))
        parts = shares(lines, grain)
        if len(parts) == 1:
            with single_threaded_blas():
                return np.matmul(left, right, out=out)

        def work(_: int, part: slice) -> None:
            if m >= n:
                np.matmul(left[part], right, out=out[part])
            else:
                np.matmul(left, right[:, part], out=out[:, part])

        run_shares(work, parts)
        return out
