"""The stages of a network that trains within one kernel, and the constants that mega*.cuh take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpulayers.cuda.mega_constants import THREADS, TILE_FLOATS
from gpulayers.ops.window import Window

__all__ = ["Constants", "Conv", "Dense", "Layout", "Stage", "lay_out"]

_ALIGNED = 4  # floats: vectors of 16 bytes are read
_MOST_PIXELS = 8  # of one thread, where the pooling does not say


@dataclass(frozen=True)
class Conv:
    """A convolution with bias and activation, and max pooling of windows side by side behind it.

    Attributes
    ----------
    rows, cols, channels : int
        Of its input.
    filters : int
    window : Window
    pool : (rows, cols) of the pooling's windows, or None
    activation : str
        Of `mega_constants.ACTIVATIONS`.
    drop : float
        The p of a dropout in front of it; 0: there is none.
    """

    rows: int
    cols: int
    channels: int
    filters: int
    window: Window
    pool: tuple[int, int] | None
    activation: str
    drop: float = 0.0

    @property
    def inputs(self) -> int:
        return self.rows * self.cols * self.channels

    @property
    def convolved(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        return self.window.output_size(self.rows, self.cols)

    @property
    def out(self) -> tuple[int, int]:
        rows, cols = self.convolved
        return (rows, cols) if self.pool is None else (rows // self.pool[0], cols // self.pool[1])

    @property
    def outputs(self) -> int:
        return self.out[0] * self.out[1] * self.filters

    @property
    def weights(self) -> int:
        return self.window.taps * self.channels * self.filters


@dataclass(frozen=True)
class Dense:
    """A dense layer with bias and activation, as `Conv`."""

    inputs: int
    outputs: int
    activation: str
    drop: float = 0.0

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


Stage = Conv | Dense
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
    saved : int
        Floats of global memory that each example needs, for the dense layers' weight gradients.
    partial : int
        Floats of global memory that each block needs, for the convolutions' sums.
    """

    stages: tuple[Constants, ...]
    image: Constants
    shared: int
    scratch: int
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


def lay_out(image: tuple[int, int, int], stages: Sequence[Stage]) -> Layout:
    """Return the places of all arrays of a network whose parameters lie one after the other.

    Parameters
    ----------
    image : (rows, cols, channels) of an example; one of another rank as (1, 1, numbers)
    stages : the network, dense layers last
    """
    shared, saved, partial, flat = _Places(_ALIGNED), _Places(), _Places(), _Places()
    inputs = [shared.take(_input_size(stage)) for stage in stages]
    inputs.append(shared.take(stages[-1].outputs))
    kept = [shared.take(_words(stage.inputs)) if stage.drop else 0 for stage in stages]
    turns = [max([s.outputs for s in stages[i::2]], default=0) for i in (0, 1)]
    gradients = [shared.take(size) for size in turns]
    scratch = shared.take(max(TILE_FLOATS, *(_dense_scratch(s) for s in stages)))
    constants: list[Constants] = []
    for i, stage in enumerate(stages):
        after = stages[i + 1] if i + 1 < len(stages) else None
        own: Constants = {
            "input": inputs[i],
            "output": inputs[i + 1],
            "gradient": gradients[i % 2],
            "scratch": scratch,
            "section": 2 * i,
            "activation": stage.activation.upper(),
            **_drop(stage, inputs[i], kept[i]),
        }
        if i > 0:
            own["before"] = stages[i - 1].activation.upper()
            own["gradient_before"] = gradients[(i + 1) % 2]
        if isinstance(stage, Conv):
            own |= _output_place(stage, after)
            own |= _conv(stage, i == 0, shared, partial, flat)
        else:
            weights = flat.take(stage.weights)
            vector = _widest(stage.outputs, weights)
            own |= {
                "inputs": stage.inputs,
                "outputs": stage.outputs,
                "vector": vector,
                "shares": _dense_shares(stage, vector),
                "weights": weights,
                "bias": flat.take(stage.outputs),
                "saved_input": saved.take(stage.inputs),
                "saved_gradient": saved.take(stage.outputs),
            }
        constants.append(own)
    return Layout(
        tuple(constants),
        _image(image, stages[0], inputs[0]),
        *(shared.end, scratch, saved.end, partial.end),
    )


def _padding(stage: Stage | None) -> tuple[int, int, int, int]:
    return stage.window.pad if isinstance(stage, Conv) else (0, 0, 0, 0)


def _drop(stage: Stage, place: int, kept: int) -> Constants:
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
        **{"dropped": stage.inputs, "kept": kept, "first": place, "across": across, "pitch": pitch},
        "threshold": math.ceil(float(np.float32(stage.drop)) * 2**24),
        "scale": float(np.float32(1 / (1 - stage.drop))),
    }


def _words(count: int) -> int:
    """Floats that hold so many bytes."""
    return -(-count // 4)


def _input_size(stage: Stage) -> int:
    if isinstance(stage, Dense):
        return stage.inputs
    top, bottom, left, right = stage.window.pad
    return (stage.rows + top + bottom) * (stage.cols + left + right) * stage.channels


def _image(image: tuple[int, int, int], first: Stage, place: int) -> Constants:
    rows, cols, channels = image
    top, _, left, right = _padding(first)
    sizes = {"rows": rows, "cols": cols, "channels": channels}
    return {**sizes, "top": top, "left": left, "padded": cols + left + right, "place": place}


def _output_place(stage: Conv, after: Stage | None) -> Constants:
    top, _, left, right = _padding(after)
    return {
        "output_top": top,
        "output_left": left,
        "output_cols": stage.out[1] + left + right,
    }


def _widest(*numbers: int) -> int:
    """The widest vector that divides all numbers."""
    return next(n for n in (4, 2, 1) if not any(number % n for number in numbers))


def _dense_shares(stage: Dense, vector: int) -> int:
    """Into how many parts the rows are cut, so that all threads have something to do."""
    return max(1, min(stage.inputs, THREADS * vector // stage.outputs))


def _dense_scratch(stage: Stage) -> int:
    return stage.outputs * _dense_shares(stage, 4) if isinstance(stage, Dense) else 0


def _tile(rows: int, cols: int, each: int) -> tuple[int, int]:
    """Rows and columns of the pixels of one thread, where each tile is computed `each` times over
    by different threads: so that little time is left over when they take turns, and what they read
    serves many pixels."""

    def cost(tile: tuple[int, int]) -> float:
        pixels = tile[0] * tile[1]
        turns = -(-rows * cols * each // (pixels * THREADS))
        return turns * (pixels + 1.5)  # besides the products there are loads

    sizes = [(r, c) for r in _divisors(rows) for c in _divisors(cols) if r * c <= _MOST_PIXELS]
    return min(sizes, key=cost)


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, _MOST_PIXELS + 1) if size % n == 0]


def _conv(stage: Conv, first: bool, shared: _Places, partial: _Places, flat: _Places) -> Constants:
    window, filters = stage.window, stage.filters
    (top, _, left, right), (kernel_rows, kernel_cols) = window.pad, window.kernel
    tile = stage.pool or _tile(*stage.convolved, filters)
    down, across = stage.convolved[0] // tile[0], stage.convolved[1] // tile[1]
    units = kernel_rows * stage.channels * filters
    shares = max(1, min(stage.out[0] * stage.out[1], THREADS // units))
    parameters = stage.weights + filters
    own: Constants = {
        **{"rows": stage.rows, "cols": stage.cols, "channels": stage.channels, "filters": filters},
        **{"kernel_rows": kernel_rows, "kernel_cols": kernel_cols},
        **{"stride_rows": window.stride[0], "stride_cols": window.stride[1]},
        **{"dilation_rows": window.dilation[0], "dilation_cols": window.dilation[1]},
        **{"top": top, "left": left, "input_cols": stage.cols + left + right},
        **{"tile_rows": tile[0], "tile_cols": tile[1], "tiles_down": down, "tiles_across": across},
        **{"out_rows": stage.out[0], "out_cols": stage.out[1], "pooled": int(bool(stage.pool))},
        "group": _group(filters, down * across, tile[0] * tile[1]),
        "weights": shared.take(stage.weights),
        "bias": shared.take(filters),
        "shares": shares,
        "sums": shared.take(shares * parameters),
        "parameters": parameters,
        "partial": partial.take(parameters),
        "flat": flat.take(parameters),
    }
    if stage.pool:
        own["winners"] = shared.take(_words(stage.outputs))
    return own if first else own | _spread(stage, shared)


def _group(filters: int, tiles: int, pixels: int) -> int:
    """Filters of one thread: as many as leave enough threads with something to do."""
    sizes = [n for n in (4, 2, 1) if filters % n == 0 and n * pixels <= 16]
    for size in sizes:
        if 4 * tiles * (filters // size) >= 3 * THREADS:
            return size
    return sizes[-1] if sizes else 1


def _spread(stage: Conv, shared: _Places) -> Constants:
    """The room that the output's gradient needs for the gradient of the input."""
    window = stage.window
    (top, _, left, _), (rows, cols) = window.pad, (stage.rows, stage.cols)
    above = max(0, (window.kernel[0] - 1) * window.dilation[0] - top)
    before = max(0, (window.kernel[1] - 1) * window.dilation[1] - left)
    spread_rows, spread_cols = rows + top + above, cols + left + before
    back = _tile(rows, cols, stage.channels)
    return {
        **{"spread_top": above, "spread_left": before},
        **{"spread_rows": spread_rows, "spread_cols": spread_cols},
        "spread": shared.take(spread_rows * spread_cols * stage.filters),
        **{"back_rows": back[0], "back_cols": back[1]},
        "vector": _widest(stage.filters),
    }
