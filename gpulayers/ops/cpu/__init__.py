"""The fast NumPy implementation; what it does not override is the reference."""

from gpulayers.ops.cpu.activation import CpuActivation
from gpulayers.ops.cpu.augment import CpuAugment
from gpulayers.ops.cpu.conv import CpuConv
from gpulayers.ops.cpu.embedding import CpuEmbedding
from gpulayers.ops.cpu.fused import CpuFused
from gpulayers.ops.cpu.gated import CpuGated
from gpulayers.ops.cpu.normalization import CpuNormalization
from gpulayers.ops.cpu.pool import CpuPool
from gpulayers.ops.cpu.product import CpuProduct
from gpulayers.ops.cpu.random import CpuRandom
from gpulayers.ops.cpu.softmax import CpuSoftmax
from gpulayers.ops.cpu.update import CpuUpdate
from gpulayers.ops.reference import Reference

__all__ = ["Cpu"]


class Cpu(
    CpuGated,
    CpuProduct,
    CpuConv,
    CpuPool,
    CpuActivation,
    CpuSoftmax,
    CpuUpdate,
    CpuNormalization,
    CpuFused,
    CpuEmbedding,
    CpuAugment,
    CpuRandom,
    Reference,
):
    """Satisfies `gpulayers.ops._protocol.Kernels` for NumPy arrays."""
