"""The CUDA implementation of the operations: `.cu` sources compiled by NVRTC, launched by CuPy.

`table` lists every kernel and its launch parameters, `compile.load_source` gives the source text;
both work without CuPy, so that the kernels can be checked on machines without a GPU. `Cuda` is
loaded on first use, since it imports CuPy; so are `Cublas`, the same with the products of CuPy,
and `CublasLt`, with large ones by NVIDIA's cuBLASLt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpulayers.cuda.engine import Cublas as Cublas
    from gpulayers.cuda.engine import CublasLt as CublasLt
    from gpulayers.cuda.engine import Cuda as Cuda

__all__ = ["Cublas", "CublasLt", "Cuda"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from gpulayers.cuda import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
