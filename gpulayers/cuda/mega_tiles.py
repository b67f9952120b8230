"""How the threads of a block share a convolution of an example that lies in its shared memory: the
constants of mega_conv.cuh, and for a convolution alone (example_conv.cu) all of them; needs no
CuPy."""

from __future__ import annotations

import functools
import math

from gpulayers.cuda.fusible import Formula
from gpulayers.cuda.mega_constants import THREADS
from gpulayers.cuda.table import ACTIVATIONS
from gpulayers.ops.window import Window

__all__ = ["conv_constants", "example_constants", "spread_constants", "widest"]

_ALIGNED = 4  # floats: vectors of 16 bytes are read
_MOST_PIXELS = 8  # of one thread, where the pooling does not say

Sizes = tuple[int, int, int]


def conv_constants(
    image: Sizes, filters: int, window: Window, pool: tuple[int, int] | None
) -> dict[str, int]:
    """Of a convolution of (rows, cols, channels) with the max pooling behind it, whose windows lie
    side by side."""
    rows, cols, channels = image
    (top, _, left, right), (kernel_rows, kernel_cols) = window.pad, window.kernel
    convolved = window.output_size(rows, cols)
    tile = pool or _tile(*convolved, filters)
    down, across = convolved[0] // tile[0], convolved[1] // tile[1]
    out = (down, across) if pool else convolved
    units = kernel_rows * channels * filters
    return {
        **{"rows": rows, "cols": cols, "channels": channels, "filters": filters},
        **{"kernel_rows": kernel_rows, "kernel_cols": kernel_cols},
        **{"stride_rows": window.stride[0], "stride_cols": window.stride[1]},
        **{"dilation_rows": window.dilation[0], "dilation_cols": window.dilation[1]},
        **{"top": top, "left": left, "input_cols": cols + left + right},
        **{"tile_rows": tile[0], "tile_cols": tile[1], "tiles_down": down, "tiles_across": across},
        **{"out_rows": out[0], "out_cols": out[1], "pooled": int(bool(pool))},
        "group": _group(filters, down * across, tile[0] * tile[1]),
        "shares": max(1, min(out[0] * out[1], THREADS // units)),
        "parameters": window.taps * channels * filters + filters,
    }


def spread_constants(image: Sizes, filters: int, window: Window) -> tuple[dict[str, int], int]:
    """Of the output's gradient with the room around it that the gradient of the input needs, and
    the numbers of that."""
    rows, cols, channels = image
    top, _, left, _ = window.pad
    above = max(0, (window.kernel[0] - 1) * window.dilation[0] - top)
    before = max(0, (window.kernel[1] - 1) * window.dilation[1] - left)
    spread_rows, spread_cols = rows + top + above, cols + left + before
    back = _tile(rows, cols, channels)
    known = {
        **{"spread_top": above, "spread_left": before},
        **{"spread_rows": spread_rows, "spread_cols": spread_cols},
        **{"back_rows": back[0], "back_cols": back[1]},
        "vector": widest(filters),
    }
    return known, spread_rows * spread_cols * filters


@functools.cache
def example_constants(
    image: Sizes,
    filters: int,
    window: Window,
    pooled: bool,
    act: Formula | None,
    before: Formula | None,
    back: bool,
) -> tuple[str, int]:
    """The constants of example_conv.cu as `compile.get_kernel` takes them, and the bytes of shared
    memory that a block needs, ahead or `back`; `act` is the activation of the output, `before` that
    which the image is the output of."""
    end = 0

    def take(size: int) -> int:
        nonlocal end
        place = end
        end += -(-size // _ALIGNED) * _ALIGNED
        return place

    rows, cols, channels = image
    top, bottom, left, right = window.pad
    known = conv_constants(image, filters, window, (2, 2) if pooled else None)
    spread, room = spread_constants(image, filters, window)
    padded = (rows + top + bottom) * (cols + left + right) * channels
    outputs = known["out_rows"] * known["out_cols"] * filters
    places = {"weights": take(known["parameters"] - filters), "input": take(padded)}
    places["input_size"], output = padded, take(outputs)
    places |= {"output": output, "gradient": output}  # one ahead, the other back
    places["winners"] = take(math.ceil(outputs / 4) if pooled else 0)
    # a block back has either the sums, or what follows them
    places["sums"] = end
    places["bias"] = take(filters)
    places["spread"] = take(room if back else 0)
    places["gradient_before"] = take(math.prod(image) if back else 0)
    if back:
        end = max(end, places["sums"] + known["shares"] * known["parameters"])
    constants = {
        **known,
        **spread,
        **places,
        "activation": _number(act),
        "before": _number(before),
        **{"output_top": 0, "output_left": 0, "output_cols": known["out_cols"]},
        **{"partial": 0, "dropped": 0},
    }
    return ",".join(f"{name}={value}" for name, value in constants.items()), 4 * end


def _number(act: Formula | None) -> int:
    return 0 if act is None else ACTIVATIONS.index(act[0])


def widest(*numbers: int) -> int:
    """The widest vector that divides all numbers."""
    return next(n for n in (4, 2, 1) if not any(number % n for number in numbers))


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


def _group(filters: int, tiles: int, pixels: int) -> int:
    """Filters of one thread: as many as leave enough threads with something to do."""
    sizes = [n for n in (4, 2, 1) if filters % n == 0 and n * pixels <= 16]
    for size in sizes:
        if 4 * tiles * (filters // size) >= 3 * THREADS:
            return size
    return sizes[-1] if sizes else 1
