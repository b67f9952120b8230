"""The CPU kernels written in C, where they are built; what they do not cover is the fast NumPy.

They serve float32 and float64. Each mixin overrides the operations of one family; half precision
and shapes a kernel does not take fall through to `gpulayers.ops.cpu`.
"""

from gpulayers.ops.compiled.activation import CompiledActivation
from gpulayers.ops.compiled.conv import CompiledConv
from gpulayers.ops.compiled.fused import CompiledFused
from gpulayers.ops.compiled.library import report, unavailable_reason
from gpulayers.ops.compiled.normalization import CompiledNormalization
from gpulayers.ops.compiled.pool import CompiledPool
from gpulayers.ops.compiled.product import CompiledProduct
from gpulayers.ops.compiled.recorded import Recorder, Updates
from gpulayers.ops.compiled.sequence import CompiledSequence
from gpulayers.ops.compiled.softmax import CompiledSoftmax
from gpulayers.ops.compiled.update import CompiledUpdate
from gpulayers.ops.cpu import Cpu

__all__ = ["Compiled", "report", "unavailable_reason"]


class Compiled(
    CompiledSequence,
    CompiledFused,
    CompiledProduct,
    CompiledConv,
    CompiledPool,
    CompiledActivation,
    CompiledSoftmax,
    CompiledNormalization,
    CompiledUpdate,
    Cpu,
):
    """Satisfies `gpulayers.ops._protocol.Kernels` for NumPy arrays."""

    threaded = True  # operations divide their work among the threads themselves
    recorder = Recorder  # notes calls down, which can then be run again
    updates = Updates
