"""The CUDA kernels put together: what `gpulayers.ops` calls for CuPy arrays."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda import cublaslt
from gpulayers.cuda.activation import CudaActivation, backward_by_value, value
from gpulayers.cuda.batched import CudaBatches
from gpulayers.cuda.columns import CudaColumns
from gpulayers.cuda.conv import CudaConv
from gpulayers.cuda.embedding import CudaEmbedding
from gpulayers.cuda.fused import CudaFused
from gpulayers.cuda.fusible import RELU, Formula
from gpulayers.cuda.normalization import CudaNormalization
from gpulayers.cuda.pool import CudaPool
from gpulayers.cuda.product import CudaProduct
from gpulayers.cuda.random import CudaRandom
from gpulayers.cuda.sequence import CudaSequence
from gpulayers.cuda.softmax import CudaSoftmax
from gpulayers.cuda.update import CudaUpdate
from gpulayers.ops.reference import Reference

__all__ = ["Cublas", "CublasLt", "Cuda"]


class Cuda(
    CudaConv,
    CudaProduct,
    CudaBatches,
    CudaPool,
    CudaSequence,
    CudaActivation,
    CudaSoftmax,
    CudaNormalization,
    CudaEmbedding,
    CudaFused,
    CudaUpdate,
    CudaRandom,
):
    """Satisfies `gpulayers.ops._protocol.Kernels` on CuPy arrays.

    What has no kernel of its own (windows of more than 256 taps, a user's own activation, the
    standardisation over axes other than the last ones or a group's, the gradient of an embedding of
    more than 8192 ids) is inherited from `gpulayers.ops.reference.Reference`, array formulas on
    CuPy.
    """


class Cublas(Cuda):
    """The same with the products of CuPy's cuBLAS, and convolutions put together from them by
    im2col; not for a captured stream, where CuPy refuses cuBLAS."""

    matmul = Reference.matmul
    batched_matmul = Reference.batched_matmul
    conv2d_forward = CudaColumns.conv2d_forward
    conv2d_input_grad = CudaColumns.conv2d_input_grad
    conv2d_weight_grad = CudaColumns.conv2d_weight_grad
    conv2d_relu_forward = CudaFused.conv2d_relu_forward
    conv2d_param_grads = Reference.conv2d_param_grads
    dense_forward = CudaFused.dense_forward


class CublasLt(Cuda):
    """The same with large products by cuBLASLt, also in a captured stream.

    Raises
    ------
    BackendError
        If the library is not installed.
    """

    def __init__(self) -> None:
        cublaslt.load()

    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array:
        sizes = (A.shape[transpose_a], B.shape[not transpose_b], A.shape[not transpose_a])
        if not cublaslt.serves(*sizes, A.dtype):
            return super().matmul(A, B, transpose_a, transpose_b)
        return cublaslt.matmul(A, B, transpose_a, transpose_b)

    def dense_forward(self, X: Array, W: Array, b: Array, relu: bool) -> Array:
        if not cublaslt.serves(X.shape[0], W.shape[1], X.shape[1], X.dtype):
            return super().dense_forward(X, W, b, relu)
        return CudaFused.dense_forward(self, X, W, b, relu)

    def dense_step(self, X: Array, W: Array, b: Array, act: Formula | None) -> Array:
        if not cublaslt.serves(X.shape[0], W.shape[1], X.shape[1], X.dtype):
            return super().dense_step(X, W, b, act)
        Z = CudaFused.dense_forward(self, X, W, b, act == RELU)
        return Z if act is None or act == RELU else value(Z, act)

    def dense_parts(self, batch: int, inputs: int, outputs: int, dtype: Any) -> int:
        if not cublaslt.serves(batch, inputs, outputs, dtype):
            return super().dense_parts(batch, inputs, outputs, dtype)
        return 1

    def dense_backward(
        self,
        X: Array,
        W: Array,
        dZ: Array,
        grads: Array,
        before: Formula | None,
        inputs: bool,
    ) -> Array | None:
        if not cublaslt.serves(X.shape[0], X.shape[1], dZ.shape[1], X.dtype):
            return super().dense_backward(X, W, dZ, grads, before, inputs)
        if grads.dtype == X.dtype:
            cublaslt.matmul(X, dZ, True, False, out=grads[0, :-1])
        else:  # a plan of half numbers adds up its gradients in float32
            grads[0, :-1] = cublaslt.matmul(X, dZ, True, False)
        grads[0, -1] = self.bias_grad(dZ)
        if not inputs:
            return None
        dX = cublaslt.matmul(dZ, W, False, True)
        return dX if before is None else backward_by_value(dX, X, before)
