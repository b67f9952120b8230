"""The kernels of a step that is new, compiled side by side before it is launched.

One after the other, as the launches come, a step of a small network takes NVRTC several seconds.
So the step is gone through once before, in a capture that is thrown away, and its launches only
say what they are going to launch.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from gpulayers.errors import GPULayersError
from gpulayers.models.graph_program import Program
from gpulayers.ops._kernels import current_engine, use_engine

if TYPE_CHECKING:
    from gpulayers.models.graph_plan import GraphNetwork

__all__ = ["compile_ahead"]


def compile_ahead(plan: GraphNetwork, program: Program, update: bool) -> None:
    """Compile what a step of `program` launches, where more than one of its kernels is new.

    What goes wrong here goes wrong in the step, too, which says so.
    """
    from gpulayers.cuda import compile as compiling  # needs CuPy
    from gpulayers.cuda import graph, tune

    if tune.enabled():  # measures first, and compiles what it measures
        return
    dry = copy.copy(program)
    dry.dry, dry.grads = True, []
    choices = tune.pinned(dict(plan._choices), plan.deterministic)
    try:
        with (
            compiling.gathered() as launches,
            use_engine(current_engine()),
            choices,
            plan._exactly(),
        ):
            graph.Recorder().capture(plan.network.name, lambda: plan._launch(dry, update))
    except (GPULayersError, MemoryError):
        return
    compiling.side_by_side(launches)
