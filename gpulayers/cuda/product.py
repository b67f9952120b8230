"""Matrix products on a GPU by a kernel of our own: no cuBLAS, which CuPy refuses in a captured
stream, and what follows a product (bias, activation or the slope of one) in the same pass."""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import precision, table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.fusible import RELU, Formula, constants
from gpulayers.cuda.table_tiles import FORMS, REACH, TILES, Tile
from gpulayers.cuda.tune import Candidate, Key, choose, switched_on
from gpulayers.errors import BackendError
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference import Reference

# Blocks share the terms of a sum where the product alone gives fewer than this many; a number of
# its own, not the device's, so that results are the same on every GPU.
_BLOCKS = 128
# terms that a block should have at least: fewer cost more bytes of partial sums
_LEAST_TERMS = 192
# A plain tile goes over its terms one small stage after the other, each of which waits for memory.
# So where blocks share a sum at all (it may take one launch more), and of few numbers, more of them
# do; and of sums of very many terms as many as multiprocessors have room for.
_LEAST_PLAIN, _FEW_NUMBERS = 64, 1 << 16
_MANY_TERMS, _BESIDE = 1024, 3
# and with fewer no candidate comes
_FEWEST_TERMS = 64
# columns up to which the narrow tile wins, and up to which one of 64 columns does
_NARROW, _WIDE = 16, 64
# columns up to which one of 32 columns wins on tensor cores
_SLENDER = 32
# times more that a larger tile may cover than the smaller one; the slender one asks for more runs
# of its factors, so it has to cover less
_WORTH = {"_tensor_tall": 0.9}
_USUAL_WORTH = 1.25
# 1: products by warpgroups are candidates; they have not met a device, and a fault of theirs would
# end the process
WARPGROUPS_TRIED = "GPULAYERS_WARPGROUPS"
# spans of terms are cut in whole runs, of which a half type's is the longest
_RUN = 8


def tile_of(
    name: str, dtype: Any, rows: int, cols: int, terms: int, shared: bool, runs: bool
) -> str:
    """The suffix of the kernel for a product of `rows` x `terms` x `cols`, by rule.

    Half types go to tensor cores, and float32 within ``use_precision("tf32")``, if the factors
    come in `runs` and the device has such. Other float32 products of 16 columns at most have a tile
    of 256 x 16. A tile of 128 x 128 or 256 x 64 (of 256 x 32 for up to 32 columns on
    tensor cores) is taken where there are enough of them, shared as they may be, to keep a large
    GPU busy, and where not much more of them hangs over than of the smaller one; else that.
    """
    there = tiles_of(name, dtype, runs)
    cores = "_tensor" in there
    if not cores and cols <= _NARROW and "_narrow" in there:
        return "_narrow"
    small = "_tensor" if cores else ""
    if cores and cols <= _SLENDER:
        suffix = "_tensor_tall"
    elif cols > _WIDE:
        suffix = "_tensor_large" if cores else "_large"
    else:
        suffix = "_tensor" if cores else "_tall"
    if suffix not in there:
        return small
    tile = TILES[suffix]
    busy = _blocks(rows, cols, terms, tile, shared) >= _BLOCKS
    full = _extent(rows, cols, tile) <= _worth(suffix) * _extent(rows, cols, TILES[small])
    return suffix if busy and full else small


def tiles_of(name: str, dtype: Any, runs: bool) -> list[str]:
    """The suffixes of the kernels `name` that there are for a dtype, here and now.

    Raises
    ------
    BackendError
        If the precision is one that the device does not have.
    ParameterError
        If ``GPULAYERS_WARPGROUPS`` is neither 0 nor 1.
    """
    cores = precision.takes_tensor_cores(name, dtype)
    return [
        suffix
        for suffix, tile in TILES.items()
        if (spec := table.KERNELS.get(kernel_of(name, suffix))) is not None
        and spec.runs_on(precision.capability())
        and (not tile.only or switched_on(WARPGROUPS_TRIED))
        and dtype.name in tile.dtypes
        and (cores or not tile.tensor)
        and (runs or not tile.runs)
    ]


def kernel_of(name: str, suffix: str) -> str:
    """The kernel of a tile; `name` may be one of `gemm_name`'s, which are one kernel but for tensor
    cores."""
    base = name[: -len("_nn")]
    one = base in ("gemm", "batched_gemm") and not TILES[suffix].tensor
    return (base if one else name) + suffix


def come_in_runs(dtype: Any, *sizes: int) -> bool:
    """Whether lines of these lengths are whole runs of 16 bytes."""
    return all(size * dtype.itemsize % table.VECTOR_BYTES == 0 for size in sizes)


def aligned(choice: Candidate, *arrays: Array) -> tuple[Array, ...]:
    """The arrays at addresses as the kernel wants them: copies of those that lie elsewhere."""
    if not table.KERNELS[choice.kernel].runs:
        return arrays
    return tuple(a if a.data.ptr % table.VECTOR_BYTES == 0 else a.copy() for a in arrays)


def named_precision(dtype: Any) -> str:
    """The `precision` of a `Key`: what float32 is multiplied in, where that is not float32."""
    now = precision.current()
    return now if dtype.name == "float32" and now != precision.PRECISIONS[0] else ""


def _worth(suffix: str) -> float:
    """How much of the smaller tile's extent a larger one may have."""
    return _WORTH.get(suffix, _USUAL_WORTH)


def _extent(rows: int, cols: int, tile: Tile) -> int:
    """The numbers of the tiles that cover a product."""
    return -(-rows // tile.rows) * tile.rows * -(-cols // tile.cols) * tile.cols


def _blocks(rows: int, cols: int, terms: int, tile: Tile, shared: bool) -> int:
    """How many blocks could work on a product."""
    tiles = -(-rows // tile.rows) * -(-cols // tile.cols)
    return tiles * max(1, terms // _LEAST_TERMS) if shared else tiles


def share_terms(rows: int, cols: int, terms: int, tile: Tile) -> int:
    """How many blocks share the terms of a tile's sums, by rule."""
    tiles = -(-rows // tile.rows) * -(-cols // tile.cols)
    usual = max(1, min(_BLOCKS // tiles, terms // _LEAST_TERMS))
    if tile.tensor or tile.runs or terms < 2 * _LEAST_TERMS:
        return usual
    short = min(_BLOCKS // tiles, terms // _LEAST_PLAIN, _FEW_NUMBERS // max(1, rows * cols))
    return max(usual, short, min(_BESIDE * _BLOCKS // tiles, terms // _MANY_TERMS))


def tile_of_both(
    name: str, dtype: Any, one: tuple[int, int, int], other: tuple[int, int, int], runs: bool
) -> str:
    """As `tile_of`, for two products (rows, cols, terms) in one launch by the same tile; blocks can
    share the terms of `one`, and `other` may have no rows."""
    there = tiles_of(name, dtype, runs)
    small = "_tensor" if "_tensor" in there else ""
    widest = max(p[1] for p in (one, other) if p[0])
    if not small and "_narrow" in there and widest <= _NARROW:
        return "_narrow"

    def covered(suffix: str) -> int:
        return sum(_extent(*p[:2], TILES[suffix]) * p[2] for p in (one, other))

    for suffix in ("_tensor_tall", "_tensor_large") if small else ("_large", "_tall"):
        if suffix not in there:
            continue
        blocks = sum(_blocks(*p, TILES[suffix], p is one) for p in (one, other))
        if blocks >= _BLOCKS and covered(suffix) <= _worth(suffix) * covered(small):
            return suffix
    return small


def candidates(
    name: str,
    dtype: Any,
    rows: int,
    cols: int,
    terms: int,
    shared: bool = True,
    runs: bool = False,
    rule: str | None = None,
) -> list[Candidate]:
    """The ways to work out a product of `rows` x `terms` x `cols`, the rule's own first.

    Parameters
    ----------
    name : str
        Of the kernel, without the suffix of a tile; of `gemm` with its form (`gemm_name`).
    shared : bool
        Whether blocks can share the terms of a sum.
    runs : bool
        Whether both factors come in whole runs of 16 bytes (`come_in_runs`).
    rule : str, optional
        The suffix of the rule's own, if it is not `tile_of`'s.
    """
    if rule is None:
        rule = tile_of(name, dtype, rows, cols, terms, shared, runs)
    found: list[Candidate] = []
    for suffix in sorted(tiles_of(name, dtype, runs), key=lambda other: other != rule):
        tile = TILES[suffix]
        counts = [1]
        if shared:
            usual = share_terms(rows, cols, terms, tile)
            others = (1, usual // 2, 2 * usual, 4 * usual)
            counts = [usual, *(n for n in others if 0 < n <= terms // _FEWEST_TERMS)]
        for count in counts:
            span = max(-(-terms // count), 1)
            if count > 1:
                span = -(-span // _RUN) * _RUN
            parts = -(-terms // span) or 1
            found.append(Candidate(kernel_of(name, suffix), tile.rows, tile.cols, parts, span))
    return list(dict.fromkeys(found))


def partial_sums(parts: int, rows: int, cols: int, like: Array) -> Array:
    """Room for the products of `parts` blocks; none for a single one."""
    return cupy.empty((parts, rows, cols) if parts > 1 else 0, dtype=sum_dtype(like))


def add_up(
    partial: Array,
    out: Array,
    bias: Array | None = None,
    act: Formula | None = None,
    mask: Array | None = None,
    before: Formula = RELU,
) -> None:
    """out = the sum of the partial products in their order, and what follows it, as `gemm` has
    it."""
    none = cupy.empty(0, dtype=out.dtype)
    parts, cols = partial.shape[0], out.shape[-1]
    flags = (bias is not None, act is not None, mask is not None)
    args = (
        *(partial, none if bias is None else bias, none if mask is None else mask, out),
        *(out.size, parts, cols, *flags),
    )
    index = table.index_for(partial.size)
    fused = constants(act if mask is None else before)
    launch_elements("sum_parts", out.dtype, out.size, args, index, fused)


def gemm(
    A: Array,
    B: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    act: Formula | None = None,
    mask: Array | None = None,
    bias_row: bool = False,
    before: Formula = RELU,
) -> Array:
    """Return op(A) op(B), op the matrix or its transpose; rows may lie apart.

    Parameters
    ----------
    bias : (cols,), optional
        Added to every row.
    act : Formula, optional
        The activation of the result; not with `mask`.
    mask : of the result's shape, optional
        What the activation `before` gave: the result is multiplied by the slope that this tells.
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
    if cols > REACH:
        for first in range(0, cols, REACH):
            part = slice(first, first + REACH)
            out[:, part] = gemm(
                *(A, B[part] if transpose_b else B[:, part], transpose_a, transpose_b),
                *(None if bias is None else bias[part], act),
                *(None if mask is None else cupy.ascontiguousarray(mask[:, part]), bias_row),
                before,
            )
        return out
    name = gemm_name(transpose_a, transpose_b)
    if has_no_form(transpose_a, transpose_b, A.dtype):
        B, transpose_b = cupy.ascontiguousarray(B.T), False
        name = gemm_name(transpose_a, transpose_b)
    a, a_line = _laid_out(A)
    b, b_line = _laid_out(B)
    # with rows in one piece that is told by the shape
    lines = come_in_runs(A.dtype, A.shape[1], B.shape[1])
    runs = lines and come_in_runs(A.dtype, a_line, b_line)
    choice = choose(
        Key(
            *(name, (rows, cols, terms), A.dtype.name),
            *(() if runs == lines else (int(runs),), named_precision(A.dtype)),
        ),
        lambda: candidates(name, A.dtype, rows, cols, terms, runs=runs),
    )
    parts = choice.parts
    a, b = aligned(choice, a, b)
    partial = partial_sums(parts, rows, cols, A)
    none = cupy.empty(0, dtype=A.dtype)
    args = (
        *(a, b, none if bias is None else bias, none if mask is None else mask, out, partial),
        *(rows, cols, terms, choice.span),
        *((1, a_line) if transpose_a else (a_line, 1)),
        *((1, b_line) if transpose_b else (b_line, 1)),
        *(rows - 1 if bias_row else -1, bias is not None, act is not None, mask is not None),
    )
    grid = (-(-rows // choice.rows), -(-cols // choice.cols), parts)
    # with several parts it is `add_up` that goes on
    fused = constants(act if mask is None else before) if parts == 1 else ""
    launch(choice.kernel, A.dtype, grid, args, "int32", fused)
    if parts > 1:
        add_up(partial, out, bias, act, mask, before)
    return out


def has_no_form(transpose_a: bool, transpose_b: bool, dtype: Any) -> bool:
    """Whether tensor cores would have to multiply matrices that lie in a way (`FORMS`) for which
    there are no kernels."""
    name = gemm_name(transpose_a, transpose_b)
    turned = name.removeprefix("gemm") not in FORMS and dtype.name in TILES["_tensor"].dtypes
    return turned and precision.takes_tensor_cores(name, dtype)


def gemm_name(transpose_a: bool, transpose_b: bool) -> str:
    """Of the operation `gemm`, for `tune`: ``gemm_tn`` has the first matrix transposed."""
    return f"gemm_{'t' if transpose_a else 'n'}{'t' if transpose_b else 'n'}"


def dense_choice(batch: int, inputs: int, outputs: int, dtype: Any) -> Candidate:
    """The kernel of `dense_backward`, and in how many parts its sums over the batch come."""
    runs = come_in_runs(dtype, inputs, outputs)
    return choose(
        Key("dense_backward", (batch, inputs, outputs), dtype.name, (), named_precision(dtype)),
        lambda: candidates("dense_backward", dtype, inputs + 1, outputs, batch, runs=runs),
    )


def dense_backward(
    X: Array, W: Array, dZ: Array, grads: Array, before: Formula | None, inputs: bool
) -> Array | None:
    """The way back through a dense layer in one launch: the gradients of weight and bias, and that
    of the input if `inputs`.

    Parameters
    ----------
    grads : (parts, n_in + 1, n_out), of the dtype of sums
        Filled with the gradient of the weight, the bias's below it, in the parts of `dense_choice`.
    before : Formula, optional
        The input is the output of this activation: its gradient is multiplied by the slope.
    """
    (batch, n_in), n_out = X.shape, dZ.shape[1]
    choice = dense_choice(batch, n_in, n_out, X.dtype)
    X, W, dZ = aligned(choice, X, W, dZ)
    dX = cupy.empty(X.shape if inputs else 0, dtype=X.dtype)
    weight_blocks = -(-(n_in + 1) // choice.rows) * -(-n_out // choice.cols) * choice.parts
    input_blocks = -(-batch // choice.rows) * -(-n_in // choice.cols) if inputs else 0
    args = (
        *(X, W, dZ, grads, dX),
        *(batch, n_in, n_out, choice.span, choice.parts, weight_blocks, before is not None),
    )
    fused = constants(before if inputs else None)
    launch(choice.kernel, X.dtype, (weight_blocks + input_blocks,), args, "int32", fused)
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
        return gemm(X, W, bias=b, act=RELU if relu else None)

    def dense_step(self, X: Array, W: Array, b: Array, act: Formula | None) -> Array:
        """`dense_forward` with any activation that is told by its value, for a plan."""
        return gemm(X, W, bias=b, act=act)

    def dense_parts(self, batch: int, inputs: int, outputs: int, dtype: Any) -> int:
        """In how many parts `dense_backward` gives the gradients."""
        return dense_choice(batch, inputs, outputs, dtype).parts

    dense_backward = staticmethod(dense_backward)
