"""Matrix products on a GPU by a kernel of our own: no cuBLAS, which CuPy refuses in a captured
stream, and what follows a product (bias, ReLU, its slope) in the same pass."""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.tune import Candidate, Key, choose
from gpulayers.errors import BackendError
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference import Reference

# Blocks share the terms of a sum where the product alone gives fewer than this many; a number of
# its own, not the device's, so that results are the same on every GPU.
_BLOCKS = 128
# terms that a block should have at least: fewer cost more bytes of partial sums
_LEAST_TERMS = 192
_NARROW, _WIDE = 16, 64
# and with fewer no candidate comes
_FEWEST_TERMS = 64
#: suffix of a kernel's name -> rows and columns of its tile
TILES = {"": (4096 // _WIDE, _WIDE), "_narrow": (4096 // _NARROW, _NARROW)}


def tile_of(name: str, dtype: Any, cols: int) -> str:
    """The suffix of the kernel for a product of `cols` columns, by rule."""
    return "_narrow" if cols <= _NARROW and "_narrow" in tiles_of(name, dtype) else ""


def tiles_of(name: str, dtype: Any) -> list[str]:
    """The suffixes of the kernels `name` that there are for a dtype."""
    specs = {suffix: table.KERNELS.get(name + suffix) for suffix in TILES}
    return [suffix for suffix, spec in specs.items() if spec and dtype.name in spec.dtypes]


def share_terms(rows: int, cols: int, terms: int, tile: tuple[int, int]) -> int:
    """How many blocks share the terms of a tile's sums, by rule."""
    tiles = -(-rows // tile[0]) * -(-cols // tile[1])
    return max(1, min(_BLOCKS // tiles, terms // _LEAST_TERMS))


def candidates(
    name: str, dtype: Any, rows: int, cols: int, terms: int, shared: bool = True
) -> list[Candidate]:
    """The ways to work out a product of `rows` x `terms` x `cols`, the rule's own first.

    Parameters
    ----------
    name : str
        Of the kernel, without the suffix of a tile.
    shared : bool
        Whether blocks can share the terms of a sum.
    """
    rule = tile_of(name, dtype, cols)
    found: list[Candidate] = []
    for suffix in sorted(tiles_of(name, dtype), key=lambda other: other != rule):
        tile = TILES[suffix]
        counts = [1]
        if shared:
            usual = share_terms(rows, cols, terms, tile)
            others = (n for n in (1, usual // 2, 2 * usual) if 0 < n <= terms // _FEWEST_TERMS)
            counts = [usual, *others]
        for count in counts:
            span = max(-(-terms // count), 1)
            found.append(Candidate(name + suffix, *tile, -(-terms // span) or 1, span))
    return list(dict.fromkeys(found))


def partial_sums(parts: int, rows: int, cols: int, like: Array) -> Array:
    """Room for the products of `parts` blocks; none for a single one."""
    return cupy.empty((parts, rows, cols) if parts > 1 else 0, dtype=sum_dtype(like))


def add_up(partial: Array, out: Array, bias: Array | None, relu: bool, mask: Array | None) -> None:
    """out = the sum of the partial products in their order, and what follows it."""
    none = cupy.empty(0, dtype=out.dtype)
    parts, cols = partial.shape[0], out.shape[-1]
    flags = (bias is not None, relu, mask is not None)
    args = (
        *(partial, none if bias is None else bias, none if mask is None else mask, out),
        *(out.size, parts, cols, *flags),
    )
    index = table.index_for(partial.size)
    launch_elements("sum_parts", out.dtype, out.size, args, index)


def gemm(
    A: Array,
    B: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    relu: bool = False,
    mask: Array | None = None,
    bias_row: bool = False,
) -> Array:
    """Return op(A) op(B), op the matrix or its transpose; rows may lie apart.

    Parameters
    ----------
    bias : (cols,), optional
        Added to every row.
    relu : bool
        Cut the result off at zero.
    mask : of the result's shape, optional
        The result counts only where this is positive: the way back through a ReLU.
    bias_row : bool
        One row more, the sums of op(B)'s columns.

    Raises
    ------
    BackendError
        If a side has more than 2**31 - 1025 lines.
    """
    rows, terms = A.shape[::-1] if transpose_a else A.shape
    cols = B.shape[0] if transpose_b else B.shape[1]
    rows += bias_row
    if max(rows, terms, cols) > table.INT32_LIMIT:
        raise BackendError(
            f"gemm: a product of {rows} x {terms} x {cols}, each may be {table.INT32_LIMIT} at most"
        )
    out = cupy.empty((rows, cols), dtype=A.dtype)
    if not out.size:
        return out
    key = Key(gemm_name(transpose_a, transpose_b), (rows, cols, terms), A.dtype.name)
    choice = choose(key, lambda: candidates("gemm", A.dtype, rows, cols, terms))
    parts = choice.parts
    partial = partial_sums(parts, rows, cols, A)
    none = cupy.empty(0, dtype=A.dtype)
    a, a_line = _laid_out(A)
    b, b_line = _laid_out(B)
    args = (
        *(a, b, none if bias is None else bias, none if mask is None else mask, out, partial),
        *(rows, cols, terms, choice.span),
        *((1, a_line) if transpose_a else (a_line, 1)),
        *((1, b_line) if transpose_b else (b_line, 1)),
        *(rows - 1 if bias_row else -1, bias is not None, relu, mask is not None),
    )
    grid = (-(-rows // choice.rows), -(-cols // choice.cols), parts)
    launch(choice.kernel, A.dtype, grid, args, "int32")
    if parts > 1:
        add_up(partial, out, bias, relu, mask)
    return out


def gemm_name(transpose_a: bool, transpose_b: bool) -> str:
    """Of the operation `gemm`, for `tune`: ``gemm_tn`` has the first matrix transposed."""
    return f"gemm_{'t' if transpose_a else 'n'}{'t' if transpose_b else 'n'}"


def dense_choice(batch: int, inputs: int, outputs: int, dtype: Any) -> Candidate:
    """The kernel of `dense_backward`, and in how many parts its sums over the batch come."""
    return choose(
        Key("dense_backward", (batch, inputs, outputs), dtype.name),
        lambda: candidates("dense_backward", dtype, inputs + 1, outputs, batch),
    )


def dense_backward(
    X: Array, W: Array, dZ: Array, grads: Array, masked: bool, inputs: bool
) -> Array | None:
    """The way back through a dense layer in one launch: the gradients of weight and bias, and that
    of the input if `inputs`.

    Parameters
    ----------
    grads : (parts, n_in + 1, n_out), of the arrays' dtype
        Filled with the gradient of the weight, the bias's below it, in the parts of `dense_choice`.
    masked : bool
        The input is the output of a ReLU: its gradient counts only where it is positive.
    """
    (batch, n_in), n_out = X.shape, dZ.shape[1]
    choice = dense_choice(batch, n_in, n_out, X.dtype)
    dX = cupy.empty(X.shape if inputs else 0, dtype=X.dtype)
    weight_blocks = -(-(n_in + 1) // choice.rows) * -(-n_out // choice.cols) * choice.parts
    input_blocks = -(-batch // choice.rows) * -(-n_in // choice.cols) if inputs else 0
    none = cupy.empty(0, dtype=X.dtype)
    args = (
        *(X, W, dZ, *((none, grads) if choice.parts > 1 else (grads, none)), dX),
        *(batch, n_in, n_out, choice.span, choice.parts, weight_blocks, masked),
    )
    launch(choice.kernel, X.dtype, (weight_blocks + input_blocks,), args, "int32")
    return dX if inputs else None


def _laid_out(A: Array) -> tuple[Array, int]:
    """The memory of a matrix as one contiguous array, and how far apart its rows start."""
    if A.flags.c_contiguous:
        return A, max(A.shape[1], 1)
    if not A.size or A.strides[1] != A.itemsize or A.strides[0] < A.shape[1] * A.itemsize:
        return cupy.ascontiguousarray(A), max(A.shape[1], 1)
    step = A.strides[0] // A.itemsize
    extent = (A.shape[0] - 1) * step + A.shape[1]
    return cupy.ndarray((extent,), dtype=A.dtype, memptr=A.data), step


class CudaProduct(Reference):
    """The product, and a dense layer's with what follows it."""

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        return gemm(A, B, transpose_a, transpose_b)

    def dense_forward(self, X: Array, W: Array, b: Array, relu: bool) -> Array:
        return gemm(X, W, bias=b, relu=relu)

    def dense_parts(self, batch: int, inputs: int, outputs: int, dtype: Any) -> int:
        """In how many parts `dense_backward` gives the gradients."""
        return dense_choice(batch, inputs, outputs, dtype).parts

    def dense_backward(
        self, X: Array, W: Array, dZ: Array, grads: Array, masked: bool, inputs: bool
    ) -> Array | None:
        """The function of that name, for a plan."""
        return dense_backward(X, W, dZ, grads, masked, inputs)
