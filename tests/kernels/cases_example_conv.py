"""example_conv.cu: whole examples by blocks, more of them than blocks; windows at all edges."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpulayers.cuda import fusible
from gpulayers.cuda.fusible import RELU, Formula
from gpulayers.cuda.mega_tiles import example_constants
from gpulayers.ops.window import Window
from tests.kernels import fused, gold
from tests.kernels.arrays import Launcher, close, load, poisoned, random, rounded, store
from tests.kernels.gold import Geometry

LENET_FIRST = Geometry(3, 28, 28, 1, (5, 5), (1, 1), (2, 2, 2, 2))
LENET_SECOND = Geometry(3, 14, 14, 6, (5, 5))
#: rows and columns that pooling leaves out; borders of other widths; taps that see nothing
ODD = Geometry(4, 9, 10, 3, (3, 2), (1, 1), (1, 0, 2, 1))
STRIDED = Geometry(3, 11, 12, 5, (3, 2), (2, 3), (1, 2, 0, 1), (2, 1))
BORDER = Geometry(2, 4, 3, 2, (2, 3), (1, 1), (3, 2, 4, 5), (1, 2))
POINT = Geometry(1, 5, 7, 1, (1, 1))


def _known(g: Geometry, filters: int, pooled: bool, *how: Any) -> tuple[str, dict[str, int], int]:
    pad = (g.pad[0], g.pad[1], g.pad[2], g.pad[3])
    window = Window(g.kernel, g.stride, pad, g.dilation)
    image = (g.rows, g.cols, g.ch)
    constants, shared = example_constants(image, filters, window, pooled, *how)
    numbers = (pair.split("=") for pair in constants.split(","))
    return constants, {name: int(value) for name, value in numbers}, shared


def _pool(g: Geometry, filters: int) -> Geometry:
    return Geometry(g.n, *g.out, filters, (2, 2), (2, 2))


def forward(
    launcher: Launcher,
    g: Geometry,
    filters: int,
    dtype: str = "float32",
    pooled: bool = False,
    act: Formula | None = RELU,
    blocks: int = 2,
) -> None:
    x, image = rounded(random(*g.shape), dtype)
    w, weights = rounded(random(g.columns_shape[1], filters, seed="w"), dtype)
    b, bias = rounded(random(filters, seed="b"), dtype)
    if pooled and dtype == "float32":  # a first maximum among equals, and NaN before all
        x, image = rounded(np.round(image), dtype)
        w, weights = rounded(np.round(weights), dtype)
        image[0, 1, 1, 0] = x[0, 1, 1, 0] = np.nan
    want = (gold.im2col(image, g) @ weights).reshape(g.n, *g.out, filters)
    place = np.zeros(0)
    if pooled:
        want, place = gold.max_pool(want, _pool(g, filters))
    want = want + bias
    want = fused.value(act, want)
    z, winners = poisoned(want.shape, dtype), poisoned(want.shape if pooled else 0, "uint8")
    constants, _, shared = _known(g, filters, pooled, act, None, False)
    args = (x, w, b, z, winners, g.n)
    grid = (min(blocks, g.n),)
    known = fusible.constants(act, constants)
    launcher.launch("example_conv_forward", dtype, "int32", grid, args, shared, 0, known)
    close(z, want, dtype, factor=4)
    if pooled:
        np.testing.assert_array_equal(
            winners, np.where(load(z, dtype) > 0, place, 4) if act == RELU else place
        )


def backward(
    launcher: Launcher,
    g: Geometry,
    filters: int,
    dtype: str = "float32",
    pooled: bool = False,
    before: Formula | None = None,
    learns: bool = True,
    inputs: bool = True,
    blocks: int = 2,
) -> None:
    x, image = fused.outputs(before or RELU, dtype, *g.shape)
    w, weights = rounded(random(g.columns_shape[1], filters, seed="w"), dtype)
    shape = _pool(g, filters).out_shape if pooled else (g.n, *g.out, filters)
    stored, dy = rounded(random(*shape, seed="dy"), dtype)
    winners = np.arange(dy.size if pooled else 0, dtype=np.uint8) % 5
    dz = dy
    if pooled:
        winners = winners.reshape(dy.shape)
        dz = gold.max_pool_grad(np.where(winners < 4, dy, 0), winners % 4, _pool(g, filters))
    blocks = min(blocks, g.n)
    grads = poisoned((blocks, g.columns_shape[1] + 1, filters) if learns else 0, "float32")
    dx = poisoned(g.shape if inputs else 0, dtype)
    constants, _, shared = _known(g, filters, pooled, None, before, True)
    own = len(grads) if learns else 0
    args = (x, stored, winners, w, grads, dx, g.n, own)
    grid = (own + (blocks if inputs else 0),)
    known = fusible.constants(before, constants)
    launcher.launch("example_conv_backward", dtype, "int32", grid, args, shared, 0, known)
    rows = dz.reshape(-1, filters)
    if learns:
        want = np.vstack([gold.im2col(image, g).T @ rows, rows.sum(axis=0)])
        close(store(load(grads, "float32").sum(axis=0), "float32"), want, "float32", 8.0)
    if inputs:
        want = gold.col2im(rows @ weights.T, g)
        slopes = 1.0 if before is None else fused.slope_at_value(before, image)
        close(dx, want * slopes, dtype, factor=4)


_case = functools.partial
CASES = [
    _case(forward, g=LENET_FIRST, filters=6, pooled=True),
    _case(forward, g=LENET_SECOND, filters=16, pooled=True),
    _case(forward, g=ODD, filters=5, pooled=True, act=None, blocks=1),
    _case(forward, g=STRIDED, filters=7, dtype="float16"),
    _case(forward, g=STRIDED, filters=4, dtype="bfloat16", pooled=True),
    _case(forward, g=BORDER, filters=12, act=None),
    _case(forward, g=POINT, filters=1),
    _case(backward, g=LENET_FIRST, filters=6, pooled=True, inputs=False),
    _case(backward, g=LENET_SECOND, filters=16, pooled=True, before=RELU),
    _case(backward, g=ODD, filters=5, pooled=True, blocks=1),
    _case(backward, g=ODD, filters=4, dtype="bfloat16", pooled=True, before=RELU),
    _case(backward, g=STRIDED, filters=7),
    _case(backward, g=STRIDED, filters=6, dtype="float16", before=RELU, learns=False),
    _case(backward, g=BORDER, filters=12, before=RELU),
    _case(backward, g=POINT, filters=1),
    _case(forward, g=LENET_SECOND, filters=5, pooled=True, act=fused.TANH),
    _case(forward, g=ODD, filters=5, act=fused.LEAKY),
    _case(backward, g=ODD, filters=5, pooled=True, before=fused.SELU),
    _case(backward, g=BORDER, filters=12, dtype="bfloat16", before=fused.LEAKY),
]
