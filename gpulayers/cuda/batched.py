"""Products of many pairs of matrices, those of a layer of attention, in one launch."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.cuda.product import come_in_runs, gemm, gemm_name, has_no_form, kernel_of, tile_of
from gpulayers.cuda.spec import MOST_BLOCKS
from gpulayers.cuda.table_tiles import REACH, TILES
from gpulayers.ops.reference import Reference

__all__ = ["CudaBatches", "batched_gemm"]


def batched_gemm(A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
    """Return op(A[i]) op(B[i]) for every i, op the matrix or its transpose: (m, rows, cols).

    Raises
    ------
    BackendError
        If a side has more than 2**31 - 1025 lines.
    """
    if has_no_form(transpose_a, transpose_b, A.dtype):
        B, transpose_b = B.swapaxes(1, 2), False
    A, B = cupy.ascontiguousarray(A), cupy.ascontiguousarray(B)
    (count, rows, terms), cols = A.shape, B.shape[1 if transpose_b else 2]
    if transpose_a:
        rows, terms = terms, rows
    out = cupy.empty((count, rows, cols), dtype=A.dtype)
    if not out.size:
        return out
    if count == 1 or max(rows, terms, cols) > min(REACH, table.INT32_LIMIT):
        for a, b, product in zip(A, B, out, strict=True):
            product[...] = gemm(a, b, transpose_a, transpose_b)
        return out
    name = f"batched_{gemm_name(transpose_a, transpose_b)}"
    runs = come_in_runs(A.dtype, A.shape[2], B.shape[2])
    suffix = tile_of(name, A.dtype, rows, cols, terms, False, runs)
    tile, kernel = TILES[suffix], kernel_of(name, suffix)
    if tile.runs:
        A, B = (x if x.data.ptr % table.VECTOR_BYTES == 0 else x.copy() for x in (A, B))
    tiles = (-(-rows // tile.rows), -(-cols // tile.cols))
    for first in range(0, count, MOST_BLOCKS[2]):
        part = slice(first, first + MOST_BLOCKS[2])
        args = (A[part], B[part], out[part], rows, cols, terms, transpose_a, transpose_b)
        launch(kernel, A.dtype, (*tiles, len(out[part])), args, "int32")
    return out


class CudaBatches(Reference):
    """Batches of products."""

    def batched_matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        return batched_gemm(A, B, transpose_a, transpose_b)
