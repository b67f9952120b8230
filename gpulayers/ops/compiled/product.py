"""Matrix products in C, but for those of large vectors, where BLAS is faster."""

from __future__ import annotations

import ctypes

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.compiled.library import DTYPES, bind, is_watched
from gpulayers.ops.cpu.product import CpuProduct

_product = bind("gl_product", "pinpinpnpiiii", ctypes.c_int)
_product_onto = bind("gl_product_onto", "pinpinpiiii", ctypes.c_int)
_two_products = bind("gl_two_products", "pppippiiii", ctypes.c_int)

# Few rows or columns: the product is bound by reading the other matrix once, and from so many
# multiplications on BLAS, which does not pack it, gains more than telling it its threads costs.
_FEW = 4
_MANY = 1 << 17
_NO_MEMORY = "matrix product: no memory for packed blocks"


class CompiledProduct(CpuProduct):
    """Overrides the matrix product."""

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        m, k = A.shape[::-1] if transpose_a else A.shape
        n = B.shape[0 if transpose_b else 1]
        if not worth_c(m, n, k) or A.dtype not in DTYPES or not _usable(A, B):
            return super().matmul(A, B, transpose_a, transpose_b)
        out = workspace.empty((m, n), A.dtype)
        product_into(A, B, out, transpose_a, transpose_b)
        return out

    def add_matmul(
        self, total: Array, A: Array, B: Array, transpose_a: bool, transpose_b: bool
    ) -> None:
        m, k = A.shape[::-1] if transpose_a else A.shape
        n = B.shape[0 if transpose_b else 1]
        if (
            total.shape != (m, n)
            or not worth_c(m, n, k)
            or A.dtype not in DTYPES
            or not _usable(total, A, B)
            or not total.flags.writeable
        ):
            super().add_matmul(total, A, B, transpose_a, transpose_b)
        elif _product_onto(
            A.dtype, A, _between_rows(A), transpose_a, B, _between_rows(B), transpose_b,
            total, _between_rows(total), m, n, k,
        ):  # fmt: skip
            raise MemoryError(_NO_MEMORY)


def worth_c(m: int, n: int, k: int) -> bool:
    """Whether C is taken for a product of these sizes."""
    return min(m, n) >= _FEW or m * n * k < _MANY or is_watched()


def _usable(*arrays: Array) -> bool:
    return all(array.flags.aligned for array in arrays)


def _between_rows(A: Array) -> int:
    """Numbers from the beginning of a row to that of the next."""
    return A.shape[1] if A.shape[0] < 2 else A.strides[0] // A.itemsize


def product_into(
    A: Array,
    B: Array,
    out: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    relu: bool = False,
) -> None:
    """Write op(A) op(B) + bias into `out`, op the transpose where asked for; then max(out, 0).

    Parameters
    ----------
    A : (m, k), or (k, m) with `transpose_a`; float32 or float64, native and aligned
    B : (k, n), or (n, k) with `transpose_b`
    out : (m, n)
        Shares no memory with the others. The rows of the three may lie apart, the numbers of a row
        may not.
    bias : (n,) or (1, n), C-contiguous, optional
    relu : bool

    Raises
    ------
    MemoryError
    """
    m, n = out.shape
    k = A.shape[0 if transpose_a else 1]
    if _product(
        A.dtype, A, _between_rows(A), transpose_a, B, _between_rows(B), transpose_b,
        bias, relu, out, _between_rows(out), m, n, k,
    ):  # fmt: skip
        raise MemoryError(_NO_MEMORY)


def two_products_into(A: Array, X: Array, B: Array, out_a: Array, out_x: Array) -> None:
    """Write A^T B and X^T B into `out_a` and `out_x`.

    Parameters
    ----------
    A : (k, m), X : (k, l), C-contiguous; float32 or float64, native and aligned
    B : (k, n)
        Its rows may lie apart.
    out_a : (m, n), out_x : (l, n), C-contiguous

    Raises
    ------
    MemoryError
    """
    (k, m), (n_in, n) = A.shape, out_x.shape
    if _two_products(A.dtype, A, X, B, _between_rows(B), out_a, out_x, m, n_in, n, k):
        raise MemoryError(_NO_MEMORY)
