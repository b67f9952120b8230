"""The kernels of feed.cu, for `gpulayers.cuda.table`."""

from __future__ import annotations

from gpulayers.cuda.spec import ARRAY, INDEX, INT, REAL, KernelSpec

__all__ = ["SPECS"]

_MAP = "{T}, {Acc}, {Index}"

SPECS = (
    KernelSpec(
        "gather_bytes",
        "feed.cu",
        f"gather_bytes<{_MAP}>",
        (*(ARRAY,) * 7, INDEX, INT, INT, INDEX),
    ),
    KernelSpec(
        "gather_rows", "feed.cu", f"gather_rows<{_MAP}>", (*(ARRAY,) * 6, INDEX, INT, INDEX)
    ),
    KernelSpec(
        "finish_step",
        "feed.cu",
        "finish_step<{T}, {Acc}>",
        (*(ARRAY,) * 8, *(INT,) * 3, REAL),
        barriers=True,
    ),
)
