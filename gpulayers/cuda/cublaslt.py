"""Matrix products by NVIDIA's cuBLASLt, for the engine "cublaslt": large dense layers only.

Unlike the cuBLAS of CuPy it fits in a captured stream: the handle is our own, the stream is given
with each call, and the workspace comes from CuPy's current memory pool like any temporary array.

Source: cuBLAS documentation, "Using the cuBLASLt API"; numbers of the attributes as in cublasLt.h.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from ctypes import byref, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from typing import Any, NamedTuple

import cupy

from gpulayers.backend import Array
from gpulayers.cuda.product import _laid_out, named_precision
from gpulayers.errors import BackendError

__all__ = ["load", "matmul", "serves"]

#: multiplications from which a product is given to cuBLASLt; smaller ones are bound by launches
LEAST = 1 << 27
#: bytes that an algorithm may take besides: NVIDIA recommends 32 MiB for Hopper
WORKSPACE = 32 << 20

#: dtype -> (cudaDataType_t, cublasComputeType_t, cudaDataType_t of the scale)
_R_32F, _R_64F, _R_16F, _R_16BF = 0, 1, 2, 14
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_TF32 = 68, 70, 77
_TYPES = {
    "float32": (_R_32F, _COMPUTE_32F, _R_32F),
    "float64": (_R_64F, _COMPUTE_64F, _R_64F),
    "float16": (_R_16F, _COMPUTE_32F, _R_32F),
    "bfloat16": (_R_16BF, _COMPUTE_32F, _R_32F),
}
_OP_N, _OP_T = 0, 1
_DESC_TRANSA, _DESC_TRANSB = 3, 4
_PREF_WORKSPACE, _PREF_REDUCTION, _PREF_ALIGNMENT = 1, 3, (5, 6, 7, 8)
# all ways to add up the parts of a sum but INPLACE, whose order differs from run to run
_REDUCTION = 7 & ~1
_ALIGNED = 16


class _Algo(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", _Algo),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (pointer,),
    "cublasLtMatmulDescCreate": (pointer, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (pointer, c_int, pointer, c_size_t),
    "cublasLtMatrixLayoutCreate": (pointer, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatmulPreferenceCreate": (pointer,),
    "cublasLtMatmulPreferenceSetAttribute": (pointer, c_int, pointer, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (pointer,),
    "cublasLtMatmulAlgoGetHeuristic": (*(pointer,) * 7, c_int, pointer, pointer),
    "cublasLtMatmul": (*(pointer,) * 14, c_size_t, pointer),
}


class _Plan(NamedTuple):
    """What cuBLASLt is told of a product, and the algorithm that it has picked."""

    product: pointer
    layouts: tuple[pointer, pointer, pointer]
    found: _Heuristic


@functools.cache
def load() -> Any:
    """Return the library.

    Raises
    ------
    BackendError
        If it is not installed.
    """
    try:
        finder: Any = importlib.import_module("cuda.pathfinder")
        library: Any = ctypes.CDLL(finder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception as error:  # each version of the finder has errors of its own
        raise BackendError(
            "the engine 'cublaslt' needs the library cuBLASLt: pip install nvidia-cublas (CUDA 13) "
            f"or nvidia-cublas-cu12 (extras cublas13, cublas12); {error}"
        ) from error
    for name, types in _ARGUMENTS.items():
        getattr(library, name).argtypes = types
    return library


def _call(name: str, *arguments: Any) -> None:
    status = getattr(load(), name)(*arguments)
    if status:
        raise BackendError(f"{name} failed with status {status} (cublasStatus_t)")


def serves(rows: int, cols: int, terms: int, dtype: Any) -> bool:
    """Whether a product is large enough, and of a dtype that cuBLASLt has."""
    return rows * cols * terms >= LEAST and dtype.name in _TYPES


def matmul(
    A: Array, B: Array, transpose_a: bool, transpose_b: bool, out: Array | None = None
) -> Array:
    """Return op(A) op(B), op the matrix or its transpose; rows may lie apart. Sums are in float32
    (float64 for that), in an order that is the same in every run; within ``use_precision("tf32")``
    float32 is multiplied in TF32.

    Parameters
    ----------
    out : C-contiguous, of the result's shape and dtype, optional
        Where it goes.

    Raises
    ------
    BackendError
        If cuBLASLt has no algorithm, or fails; the status is in its documentation.
    """
    shape = (A.shape[transpose_a], B.shape[not transpose_b])
    result: Any = cupy.empty(shape, dtype=A.dtype) if out is None else out
    left, a_line = _laid_out(A)
    right, b_line = _laid_out(B)
    device = cupy.cuda.Device().id
    aligned = all(array.data.ptr % _ALIGNED == 0 for array in (left, right, result))
    plan = _plan(
        *(device, A.dtype.name, A.shape, a_line, B.shape, b_line, transpose_a, transpose_b),
        *(_ALIGNED if aligned else A.itemsize, named_precision(A.dtype) == "tf32"),
    )
    scale = c_double if A.dtype.name == "float64" else c_float
    workspace = cupy.empty(plan.found.workspace, dtype=cupy.uint8)
    b_layout, a_layout, out_layout = plan.layouts
    _call(
        "cublasLtMatmul",
        *(_handle(device), plan.product, byref(scale(1.0))),
        *(right.data.ptr, b_layout, left.data.ptr, a_layout, byref(scale(0.0))),
        *(result.data.ptr, out_layout, result.data.ptr, out_layout),
        *(byref(plan.found.algo), workspace.data.ptr, workspace.nbytes),
        cupy.cuda.get_current_stream().ptr,
    )
    return result


@functools.cache
def _handle(device: int) -> pointer:
    """Of the library, for the current device."""
    handle = pointer()
    _call("cublasLtCreate", byref(handle))
    return handle


@functools.lru_cache(maxsize=1024)
def _plan(
    device: int,
    dtype: str,
    a_shape: tuple[int, int],
    a_line: int,
    b_shape: tuple[int, int],
    b_line: int,
    transpose_a: bool,
    transpose_b: bool,
    alignment: int,
    tf32: bool,
) -> _Plan:
    """cuBLASLt's matrices lie column by column, so that ours are their transposes: it works out
    op(B)^T op(A)^T, which is the transpose of our result."""
    kind, compute, scale = _TYPES[dtype]
    product = pointer()
    _call("cublasLtMatmulDescCreate", byref(product), _COMPUTE_TF32 if tf32 else compute, scale)
    for attribute, transposed in ((_DESC_TRANSA, transpose_b), (_DESC_TRANSB, transpose_a)):
        how = c_int32(_OP_T if transposed else _OP_N)
        _call("cublasLtMatmulDescSetAttribute", product, attribute, byref(how), 4)
    rows, cols = a_shape[transpose_a], b_shape[not transpose_b]
    layouts = (
        _layout(kind, b_shape, b_line),
        _layout(kind, a_shape, a_line),
        _layout(kind, (rows, cols), cols),
    )
    found = _fastest(device, product, layouts, alignment)
    if found is None:
        raise BackendError(
            f"cublaslt: no algorithm for {dtype} matrices {a_shape} and {b_shape}, transposed: "
            f"{transpose_a} and {transpose_b}; take use_engine('raw')"
        )
    return _Plan(product, layouts, found)


def _layout(kind: int, shape: tuple[int, int], line: int) -> pointer:
    """Of the transpose of a matrix of ours whose rows start `line` numbers apart."""
    layout = pointer()
    _call("cublasLtMatrixLayoutCreate", byref(layout), kind, shape[1], shape[0], line)
    return layout


def _fastest(
    device: int, product: pointer, layouts: tuple[pointer, pointer, pointer], alignment: int
) -> _Heuristic | None:
    """The algorithm that cuBLASLt expects to be the fastest of those with the same bits in every
    run."""
    wishes = pointer()
    _call("cublasLtMatmulPreferenceCreate", byref(wishes))
    try:
        set_to = functools.partial(_call, "cublasLtMatmulPreferenceSetAttribute", wishes)
        set_to(_PREF_WORKSPACE, byref(c_uint64(WORKSPACE)), 8)
        set_to(_PREF_REDUCTION, byref(c_uint32(_REDUCTION)), 4)
        for attribute in _PREF_ALIGNMENT:
            set_to(attribute, byref(c_uint32(alignment)), 4)
        found, count = _Heuristic(), c_int()
        first, second, out = layouts
        status = load().cublasLtMatmulAlgoGetHeuristic(
            *(_handle(device), product, first, second, out, out, wishes),
            *(1, byref(found), byref(count)),
        )
    finally:
        _call("cublasLtMatmulPreferenceDestroy", wishes)
    return found if status == 0 and count.value and found.state == 0 else None
