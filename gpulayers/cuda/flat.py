"""What a planned step does once for all parameters, which lie one after the other in one array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cupy

from gpulayers.backend import Array
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.rules import RULES, Numbers

__all__ = [
    "CHUNK",
    "Judgement",
    "ScaleState",
    "finish_loss",
    "flat_update",
    "judge",
    "sum_sections",
]

#: numbers that a block of `judge` looks at, those of one parameter
CHUNK = 2048


class Judgement(NamedTuple):
    """Memory for what `judge` finds out, and what it goes by.

    Attributes
    ----------
    chunks : (n, 3) int64
        Section, first number and the one behind the last, of each chunk of at most `CHUNK`.
    bounds : (sections + 1,) int32
        Where each section's chunks begin.
    peaks, squares : (n,)
    factors : (sections,)
        What clips a gradient's norm.
    """

    chunks: Array
    bounds: Array
    peaks: Array
    squares: Array
    factors: Array


class ScaleState(NamedTuple):
    """The loss scale of a half type on the device.

    Attributes
    ----------
    scale, inverse : (1,)
        The scale of the next step, and one over that of this step's gradients.
    good : (1,) int32
        Whether this step's gradients were finite.
    counts : (3,) int32
        Good steps since the scale changed; steps left out; those of them at the smallest scale.
    interval : int
        After so many good steps the scale is doubled.
    smallest, largest : float
    """

    scale: Array
    inverse: Array
    good: Array
    counts: Array
    interval: int
    smallest: float
    largest: float


def sum_sections(work: Array, sections: Array, out: Array, scale: Array | None = None) -> None:
    """out = the gradients, whose parts lie in `work` as `sections` (count, 5) says, divided by
    `scale` (1,)."""
    divisor = cupy.empty(0, dtype=out.dtype) if scale is None else scale
    args = (work, sections, divisor, out, len(sections), scale is not None)
    launch_elements("sum_sections", out.dtype, out.size, args, "int32")


def judge(
    work: Array,
    sections: Array,
    numbers: Numbers,
    judgement: Judgement,
    state: ScaleState | None,
    scaled: bool,
    step: Array,
    top: float | None = None,
) -> None:
    """Look at all gradients before an update: two launches.

    Parameters
    ----------
    work, sections : as for `sum_sections`
    numbers : whose limits hold
    state : ScaleState, optional
        The loss scale that follows them.
    scaled : bool
        The gradients are too long by that scale, if there is one.
    step : (1,) int32
        Taken back where a gradient is not finite.
    top : float, optional
        A larger gradient counts as not finite.
    """
    chunks, bounds, peaks, squares, factors = judgement
    none, no_numbers = cupy.empty(0, dtype=work.dtype), cupy.empty(0, dtype=cupy.int32)
    clips = numbers.longest > 0
    longest = _within(numbers.longest, work) if clips else 1.0
    limit = _within(numbers.limit, work)
    scale = none if state is None else state.scale
    scaled = scaled and state is not None
    args = (work, sections, chunks, scale, peaks, squares, scaled, limit, longest)
    args = (*args, _within(math.inf if top is None else top, work))
    launch("survey_gradients", work.dtype, (len(chunks),), args, "int32")
    arrays = (none, none, no_numbers, no_numbers) if state is None else state[:4]
    ends = (1, 1.0, 1.0) if state is None else state[4:]
    args = (
        *(peaks, squares, bounds, factors, *arrays, step, len(chunks)),
        *(clips, state is not None, scaled, ends[0], longest, *ends[1:]),
    )
    launch("judge_gradients", work.dtype, (len(factors) if clips else 1,), args, "int32")


def flat_update(
    param: Array,
    states: Sequence[Array],
    narrow: Array | None,
    work: Array,
    sections: Array,
    rates: Array,
    step: Array,
    numbers: Numbers,
    judgement: Judgement | None,
    state: ScaleState | None,
) -> None:
    """Update `param` and its states, one or two arrays of its shape, in place.

    Parameters
    ----------
    narrow : of the same shape, optional
        The weights in a half type, of which `param` holds copies.
    work, sections : as for `sum_sections`
    rates : (count,), the learning rates of the sections
    step : (1,) int32, the number of this step, from 1 on
    judgement, state : what `judge` found out, where numbers or a loss scale need it
    """
    rule, *constants, limit, pull, longest = numbers
    none, no_numbers = cupy.empty(0, dtype=param.dtype), cupy.empty(0, dtype=cupy.int32)
    clips = longest > 0 and judgement is not None
    args = (
        *(param, states[0], states[1] if len(states) > 1 else none),
        *(none if narrow is None else narrow, work, sections, rates, step),
        *(none if judgement is None else judgement.factors,),
        *((none, no_numbers) if state is None else (state.inverse, state.good)),
        *(len(sections), RULES.index(rule), clips, state is not None),
        *(*constants, _within(limit, param), pull),
    )
    dtype = param.dtype if narrow is None else narrow.dtype
    launch_elements("flat_update", dtype, param.size, args, "int32")


def finish_loss(losses: Array, loss: Array, step: Array, scale: float) -> None:
    """loss (1,) = scale * the sum of the losses; `step` (1,) is counted up."""
    launch("finish_loss", losses.dtype, (1,), (losses, loss, step, losses.size, scale), "int32")


def _within(limit: float, like: Array) -> float:
    return min(limit, float(cupy.finfo(like.dtype).max))
