"""pool.cu: overlaps, gaps, padding, ties, NaN, signed zeros, minus infinity."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
)
from tests.kernels.gold import Geometry

SKEW = Geometry(2, 6, 7, 3, (3, 2), (2, 1), (1, 2, 1, 0), (2, 3))
HALVES = Geometry(2, 6, 8, 6, (2, 2), (2, 2))
OVERLAP = Geometry(1, 7, 7, 2, (3, 3), (1, 2), (1, 1, 1, 1))
GAPS = Geometry(1, 8, 5, 1, (1, 2), (3, 3))
#: 256 taps: the last of them fills the byte
LARGE = Geometry(1, 16, 17, 1, (16, 16), (1, 1))
NUMBERS = ("random", "ties", "nan", "zeros", "minus infinity")


def _image(kind: str, g: Geometry) -> np.ndarray:
    x = random(*g.shape, seed=kind)
    if kind == "ties":
        return np.round(x)
    if kind == "nan":
        x.ravel()[::5] = np.nan
    if kind == "zeros":
        return np.copysign(0.0, x)
    if kind == "minus infinity":
        return np.where(x > 1.0, x, -np.inf)
    return x


def max_forward(launcher: Launcher, g: Geometry, dtype: str, index: str, kind: str) -> None:
    stored, x = rounded(_image(kind, g), dtype)
    y, argmax = poisoned(g.out_shape, dtype), poisoned(g.out_shape, "uint8")
    name = "max_pool2d_forward"
    args = (stored, y, argmax, y.size, *g.numbers)
    launcher.launch(name, dtype, index, blocks(y.size, name), args)
    want, want_argmax = gold.max_pool(x, g)
    np.testing.assert_array_equal(argmax, want_argmax)
    np.testing.assert_array_equal(load(y, dtype), want)  # NaN equals NaN here, -0.0 equals 0.0


def max_backward(launcher: Launcher, g: Geometry, dtype: str, index: str) -> None:
    _, argmax = gold.max_pool(_image("ties", g), g)
    stored, dy = rounded(random(*g.out_shape), dtype)
    dx = poisoned(g.shape, dtype)
    name = "max_pool2d_backward"
    args = (stored, argmax, dx, dx.size, *g.numbers)
    launcher.launch(name, dtype, index, blocks(dx.size, name), args)
    close(dx, gold.max_pool_grad(dy, argmax, g), dtype)


def avg_forward(launcher: Launcher, g: Geometry, dtype: str, index: str) -> None:
    stored, x = rounded(random(*g.shape), dtype)
    y = poisoned(g.out_shape, dtype)
    args = (stored, y, y.size, *g.numbers)
    launcher.launch("avg_pool2d_forward", dtype, index, blocks(y.size, "avg_pool2d_forward"), args)
    close(y, gold.avg_pool(x, g), dtype)


def avg_backward(launcher: Launcher, g: Geometry, dtype: str, index: str) -> None:
    stored, dy = rounded(random(*g.out_shape), dtype)
    dx = poisoned(g.shape, dtype)
    name = "avg_pool2d_backward"
    args = (stored, dx, dx.size, *g.numbers)
    launcher.launch(name, dtype, index, blocks(dx.size, name), args)
    close(dx, gold.avg_pool_grad(dy, g), dtype)


_FORMS: tuple[Callable[..., None], ...] = (
    functools.partial(max_forward, kind="random"),
    max_backward,
    avg_forward,
    avg_backward,
)
CASES = [
    *(functools.partial(f, g=SKEW, dtype=d, index=i) for d, i in COMBINATIONS for f in _FORMS),
    *(
        functools.partial(f, g=g, dtype="float32", index="int32")
        for g in (HALVES, OVERLAP, GAPS, LARGE)
        for f in _FORMS
    ),
    *(
        functools.partial(max_forward, g=g, dtype="float32", index="int32", kind=kind)
        for kind in NUMBERS[1:]
        for g in (SKEW, OVERLAP)
    ),
    functools.partial(max_forward, g=OVERLAP, dtype="float16", index="int32", kind="nan"),
]
