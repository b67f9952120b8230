"""conv.cu: everything asymmetric; with the pooling that follows; sums shared by blocks."""

from __future__ import annotations

import functools
import re

import numpy as np

from gpulayers.cuda import fusible, table
from gpulayers.cuda.fusible import RELU, Formula
from gpulayers.cuda.table_tiles import TILES
from tests.kernels import fused, gold
from tests.kernels.arrays import WIDE, Launcher, close, load, poisoned, random, rounded, store
from tests.kernels.cases_gemm import seen
from tests.kernels.gold import Geometry

#: rows of out_cols that odd sizes leave out of the pooling
SKEW = Geometry(2, 7, 6, 3, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2))
POOLED = Geometry(2, 6, 7, 2, (3, 2), (1, 1), (1, 1, 0, 0))
POINT = Geometry(1, 3, 3, 1, (1, 1))
#: for the large tiles: runs of 16 bytes
RUNS = Geometry(2, 7, 6, 8, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2))
RUNS_POOLED = Geometry(2, 6, 7, 8, (3, 2), (1, 1), (1, 1, 0, 0))
#: the tiles but those of all cases, and the dtypes that these do not have
LARGE = {
    "": ("float16", "bfloat16"),
    "_tall": ("float32",),
    "_large": ("float32",),
    "_tensor": ("float32", "float16", "bfloat16"),
    "_tensor_large": ("float32", "float16", "bfloat16"),
    "_tensor_tall": ("float32", "float16", "bfloat16"),
    "_warpgroup": ("float16", "bfloat16"),
    "_warpgroup_large": ("float16", "bfloat16"),
}


def _filters(name: str) -> int:
    return 8 if TILES[_tile(name)].runs else 5


def _tile(name: str) -> str:
    return re.sub("^conv2d_(forward|(input|weight)_grad)", "", name)


def _grid(name: str, rows: int, cols: int, parts: int = 1) -> tuple[int, int, int]:
    tile = TILES[_tile(name)]
    return -(-rows // tile.rows), -(-cols // tile.cols), parts


def constants(
    g: Geometry, filters: int, pooled: bool, special: bool, depth: int | None = None
) -> str:
    """What a plan compiles a kernel for."""
    names = (*table.WINDOW_NAMES, "filters", "pooled", "depth")
    known = zip(names, (*g.numbers, filters, int(pooled), depth or g.ch), strict=True)
    return ",".join(f"{name}={value}" for name, value in known) if special else ""


def with_channels(x: np.ndarray, depth: int | None) -> np.ndarray:
    """Zeros in the place of the channels from `depth` on."""
    return x if depth is None else np.where(np.arange(x.shape[-1]) < depth, x, 0)


def of_channels(w: np.ndarray, g: Geometry, depth: int | None) -> np.ndarray:
    """The first `depth` channels of weights (taps * channels, filters)."""
    few = w.reshape(-1, g.ch, w.shape[1])[:, :depth].reshape(-1, w.shape[1])
    return np.ascontiguousarray(few)


def _windows(x: np.ndarray, g: Geometry) -> np.ndarray:
    return gold.im2col(x, g)


def _pool(g: Geometry, filters: int) -> Geometry:
    return Geometry(g.n, *g.out, filters, (2, 2), (2, 2))


def forward(
    launcher: Launcher,
    g: Geometry,
    name: str = "conv2d_forward",
    dtype: str = "float32",
    index: str = "int32",
    follow: bool = True,
    pooled: bool = False,
    special: bool = False,
    depth: int | None = None,
    act: Formula = RELU,
) -> None:
    """`special`: compiled for this geometry; `depth`: the channels that are not zeros."""
    count = _filters(name)
    x, image = rounded(with_channels(random(*g.shape), depth), dtype)
    w, filters = rounded(random(g.columns_shape[1], count, seed="w"), dtype)
    bias, shift = rounded(random(count, seed="b"), dtype)
    if pooled and dtype == "float32":  # a first maximum among equals, and NaN before all
        x, image = rounded(np.round(image), dtype)
        w, filters = rounded(np.round(filters), dtype)
        image[0, 1, 1, 0] = x[0, 1, 1, 0] = np.nan
    want = _windows(seen(image, name, dtype), g) @ seen(filters, name, dtype)
    want = want.reshape(g.n, *g.out, count)
    shape = _pool(g, count).out_shape if pooled else want.shape
    winners = poisoned(shape if pooled else 0, "uint8")
    want_winners = None
    if pooled:
        want, want_winners = gold.max_pool(want, _pool(g, count))
    if follow:
        want = fused.value(act, want + shift)
    z = poisoned(shape, dtype)
    pixels = (4 if pooled else 1) * z.size // count
    numbers = (pixels, count, follow, follow, pooled, depth or g.ch, *g.numbers)
    grid = _grid(name, pixels, count)
    args = (x, of_channels(w, g, depth), bias, z, winners, *numbers)
    known = constants(g, count, pooled, special, depth)
    launcher.launch(name, dtype, index, grid, args, constants=fusible.constants(act, known))
    close(z, want, dtype, factor=4)
    if want_winners is not None:
        shuts = follow and act == RELU
        np.testing.assert_array_equal(
            winners, np.where(load(z, dtype) > 0, want_winners, 4) if shuts else want_winners
        )


def input_grad(
    launcher: Launcher,
    g: Geometry,
    name: str = "conv2d_input_grad",
    dtype: str = "float32",
    index: str = "int32",
) -> None:
    count = _filters(name)
    stored, dz = rounded(random(*g.out, count, g.n, seed="dz").transpose(3, 0, 1, 2), dtype)
    w, filters = rounded(random(g.columns_shape[1], count, seed="w"), dtype)
    dx = poisoned(g.shape, dtype)
    pixels = dx.size // g.ch
    grid = _grid(name, pixels, g.ch)
    launcher.launch(name, dtype, index, grid, (stored, w, dx, pixels, count, *g.numbers))
    dz, filters = seen(dz.reshape(-1, count), name, dtype), seen(filters, name, dtype)
    close(dx, gold.col2im(dz @ filters.T, g), dtype, factor=4)


def weight_grad(
    launcher: Launcher,
    g: Geometry,
    name: str = "conv2d_weight_grad",
    dtype: str = "float32",
    index: str = "int32",
    bias: bool = True,
    parts: int = 1,
) -> None:
    count = _filters(name)
    x, image = rounded(random(*g.shape), dtype)
    stored, dz = rounded(random(*g.out, count, g.n, seed="dz").transpose(3, 0, 1, 2), dtype)
    pixels = stored.size // count
    rows = g.columns_shape[1] + bias
    grads = poisoned((rows, count), dtype)
    partial = poisoned((parts, rows, count) if parts > 1 else 0, WIDE[dtype])
    numbers = (pixels, count, -(-pixels // parts), bias, *g.numbers)
    grid = _grid(name, rows, count, parts)
    launcher.launch(name, dtype, index, grid, (x, stored, grads, partial, *numbers))
    dz = seen(dz.reshape(-1, count), name, dtype)
    want = _windows(seen(image, name, dtype), g).T @ dz
    if bias:
        want = np.vstack([want, dz.sum(axis=0)])
    got = store(load(partial, WIDE[dtype]).sum(axis=0), dtype) if parts > 1 else grads
    close(got, want, dtype, factor=8)


_FORMS = (forward, input_grad, weight_grad)
CASES = [
    *(functools.partial(f, g=SKEW) for f in _FORMS),
    *(functools.partial(f, g=SKEW, dtype="float64", index="int64") for f in _FORMS),
    *(functools.partial(f, g=SKEW, index="int64") for f in _FORMS[1:]),
    functools.partial(forward, g=POOLED, pooled=True, index="int64"),
    functools.partial(forward, g=SKEW, name="conv2d_forward_narrow", follow=False),
    functools.partial(input_grad, g=SKEW, name="conv2d_input_grad_narrow"),
    functools.partial(weight_grad, g=SKEW, name="conv2d_weight_grad_narrow", bias=False),
    functools.partial(forward, g=POOLED, name="conv2d_forward_narrow", pooled=True, index="int64"),
    functools.partial(input_grad, g=POINT, name="conv2d_input_grad_narrow", index="int64"),
    functools.partial(
        weight_grad, g=SKEW, name="conv2d_weight_grad_narrow", index="int64", parts=3
    ),
    functools.partial(forward, g=POOLED, follow=False, pooled=True),
    functools.partial(weight_grad, g=SKEW, parts=2),
    *(
        functools.partial(f, g=RUNS, name=f"conv2d_{f.__name__}{tile}", dtype=d, index=i)
        for f in _FORMS
        for tile, dtypes in LARGE.items()
        for d in dtypes
        for i in ("int32", "int64")
    ),
    *(
        functools.partial(
            forward, g=RUNS_POOLED, name=f"conv2d_forward{tile}", dtype=d, pooled=True
        )
        for tile, dtypes in LARGE.items()
        for d in dtypes
    ),
    functools.partial(weight_grad, g=RUNS, name="conv2d_weight_grad_tensor", parts=3),
    functools.partial(forward, g=POOLED, follow=True, pooled=True, act=fused.TANH),
    functools.partial(
        forward, g=RUNS_POOLED, name="conv2d_forward_tensor", pooled=True, act=fused.LEAKY
    ),
]
