"""conv_step.cu: moments of groups of tiles; both gradients at once, with the sums for a
normalisation before it, what is added to them, and the pooling behind."""

from __future__ import annotations

import functools
import re

import numpy as np

from gpulayers.cuda import fusible
from gpulayers.cuda.fusible import RELU, Formula
from gpulayers.cuda.table_tiles import TILES
from tests.kernels import fused, gold
from tests.kernels.arrays import (
    WIDE,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
    store,
)
from tests.kernels.cases_conv import LARGE, constants, of_channels, with_channels
from tests.kernels.cases_gemm import seen
from tests.kernels.cases_norm import Layer, Shape
from tests.kernels.gold import Geometry

#: rows of tiles that are added up together
MEMBERS = 2
SKEW = Geometry(2, 7, 6, 3, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2))
#: more tiles than members, the last one shorter
TILED = Geometry(3, 9, 8, 3, (2, 3), (1, 1), (1, 0, 1, 1))
POOLED = Geometry(3, 7, 8, 3, (2, 3), (1, 1), (1, 0, 1, 1))
LONG = Geometry(3, 13, 14, 2, (2, 1))
RUNS = Geometry(3, 9, 10, 8, (2, 2), (1, 1), (1, 0, 1, 0))
#: for the tiles of 256 rows: more pixels than those, more terms than a stage
MANY = Geometry(2, 14, 13, 8, (5, 3), (1, 1), (2, 2, 1, 1))


def _tile(name: str) -> str:
    return re.sub("^conv2d_(moments|backward)", "", name)


def _filters(name: str) -> int:
    return 8 if TILES[_tile(name)].runs else 5


def _arrived(columns: int, parts: int) -> np.ndarray:
    return np.zeros(columns * parts, np.uint32)


def moments(
    launcher: Launcher,
    g: Geometry,
    name: str = "conv2d_moments",
    dtype: str = "float32",
    index: str = "int32",
    offset: float = 0.0,
    special: bool = False,
    depth: int | None = None,
) -> None:
    tile, count = TILES[_tile(name)], _filters(name)
    x, image = rounded(with_channels(random(*g.shape), depth), dtype)
    w, filters = rounded(random(g.columns_shape[1], count, seed="w"), dtype)
    bias, shift = rounded(random(count, seed="b") + offset, dtype)
    z = poisoned((g.columns_shape[0], count), dtype)
    tiles, across = -(-len(z) // tile.rows), -(-count // tile.cols)
    parts, span = -(-tiles // MEMBERS), MEMBERS * tile.rows
    each, arrived = poisoned((tiles, 2, count), WIDE[dtype]), _arrived(across, parts)
    sums, squares = (poisoned((count, parts), WIDE[dtype]) for _ in range(2))
    stored, numbers = of_channels(w, g, depth), (len(z), count, MEMBERS, depth or g.ch, *g.numbers)
    args = (x, stored, bias, z, each, arrived, sums, squares, *numbers)
    compiled = constants(g, count, False, special, depth)
    launcher.launch(name, dtype, index, (tiles, across), args, constants=compiled)
    want = gold.im2col(seen(image, name, dtype), g) @ seen(filters, name, dtype) + shift
    close(z, want, dtype, factor=4)
    assert not arrived.any(), "the next launch counts from zero"
    values = load(z, dtype)
    for k in range(parts):
        own = values[k * span : (k + 1) * span]
        close(sums[:, k], gold.column_sums(own - own[0]), WIDE[dtype], 20.0)
        close(squares[:, k], gold.column_sums((own - own.mean(axis=0)) ** 2), WIDE[dtype], 20.0)


def _gradient(
    g: Geometry, dtype: str, pooled: bool, filters: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dz as stored, the winners, and dz at every output pixel."""
    if not pooled:
        stored, dz = rounded(random(*g.out, filters, g.n, seed="dz").transpose(3, 0, 1, 2), dtype)
        return stored, np.zeros(0, np.uint8), dz
    pool = Geometry(g.n, *g.out, filters, (2, 2), (2, 2))
    stored, dy = rounded(random(*pool.out_shape, seed="dy"), dtype)
    winners = np.arange(dy.size, dtype=np.uint8).reshape(dy.shape) % 5
    return stored, winners, gold.max_pool_grad(np.where(winners < 4, dy, 0), winners % 4, pool)


def backward(
    launcher: Launcher,
    g: Geometry,
    name: str = "conv2d_backward",
    dtype: str = "float32",
    index: str = "int32",
    pooled: bool = False,
    parts: int = 1,
    masked: bool = False,
    side: bool = False,
    norm: str = "",
    inputs: bool = True,
    special: bool = False,
    depth: int | None = None,
    act: Formula = RELU,
) -> None:
    """`norm`: "relu" or "pooled", with ReLU before the pooling, of a normalisation before it;
    `special`: compiled for this geometry; `depth`: the channels that are not zeros."""
    tile, count, ch = TILES[_tile(name)], _filters(name), g.ch
    x, image = rounded(with_channels(random(*g.shape), depth), dtype)
    if masked and act != RELU:
        x, image = fused.outputs(act, dtype, *g.shape)
    stored, winners, dz = _gradient(g, dtype, pooled, count)
    w, filters = rounded(random(g.columns_shape[1], count, seed="w"), dtype)
    added, beside = rounded(random(*g.shape, seed="side"), dtype)
    pixels, outputs = x.size // ch, (4 if pooled else 1) * stored.size // count
    stored_w = of_channels(w, g, depth)
    grads = poisoned((parts, len(stored_w) + 1, count), WIDE[dtype])
    dx = poisoned(g.shape, dtype)
    tiles = -(-pixels // tile.rows)
    across, groups = -(-ch // tile.cols), -(-tiles // MEMBERS)
    weight_blocks = -(-(g.columns_shape[1] + 1) // tile.rows) * -(-count // tile.cols) * parts

    double = norm == "pooled"
    shape = Shape(g.n, *((1 + double) * n + double for n in g.shape[1:3]), ch, 1, 1, double)
    layer = Layer(shape, dtype, relu=bool(norm), act=act)
    codes = layer.codes if double else layer.codes[:0]
    arrived, sums = _arrived(across, groups), poisoned((groups, 2, ch), WIDE[dtype])
    each = poisoned((tiles, 2, ch), WIDE[dtype])
    known = (layer.x, codes, layer.s, layer.b, *layer.saved(dtype), each, arrived, sums)
    numbers = (outputs, pixels, count, -(-outputs // parts), parts, weight_blocks, masked, side)
    flags = (pooled, bool(norm), shape.rows, shape.cols, layer.relu, double, MEMBERS)
    flags = (*flags, depth or ch, *g.numbers)
    args = (x, stored, winners, stored_w, added if side else added[:0], grads, dx, *known)
    grid = (weight_blocks + (tiles * across if inputs else 0),)
    compiled = constants(g, count, pooled, special, depth)
    compiled = fusible.constants(act, compiled)
    launcher.launch(name, dtype, index, grid, (*args, *numbers, *flags), constants=compiled)

    dz, filters = seen(dz.reshape(-1, count), name, dtype), seen(filters, name, dtype)
    want = gold.im2col(seen(image, name, dtype), g).T @ dz
    want = np.vstack([of_channels(want, g, depth), dz.sum(axis=0)])
    # tensor cores cut each product's sum off, where others round it
    factor = 8.0 * (max(1.0, outputs / parts / 128) if tile.tensor else 1.0)
    close(store(load(grads, WIDE[dtype]).sum(axis=0), WIDE[dtype]), want, WIDE[dtype], factor)
    if not inputs:
        return
    want = gold.col2im(dz @ filters.T, g)
    want = want * fused.slope_at_value(act, image) if masked else want
    close(dx, want + beside if side else want, dtype, factor=4)
    assert not arrived.any(), "the next launch counts from zero"
    if norm:
        through = layer.gradient(load(dx, dtype).reshape(pixels, ch))
        rows = (shape.windows(through * layer.x_hat), shape.windows(through))
        for k in range(groups):
            own = slice(k * MEMBERS * tile.rows, (k + 1) * MEMBERS * tile.rows)
            for row, values in enumerate(rows):
                total = gold.column_sums(values[own].sum(axis=1))
                close(sums[k, row], total, WIDE[dtype], 100.0)


def unpool(
    launcher: Launcher, g: Geometry, filters: int, dtype: str = "float32", index: str = "int32"
) -> None:
    stored, winners, dz = _gradient(g, dtype, True, filters)
    out = poisoned((g.n, *g.out, filters), dtype)
    step = 16 // stored.itemsize
    total = g.n * -(-g.out[0] // 2) * -(-g.out[1] // 2) * (filters // step)
    args = (stored, winners, out, total, *g.out, filters)
    launcher.launch("unpool2d", dtype, index, blocks(total, "unpool2d"), args)
    np.testing.assert_array_equal(load(out, dtype), dz)


def pad(launcher: Launcher, channels: int, dtype: str = "float32", index: str = "int32") -> None:
    x, image = rounded(random(2, 5, 7, channels), dtype)
    step = 16 // x.itemsize
    padded = -(-channels // step) * step
    y = poisoned((*x.shape[:3], padded), dtype)
    total = y.size // step
    args = (x, y, total, channels, padded)
    launcher.launch("pad_channels", dtype, index, blocks(total, "pad_channels"), args)
    want = np.pad(image, [(0, 0)] * 3 + [(0, padded - channels)])
    np.testing.assert_array_equal(load(y, dtype), want)


CASES = [
    *(
        functools.partial(pad, channels=channels, dtype=d, index=i)
        for channels, d, i in (
            *((1, "float32", "int32"), (3, "float32", "int64"), (7, "float32", "int32")),
            *((3, "float16", "int32"), (9, "float16", "int64"), (1, "bfloat16", "int32")),
            *((11, "bfloat16", "int64"),),
        )
    ),
    *(
        functools.partial(f, g=RUNS, name=f"conv2d_{f.__name__}{tile}", depth=depth, **more)
        for f, more in ((moments, {}), (backward, {"inputs": False, "parts": 2}))
        for tile, depth in (("", 7), ("_tall", 3), ("_tensor", 1), ("_tensor_tall", 5))
    ),
    *(
        functools.partial(unpool, g=g, filters=filters, dtype=d, index=i)
        for g in (RUNS, MANY, LONG)
        for d, i, filters in (
            *(("float32", "int32", 4), ("float32", "int64", 12)),
            *(("float16", "int32", 8), ("bfloat16", "int64", 16)),
        )
    ),
    functools.partial(moments, g=TILED),
    functools.partial(moments, g=TILED, index="int64", offset=1e4),
    functools.partial(moments, g=LONG, name="conv2d_moments_narrow"),
    functools.partial(moments, g=SKEW, name="conv2d_moments_narrow", index="int64"),
    functools.partial(backward, g=TILED, parts=2, masked=True),
    functools.partial(backward, g=TILED, index="int64", side=True, norm="relu"),
    functools.partial(backward, g=POOLED, pooled=True, norm="pooled"),
    functools.partial(backward, g=SKEW, parts=3, inputs=False),
    functools.partial(backward, g=SKEW, name="conv2d_backward_narrow", pooled=True),
    functools.partial(backward, g=LONG, name="conv2d_backward_narrow", index="int64", norm="relu"),
    *(
        functools.partial(f, g=TILED, name=f"conv2d_{f.__name__}", dtype="float64", index=i)
        for f in (moments, backward)
        for i in ("int32", "int64")
    ),
    *(
        functools.partial(moments, g=RUNS, name=f"conv2d_moments{tile}", dtype=d, index=i)
        for tile, dtypes in LARGE.items()
        for d in dtypes
        for i in ("int32", "int64")
    ),
    *(
        functools.partial(
            backward, g=RUNS, name=f"conv2d_backward{tile}", dtype=d, index=i, norm=norm
        )
        for tile, dtypes in LARGE.items()
        for d in dtypes
        for i, norm in (("int32", "relu"), ("int64", "pooled"))
    ),
    functools.partial(
        backward, g=RUNS, name="conv2d_backward_tensor", dtype="bfloat16", pooled=True, parts=3
    ),
    *(  # pixels of all runs that a thread asks for
        functools.partial(backward, g=MANY, name=f"conv2d_backward{tile}", dtype=d, pooled=True)
        for tile, d in (("_warpgroup", "float16"), ("_warpgroup_large", "bfloat16"))
    ),
    functools.partial(backward, g=TILED, masked=True, act=fused.SELU),
    functools.partial(backward, g=TILED, norm="relu", act=fused.TANH),
    functools.partial(backward, g=POOLED, norm="pooled", act=fused.LEAKY),
    functools.partial(
        backward, g=RUNS, name="conv2d_backward_tensor", masked=True, act=fused.SOFTPLUS
    ),
]
