"""Where the arrays of a network that trains within one kernel lie: the constants of mega*.cuh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers.cuda.mega_constants import THREADS, TILE_FLOATS
from gpulayers.cuda.mega_tiles import conv_constants, spread_constants, widest
from gpulayers.models.mega_stages import Conv, Dense, Norm, Stage

__all__ = ["Constants", "Layout", "lay_out", "splits"]

_ALIGNED = 4  # floats: vectors of 16 bytes are read

Constants = dict[str, float | str]


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    Attributes
    ----------
    stages : list of dict
        The constants of each stage, and of the image that the first one takes.
    image : dict
    shared : int
        Floats of shared memory that a block needs.
    scratch : int
        Where in it the scratch space begins.
    state : int
        Where in what is saved of an example its part of shared memory lies.
    saved : int
        Floats of global memory that each example needs, for the dense layers' weight gradients,
        and where batch normalisation waits for all examples.
    partial : int
        Floats of global memory that each block needs, for the sums over its examples.
    """

    stages: tuple[Constants, ...]
    image: Constants
    shared: int
    scratch: int
    state: int
    saved: int
    partial: int


class _Places:
    """Hands out places one after the other."""

    def __init__(self, aligned: int = 1) -> None:
        self.end = 0
        self._aligned = aligned

    def take(self, size: int) -> int:
        place = self.end
        self.end += -(-size // self._aligned) * self._aligned
        return place


@dataclass
class _Room:
    """Shared memory of a block, global memory for each example, for each block, the parameters that
    learn, and those that stay as they are."""

    shared: _Places
    saved: _Places
    partial: _Places
    flat: _Places
    still: _Places

    def parameters(self, stage: Stage) -> _Places:
        return self.still if stage.frozen else self.flat


def lay_out(image: tuple[int, int, int], stages: Sequence[Stage]) -> Layout:
    """Return the places of all arrays of a network whose parameters lie one after the other, those
    that learn apart from the others.

    Parameters
    ----------
    image : (rows, cols, channels) of an example; one of another rank as (1, 1, numbers)
    stages : the network, dense layers last
    """
    places = _Room(_Places(_ALIGNED), *(_Places() for _ in range(4)))
    shared = places.shared
    held = [_held(stage, shared) for stage in stages]
    outputs = [own["input"] for own in held[1:]] + [shared.take(stages[-1].outputs)]
    gradients = _gradients(stages, held, shared)
    scratch = shared.take(max(TILE_FLOATS, *(_dense_scratch(s) for s in stages)))
    state = held[-1]["held_end"] if any(splits(s) for s in stages) else 0
    state_begin = places.saved.take(state)
    constants: list[Constants] = []
    learned = 0
    for i, stage in enumerate(stages):
        own: Constants = {
            **held[i],
            "output": outputs[i],
            "gradient": gradients[i],
            "scratch": scratch,
            "section": 2 * learned,
            "activation": stage.activation.upper(),
        }
        learned += not stage.frozen
        if i > 0:
            own["before"] = stages[i - 1].activation.upper()
            own["gradient_before"] = gradients[i - 1]
        if isinstance(stage, Dense):
            own |= _dense(stage, places)
        else:
            own |= _output_place(stage, stages[i + 1])
            own |= _norm(stage, places) if isinstance(stage, Norm) else _conv(stage, i == 0, places)
        constants.append(own)
    return Layout(
        tuple(constants),
        _image(image, stages[0], held[0]["input"]),
        *(shared.end, scratch, state_begin, places.saved.end, places.partial.end),
    )


def _gradients(
    stages: Sequence[Stage], held: Sequence[dict[str, Any]], shared: _Places
) -> list[int]:
    """Where that of each stage's output lies: by turns in two places, or where the input of a batch
    normalisation is, which is used for the last time when its gradient is computed."""
    inside = [isinstance(after, Norm) for after in stages[1:]] + [False]
    sizes = [0 if norm else stage.outputs for stage, norm in zip(stages, inside, strict=True)]
    turns = [shared.take(max(sizes[i::2], default=0)) for i in (0, 1)]
    return [held[i + 1]["input"] if norm else turns[i % 2] for i, norm in enumerate(inside)]


def splits(stage: Stage) -> bool:
    """Whether it needs all examples to have come as far as this."""
    return isinstance(stage, Norm) and not stage.frozen


def _held(stage: Stage, shared: _Places) -> dict[str, Any]:
    """The places of what a stage knows of its example on the way back."""
    own: dict[str, Any] = {"input": shared.take(_input_size(stage))}
    own["input_end"] = shared.end
    own |= _drop(stage, own["input"], shared)
    if not isinstance(stage, Dense) and stage.pool:
        own["winners"] = shared.take(_words(stage.outputs))
    return own | {"held_end": shared.end}


def _padding(stage: Stage) -> tuple[int, int, int, int]:
    return stage.window.pad if isinstance(stage, Conv) else (0, 0, 0, 0)


def _drop(stage: Stage, place: int, shared: _Places) -> Constants:
    """What dropout in front of a stage needs; numbers of a row of the input are `across`, rows
    `pitch` apart."""
    if not stage.drop:
        return {"dropped": 0}
    top, _, left, right = _padding(stage)
    across = pitch = stage.inputs
    if isinstance(stage, Conv):
        across, pitch = stage.cols * stage.channels, (stage.cols + left + right) * stage.channels
        place += top * pitch + left * stage.channels
    return {
        **{"dropped": stage.inputs, "kept": shared.take(_words(stage.inputs))},
        **{"first": place, "across": across, "pitch": pitch},
        "threshold": math.ceil(_rounded(stage.drop) * 2**24),
        "scale": _rounded(1 / (1 - stage.drop)),
    }


def _words(count: int) -> int:
    """Floats that hold so many bytes."""
    return -(-count // 4)


def _input_size(stage: Stage) -> int:
    if not isinstance(stage, Conv):
        return stage.inputs
    top, bottom, left, right = stage.window.pad
    return (stage.rows + top + bottom) * (stage.cols + left + right) * stage.channels


def _image(image: tuple[int, int, int], first: Stage, place: int) -> Constants:
    rows, cols, channels = image
    top, _, left, right = _padding(first)
    sizes = {"rows": rows, "cols": cols, "channels": channels}
    return {**sizes, "top": top, "left": left, "padded": cols + left + right, "place": place}


def _output_place(stage: Conv | Norm, after: Stage) -> Constants:
    top, _, left, right = _padding(after)
    return {
        "output_top": top,
        "output_left": left,
        "output_cols": stage.out[1] + left + right,
    }


def _dense_shares(stage: Dense, vector: int) -> int:
    """Into how many parts the rows are cut, so that all threads have something to do."""
    return max(1, min(stage.inputs, THREADS * vector // stage.outputs))


def _dense_scratch(stage: Stage) -> int:
    return stage.outputs * _dense_shares(stage, 4) if isinstance(stage, Dense) else 0


def _dense(stage: Dense, room: _Room) -> Constants:
    flat = room.parameters(stage)
    weights = flat.take(stage.weights)
    vector = widest(stage.outputs, weights)
    return {
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "vector": vector,
        "shares": _dense_shares(stage, vector),
        "weights": weights,
        "bias": flat.take(stage.outputs),
        "saved_input": room.saved.take(stage.inputs),
        "saved_gradient": room.saved.take(stage.outputs),
    }


def _norm(stage: Norm, room: _Room) -> Constants:
    filters, shared = stage.filters, room.shared
    tile = stage.pool or (1, 1)
    both = 2 * filters
    return {
        **{"rows": stage.rows, "cols": stage.cols, "filters": filters, "parameters": both},
        **{"tile_rows": tile[0], "tile_cols": tile[1], "pooled": int(bool(stage.pool))},
        **{"out_rows": stage.out[0], "out_cols": stage.out[1], "outputs": stage.outputs},
        **{"mean": shared.take(filters), "inverse": shared.take(filters)},
        **{"scaler": shared.take(both), "means": shared.take(both)},
        **{"own": shared.take(both), "sums": shared.take(both)},
        **{"moments": room.partial.take(both), "partial": room.partial.take(both)},
        **{"flat": room.parameters(stage).take(both), "running": room.still.take(both)},
        **{"frozen": int(stage.frozen), "saved_gradient": room.saved.take(stage.outputs)},
        "epsilon": _rounded(stage.epsilon),
        "momentum": _rounded(stage.momentum),
        "rest": _rounded(1.0 - stage.momentum),
    }


def _rounded(value: float) -> float:
    return float(np.float32(value))


def _conv(stage: Conv, first: bool, room: _Room) -> Constants:
    shared, image = room.shared, (stage.rows, stage.cols, stage.channels)
    known = conv_constants(image, stage.filters, stage.window, stage.pool)
    parameters = known["parameters"]
    own: Constants = {
        **known,
        "weights": shared.take(stage.weights),
        "bias": shared.take(stage.filters),
        "sums": shared.take(known["shares"] * parameters),
        "partial": room.partial.take(parameters),
        "flat": room.parameters(stage).take(parameters),
    }
    if first:
        return own
    spread, size = spread_constants(image, stage.filters, stage.window)
    return {**own, **spread, "spread": shared.take(size)}
