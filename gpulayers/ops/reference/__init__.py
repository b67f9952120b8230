"""The specification: every operation as a few array formulas on xp.

Runs on NumPy and CuPy alike. The fast implementations are tested against it, and it is tested
against loops in float64 and against PyTorch.
"""

from gpulayers.ops.reference.activation import ReferenceActivation
from gpulayers.ops.reference.augment import ReferenceAugment
from gpulayers.ops.reference.conv import ReferenceConv
from gpulayers.ops.reference.embedding import ReferenceEmbedding
from gpulayers.ops.reference.fused import ReferenceFused
from gpulayers.ops.reference.normalization import ReferenceNormalization
from gpulayers.ops.reference.pool import ReferencePool
from gpulayers.ops.reference.product import ReferenceProduct
from gpulayers.ops.reference.random import ReferenceRandom
from gpulayers.ops.reference.sequence import ReferenceSequence
from gpulayers.ops.reference.softmax import ReferenceSoftmax
from gpulayers.ops.reference.update import ReferenceUpdate

__all__ = ["Reference"]


class Reference(
    ReferenceSequence,
    ReferenceProduct,
    ReferenceConv,
    ReferencePool,
    ReferenceActivation,
    ReferenceSoftmax,
    ReferenceUpdate,
    ReferenceNormalization,
    ReferenceEmbedding,
    ReferenceFused,
    ReferenceAugment,
    ReferenceRandom,
):
    """Satisfies `gpulayers.ops._protocol.Kernels` with array formulas."""
