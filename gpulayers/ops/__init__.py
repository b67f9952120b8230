"""Operations on arrays, in forward/backward pairs, one file per family.

A public function is its contract (the docstring), its checks, and one line that calls the
implementation for the array at hand: the fast NumPy code, the CUDA kernels, or, on request, the
reference formulas (`use_engine`).
"""

from gpulayers.ops._kernels import current_engine, kernels_for, use_engine
from gpulayers.ops._protocol import Kernels
from gpulayers.ops.window import Window

__all__ = ["Kernels", "Window", "current_engine", "kernels_for", "use_engine"]
