"""Rows of a table by their number, and the sums of rows that share a number, on a GPU."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.ops.reference import Reference

# the sums compare every two ids, 32 at a time; from here on sorting them first is less work
_MOST_COMPARED = 8192
_WARP = 32


class CudaEmbedding(Reference):
    """The sums of up to 8192 rows are one kernel without sorting, so that they fit in a captured
    stream; for more, whose pairs are many, the reference's sort and scan."""

    def embedding_forward(self, W: Array, ids: Array) -> Array:
        count, width = W.shape
        Y = cupy.empty((ids.size, width), dtype=W.dtype)
        args = (W, cupy.ascontiguousarray(ids), Y, Y.size, width, count)
        index = table.index_for(Y.size, W.size)
        launch_elements("embedding_forward", W.dtype, Y.size, args, index)
        return Y

    def embedding_backward(self, dY: Array, ids: Array, count: int) -> Array:
        if ids.size > _MOST_COMPARED:
            return super().embedding_backward(dY, ids, count)
        n, width = dY.shape
        dW = cupy.zeros((count, width), dtype=dY.dtype)
        if dY.size:
            # the columns along x, where a grid has room for any number of blocks
            grid = (-(-width // _WARP), -(-n * _WARP // table.KERNELS["embedding_backward"].block))
            args = (dY, cupy.ascontiguousarray(ids), dW, n, width, count)
            index = table.index_for(dY.size, dW.size)
            launch("embedding_backward", dY.dtype, grid, args, index)
        return dW
