"""How much memory a step needs, and what to say when a GPU has less."""

from __future__ import annotations

import copy
import traceback
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpulayers import backend
from gpulayers.errors import DeviceMemoryError

if TYPE_CHECKING:
    from gpulayers.models.graph_plan import GraphNetwork
    from gpulayers.models.plan import CompiledNetwork

__all__ = ["Need", "by_layers", "captured", "short"]

# batches whose steps are captured to see what an example takes; the others where these do not fit
_SAMPLES = (8, 16), (1, 2)

Need = Callable[[int], int]


def short(
    plan: CompiledNetwork, error: BaseException, n: int, need_of: Callable[[], Need]
) -> DeviceMemoryError:
    """The error for a step of n examples that the memory was too small for: what it needs, and
    what fits.

    Parameters
    ----------
    error : MemoryError
        It holds the failed step's arrays, which are let go of.
    need_of : function without arguments
        Gives a function: how many bytes of the device's memory a step of so many examples takes,
        besides what is taken now. It never takes less for more of them.
    """
    if isinstance(error, DeviceMemoryError):
        return error
    traceback.clear_frames(error.__traceback__)
    free = _free_bytes(plan)
    text = f"{plan.network.name}: not enough GPU memory for a step of {n} examples"
    try:
        need = need_of()
    except MemoryError:
        return DeviceMemoryError(f"{text}, {_told(free)} are free; not even one example fits")
    except Exception:  # a step that nobody can look at: a loss of somebody's own may do anything
        return DeviceMemoryError(f"{text}, {_told(free)} are free; use smaller batches")
    most = bisect_right(range(1, n), free, key=need)
    fit = f"batches of up to {most} examples fit" if most else "not even one example fits"
    return DeviceMemoryError(
        f"{text}: it needs about {_told(need(n))}, {_told(free)} are free; {fit}. "
        "Trainer(accumulate=...) computes a batch in parts"
    )


def _free_bytes(plan: Any) -> int:
    """What the device, or the limit of CuPy's pool, has left."""
    cupy: Any = backend.module("cupy")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    free = int(cupy.cuda.runtime.memGetInfo()[0])
    limit = pool.get_limit()
    held = pool.used_bytes() + getattr(plan, "arena_bytes", 0)
    return min(free, max(0, limit - held)) if limit else free


def captured(plan: GraphNetwork, source: Any) -> Need:
    """What a captured step takes: captures of two small batches, in which nothing is computed, tell
    what an example does; the rest grows with their number."""
    from gpulayers.models.graph_plan import APART, draws_for
    from gpulayers.models.graph_sections import Sections

    nodes, places = plan.new_nodes()
    layout: Any = Sections(places, plan.network.dtype, APART) if places else None
    beside = copy.copy(plan)
    beside._nodes, beside._places, beside._flat = nodes, places, layout

    def step(m: int) -> None:
        if layout is not None:
            layout.step = backend.module("cupy").empty(1, dtype="int32")
        beside._draws = draws_for(nodes)
        beside.prepare_nodes(nodes)
        shape = m, *plan.batch_shape[1:]
        with plan._settings(False):  # tensor cores take arrays of their own
            beside._launch(plan.new_program(shape, source, dry=True), False)

    once = 0
    if layout is not None and plan._flat is None:  # they are to be moved into one array first
        once = layout.nbytes + layout.total * layout.wide.itemsize
    elif plan._flat is not None and not plan._flat.one_kind:
        once = _missing_states(plan)
    return _line(plan, step, once)


def by_layers(plan: CompiledNetwork, labels: Any) -> Need:
    """What a step takes that is launched operation by operation, found out in the same way; of the
    labels dtype and shape count."""
    from gpulayers import random
    from gpulayers.models.plan_copy import Copy

    shape, kind = labels.shape[1:], labels.dtype
    xp, copies = backend.module("cupy"), Copy(plan.network.layers)
    dtype, generator = plan.network.dtype, random.default_generator()

    def step(m: int) -> None:
        before = generator.counter
        try:
            X = xp.zeros((m, *plan.batch_shape[1:]), dtype)
            plan._run(copies, X, xp.zeros((m, *shape), kind), 1.0)
        finally:
            generator.counter = before
            copies.drop()

    return _line(plan, step, _missing_states(plan))


def _missing_states(plan: CompiledNetwork) -> int:
    """Bytes that the optimizers will keep, and do not have yet."""
    total = 0
    for _, layer in plan.network.walk():
        if layer.trainable:
            kept = len(getattr(layer.optimizer, "_state_names", ()) or (0,))
            names = [name for name in layer.gradients if name not in layer.optimizer.cache]
            total += kept * sum(layer.parameters[name].nbytes for name in names)
    return total


def _line(plan: Any, step: Callable[[int], None], once: int) -> Need:
    """The bytes of a captured `step`, as a line through those of two small batches."""
    few, many = _SAMPLES[0]
    try:
        less, more = _bytes_of(plan, step, few), _bytes_of(plan, step, many)
    except MemoryError:
        few, many = _SAMPLES[1]
        less, more = _bytes_of(plan, step, few), _bytes_of(plan, step, many)
    each = max(1, (more - less) // (many - few))
    fixed = max(0, less - few * each) + once
    return lambda n: fixed + n * each


def _bytes_of(plan: Any, step: Callable[[int], None], m: int) -> int:
    from gpulayers.cuda import graph  # needs CuPy

    recorder = graph.Recorder()
    recorder.capture(f"{plan.network.name}, a batch of {m}", lambda: step(m))
    return recorder.nbytes


def _told(count: int) -> str:
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KB"
