"""What a planned step does once for all parameters, which lie one after the other in one array."""

from __future__ import annotations

import cupy

from gpulayers.backend import Array
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.rules import RULES, Numbers

__all__ = ["finish_loss", "flat_update", "sum_sections"]


def sum_sections(work: Array, sections: Array, out: Array) -> None:
    """out = the gradients, whose parts lie in `work` as `sections` (count, 4) says."""
    args = (work, sections, out, out.size, len(sections))
    launch_elements("sum_sections", out.dtype, out.size, args, "int32")


def flat_update(
    param: Array,
    states: list[Array],
    work: Array,
    sections: Array,
    rates: Array,
    step: Array,
    numbers: Numbers,
) -> None:
    """Update `param` and its states, one or two arrays of its shape, in place.

    Parameters
    ----------
    work, sections : as for `sum_sections`
    rates : (count,), the learning rates of the sections
    step : (1,) int32, the number of this step, from 1 on
    """
    rule, *constants = numbers
    none = cupy.empty(0, dtype=param.dtype)
    second = states[1] if len(states) > 1 else none
    args = (
        *(param, states[0], second, work, sections, rates, step),
        *(param.size, len(sections), RULES.index(rule), *constants),
    )
    launch_elements("flat_update", param.dtype, param.size, args, "int32")


def finish_loss(losses: Array, loss: Array, step: Array, scale: float) -> None:
    """loss (1,) = scale * the sum of the losses; `step` (1,) is counted up."""
    launch("finish_loss", losses.dtype, (1,), (losses, loss, step, losses.size, scale), "int32")
