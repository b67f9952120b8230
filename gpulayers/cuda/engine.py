"""The CUDA kernels put together: what `gpulayers.ops` calls for CuPy arrays."""

from __future__ import annotations

from gpulayers.cuda.activation import CudaActivation
from gpulayers.cuda.columns import CudaColumns
from gpulayers.cuda.conv import CudaConv
from gpulayers.cuda.embedding import CudaEmbedding
from gpulayers.cuda.fused import CudaFused
from gpulayers.cuda.normalization import CudaNormalization
from gpulayers.cuda.pool import CudaPool
from gpulayers.cuda.product import CudaProduct
from gpulayers.cuda.random import CudaRandom
from gpulayers.cuda.sequence import CudaSequence
from gpulayers.cuda.softmax import CudaSoftmax
from gpulayers.cuda.update import CudaUpdate
from gpulayers.ops.reference import Reference

__all__ = ["Cublas", "Cuda"]


class Cuda(
    CudaConv,
    CudaProduct,
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
    """Satisfies `gpulayers.ops._kernels.Kernels` on CuPy arrays.

    What has no kernel of its own (windows of more than 256 taps, a user's own activation, the
    standardisation over axes other than the last ones or a group's, the gradient of an embedding of
    more than 8192 ids) is inherited from `gpulayers.ops.reference.Reference`, array formulas on
    CuPy.
    """


class Cublas(Cuda):
    """The same with the products of CuPy's cuBLAS, and convolutions put together from them by
    im2col; not for a captured stream, where CuPy refuses cuBLAS."""

    matmul = Reference.matmul
    conv2d_forward = CudaColumns.conv2d_forward
    conv2d_input_grad = CudaColumns.conv2d_input_grad
    conv2d_weight_grad = CudaColumns.conv2d_weight_grad
    conv2d_relu_forward = CudaFused.conv2d_relu_forward
    conv2d_param_grads = Reference.conv2d_param_grads
    dense_forward = CudaFused.dense_forward
