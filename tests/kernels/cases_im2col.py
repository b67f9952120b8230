"""im2col.cu on geometries that overhang blocks, with asymmetric stride, padding and dilation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    blocks,
    close,
    poisoned,
    random,
    rounded,
    store,
)
from tests.kernels.gold import Geometry

#: everything asymmetric
SKEW = Geometry(2, 5, 6, 3, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2))
#: overlapping windows, batch of one, one channel
DENSE = Geometry(1, 7, 9, 1, (3, 3), (1, 1), (1, 1, 1, 1))
#: gaps between the windows: some pixels are never read
GAPS = Geometry(2, 8, 7, 2, (2, 1), (3, 3))
#: a 1x1 window; a window as large as the image
POINT = Geometry(3, 4, 3, 5, (1, 1))
WHOLE = Geometry(1, 3, 4, 2, (3, 4), (1, 1), (0, 0, 0, 0))
#: 8 channels: two vector loads of float32, one of half; dilated and padded
WIDE_ROWS = Geometry(2, 4, 5, 8, (2, 2), (1, 2), (0, 1, 1, 0), (2, 1))
GEOMETRIES = (SKEW, DENSE, GAPS, POINT, WHOLE)


def im2col(launcher: Launcher, g: Geometry, dtype: str, index: str, vector: bool = False) -> None:
    stored, x = rounded(random(*g.shape), dtype)
    columns = poisoned(g.columns_shape, dtype)
    name = "im2col_vector" if vector else "im2col"
    total = columns.size // (16 // stored.itemsize if vector else 1)
    args = (stored, columns, total, *g.numbers)
    launcher.launch(name, dtype, index, blocks(total, name), args)
    np.testing.assert_array_equal(columns, store(gold.im2col(x, g), dtype))


def gather(launcher: Launcher, g: Geometry, dtype: str, index: str, vector: bool = False) -> None:
    stored, columns = rounded(random(*g.columns_shape), dtype)
    x = poisoned(g.shape, dtype)
    name = "col2im_gather_vector" if vector else "col2im_gather"
    total = x.size // (16 // stored.itemsize if vector else 1)
    launcher.launch(name, dtype, index, blocks(total, name), (stored, x, total, *g.numbers))
    close(x, gold.col2im(columns, g), dtype)


def scatter(launcher: Launcher, g: Geometry, dtype: str, index: str) -> None:
    stored, columns = rounded(random(*g.columns_shape), dtype)
    x = np.zeros(g.shape, WIDE[dtype])
    grid = blocks(columns.size, "col2im_scatter")
    args = (stored, x, columns.size, *g.numbers)
    launcher.launch("col2im_scatter", dtype, index, grid, args)
    close(x, gold.col2im(columns, g), WIDE[dtype])


def adjoint(launcher: Launcher) -> None:
    """<im2col(x), c> = <x, col2im(c)> for any x and c, by the kernels alone."""
    x = store(random(*SKEW.shape), "float64")
    c = store(random(*SKEW.columns_shape), "float64")
    columns, back = poisoned(c.shape, "float64"), poisoned(x.shape, "float64")
    grid = blocks(c.size, "im2col")
    launcher.launch("im2col", "float64", "int64", grid, (x, columns, c.size, *SKEW.numbers))
    grid = blocks(x.size, "col2im_gather")
    launcher.launch("col2im_gather", "float64", "int64", grid, (c, back, x.size, *SKEW.numbers))
    assert abs(np.vdot(columns, c) - np.vdot(x, back)) < 1e-10


_FORMS: tuple[Callable[..., None], ...] = (im2col, gather, scatter)
CASES = [
    *(functools.partial(f, g=SKEW, dtype=d, index=i) for d, i in COMBINATIONS for f in _FORMS),
    *(
        functools.partial(f, g=g, dtype="float32", index="int32")
        for g in GEOMETRIES[1:]
        for f in _FORMS
    ),
    *(
        functools.partial(f, g=WIDE_ROWS, dtype=d, index=i, vector=True)
        for d, i in COMBINATIONS
        for f in (im2col, gather)
    ),
    adjoint,
]
