"""How much memory a captured step needs, and what to say when a GPU has less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpulayers import backend
from gpulayers.errors import DeviceMemoryError, GPULayersError

if TYPE_CHECKING:
    from gpulayers.models.graph_plan import GraphNetwork

__all__ = ["shortage"]

_SAMPLES = 8, 16  # batches whose steps are captured to see what an example takes


def shortage(plan: GraphNetwork, n: int, source: Any) -> DeviceMemoryError:
    """The error for a step of n examples that the memory was too small for: what it needs, and
    what fits.

    Captures of two small batches, in which nothing is computed, tell what an example takes; the
    rest grows with their number.
    """
    name = plan.network.name
    free = _free_bytes(plan)
    text = f"{name}: not enough GPU memory for a step of {n} examples"
    try:
        few, more = (_arena_bytes(plan, m, source) for m in _SAMPLES)
    except (GPULayersError, MemoryError):
        return DeviceMemoryError(f"{text}, {_told(free)} are free; use smaller batches")
    each = max(1, (more - few) // (_SAMPLES[1] - _SAMPLES[0]))
    fixed = max(0, few - _SAMPLES[0] * each)
    most = max(0, min(n - 1, (free - fixed) // each))
    fit = f"batches of up to {most} examples fit" if most else "not even one example fits"
    return DeviceMemoryError(
        f"{text}: it needs about {_told(fixed + n * each)}, {_told(free)} are free; {fit}. "
        "Trainer(accumulate=...) computes a batch in parts"
    )


def _free_bytes(plan: GraphNetwork) -> int:
    """What the device, or the limit of CuPy's pool, has left."""
    cupy: Any = backend.module("cupy")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    free = int(cupy.cuda.runtime.memGetInfo()[0])
    limit = pool.get_limit()
    held = pool.used_bytes() + plan.arena_bytes
    return min(free, max(0, limit - held)) if limit else free


def _arena_bytes(plan: GraphNetwork, n: int, source: Any) -> int:
    """Bytes of a captured step of n examples."""
    from gpulayers.cuda import graph  # needs CuPy
    from gpulayers.models.graph_program import Program

    recorder = graph.Recorder()

    def run() -> None:
        shape = n, *plan.batch_shape[1:]
        with plan._settings(False):  # tensor cores take arrays of their own
            plan._launch(Program(shape, plan.network.dtype, source, dry=True), False)

    recorder.capture(f"{plan.network.name}, a batch of {n}", run)
    return recorder.nbytes


def _told(count: int) -> str:
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KB"
