"""The CUDA implementation of the operations: `.cu` sources compiled by NVRTC, launched by CuPy.

`table` lists every kernel and its launch parameters, `compile.load_source` gives the source text;
both work without CuPy, so that the kernels can be checked on machines without a GPU. `Cuda` is
loaded on first use, since it imports CuPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpulayers.cuda.engine import Cuda as Cuda

__all__ = ["Cuda"]


def __getattr__(name: str) -> Any:
    if name == "Cuda":
        from gpulayers.cuda.engine import Cuda

        return Cuda
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
