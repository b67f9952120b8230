"""The fast NumPy implementation; what it does not override is the reference."""

from gpulayers.ops.cpu.conv import CpuConv
from gpulayers.ops.cpu.embedding import CpuEmbedding
from gpulayers.ops.cpu.gated import CpuGated
from gpulayers.ops.cpu.pool import CpuPool
from gpulayers.ops.cpu.random import CpuRandom
from gpulayers.ops.reference import Reference

__all__ = ["Cpu"]


class Cpu(CpuGated, CpuConv, CpuPool, CpuEmbedding, CpuRandom, Reference):
    """Satisfies `gpulayers.ops._kernels.Kernels` for NumPy arrays."""
