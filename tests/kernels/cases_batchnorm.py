"""batchnorm.cu: columns that fill no block, spans of rows, far from zero, NaN."""

from __future__ import annotations

import functools

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

EPS = 0.25
#: (rows, channels, width, span): one row; a column alone in a block that overhangs; an odd number
#: of columns in two blocks, several rounds of a block and a last span that is shorter; rows fewer
#: than the lines of a block; two spans as long as the rows of a block
SHAPES = ((1, 3, 4, 1), (70, 1, 1, 70), (45, 35, 32, 20), (9, 5, 8, 5), (16, 32, 32, 8))


def _parts(rows: int, span: int) -> int:
    return -(-rows // span)


Values = tuple[np.ndarray, np.ndarray]


def _spans(values: np.ndarray, span: int) -> Values:
    """Sums and squares of the spans, (channels, parts)."""
    away = values - values[0]
    spans = [away[k : k + span] for k in range(0, len(values), span)]
    sums = [gold.column_sums(own) for own in spans]
    squares = [gold.column_sums((own - own.mean(axis=0)) ** 2) for own in spans]
    return np.array(sums).T, np.array(squares).T


def _standardized(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """x_hat, mean, var, inv_std of the columns."""
    want = [gold.standardized(column, EPS) for column in values.T.tolist()]
    x_hat, *moments = (np.array(part) for part in zip(*want, strict=True))
    return x_hat.T, *moments


def moments(
    launcher: Launcher,
    rows: int,
    channels: int,
    width: int,
    span: int,
    dtype: str,
    index: str,
    offset: float = 0.0,
) -> None:
    x, values = rounded(random(rows, channels) + offset, dtype)
    parts = _parts(rows, span)
    sums, squares = (poisoned((channels, parts), WIDE[dtype]) for _ in range(2))
    grid = (-(-channels // width), parts)
    args = (x, sums, squares, rows, channels, width, span)
    launcher.launch("column_moments", dtype, index, grid, args)
    for found, want in zip((sums, squares), _spans(values, span), strict=True):
        close(found, want, WIDE[dtype], 40.0)


def statistics(
    launcher: Launcher,
    rows: int,
    channels: int,
    span: int,
    dtype: str,
    index: str,
    offset: float = 0.0,
) -> None:
    """The spans' means lie apart."""
    apart = np.arange(rows)[:, None] // span % 3
    x, values = rounded(random(rows, channels) + offset + apart, dtype)
    sums, squares = (store(part, WIDE[dtype]) for part in _spans(values, span))
    shift, inverse = (poisoned(channels, WIDE[dtype]) for _ in range(2))
    mean, var, inv_std = (poisoned(channels, dtype) for _ in range(3))
    args = (x, sums, squares, shift, inverse, mean, var, inv_std)
    args = (*args, rows, span, _parts(rows, span), EPS)
    launcher.launch("batchnorm_statistics", dtype, index, (channels,), args)
    _, means, variances, inverses = _standardized(values)
    close(shift, means - values[0], WIDE[dtype], 20.0)
    close(inverse, inverses, WIDE[dtype], 4.0)
    for stored, right in ((mean, means), (var, variances), (inv_std, inverses)):
        close(stored, right, dtype, 4.0)


def forward(
    launcher: Launcher, rows: int, channels: int, dtype: str, index: str, offset: float = 0.0
) -> None:
    x, values = rounded(random(rows, channels) + offset, dtype)
    (s, scaler), (b, intercept) = (rounded(random(channels, seed=k), dtype) for k in "sb")
    x_hats, means, _, inverses = _standardized(values)
    shift, inverse = store(means - values[0], WIDE[dtype]), store(inverses, WIDE[dtype])
    x_hat, y = poisoned(x.shape, dtype), poisoned(x.shape, dtype)
    args = (x, s, b, shift, inverse, x_hat, y, x.size, channels)
    launcher.launch("batchnorm_forward", dtype, index, blocks(x.size, "batchnorm_forward"), args)
    close(x_hat, x_hats, dtype, 8.0)
    close(y, x_hats * scaler + intercept, dtype, 8.0)


#: the three above with a mean of 1e4 and a deviation of 1, as exact as near zero
FAR = {"rows": 45, "channels": 5, "dtype": "float32", "index": "int32", "offset": 1e4}


def not_a_number(launcher: Launcher) -> None:
    """NaN and infinity spoil their own column."""
    x = store(random(9, 4), "float32")
    x[8, 0], x[0, 2] = np.nan, np.inf
    sums, squares = (poisoned((4, 2), "float32") for _ in range(2))
    args = (x, sums, squares, 9, 4, 4, 5)
    launcher.launch("column_moments", "float32", "int32", (1, 2), args)
    shift, inverse, mean, var, inv_std = (poisoned(4, "float32") for _ in range(5))
    args = (x, sums, squares, shift, inverse, mean, var, inv_std, 9, 5, 2, EPS)
    launcher.launch("batchnorm_statistics", "float32", "int32", (4,), args)
    for found in (mean, var, inv_std):
        np.testing.assert_array_equal(np.isnan(found), [True, False, True, False])


def sums(
    launcher: Launcher, rows: int, channels: int, width: int, span: int, dtype: str, index: str
) -> None:
    dy, upstream = rounded(random(rows, channels, seed="dy"), dtype)
    x_hat, hats = rounded(random(rows, channels), dtype)
    parts = _parts(rows, span)
    found = poisoned((parts, 2, channels), WIDE[dtype])
    grid = (-(-channels // width), parts)
    args = (dy, x_hat, found, rows, channels, width, span)
    launcher.launch("gradient_sums", dtype, index, grid, args)
    for k in range(parts):
        own = slice(k * span, (k + 1) * span)
        close(found[k, 0], gold.column_sums(upstream[own]), WIDE[dtype], 40.0)
        close(found[k, 1], gold.column_sums(upstream[own] * hats[own]), WIDE[dtype], 40.0)


def backward(launcher: Launcher, rows: int, channels: int, dtype: str, index: str) -> None:
    dy, upstream = rounded(random(rows, channels, seed="dy"), dtype)
    x_hat, hats = rounded(random(rows, channels), dtype)
    s, scaler = rounded(random(channels, seed="s"), dtype)
    inv_std, inverses = rounded(np.linspace(0.5, 2.0, channels), dtype)
    totals = [gold.column_sums(upstream), gold.column_sums(upstream * hats)]
    total, dx = store(np.array(totals), WIDE[dtype]), poisoned(dy.shape, dtype)
    args = (dy, x_hat, s, inv_std, total, dx, dy.size, channels, 1.0 / rows)
    grid = blocks(dy.size, "batchnorm_backward")
    launcher.launch("batchnorm_backward", dtype, index, grid, args)
    columns = zip(upstream.T.tolist(), hats.T.tolist(), inverses.tolist(), strict=True)
    want = np.array([gold.standardized_grad(*column) for column in columns]).T
    close(dx, want * scaler, dtype, 8.0)


CASES = [
    *(
        functools.partial(f, rows=r, channels=c, width=w, span=s, dtype="float32", index="int32")
        for r, c, w, s in SHAPES
        for f in (moments, sums)
    ),
    *(
        functools.partial(statistics, rows=r, channels=c, span=s, dtype="float32", index="int32")
        for r, c, s in ((1, 3, 1), (45, 5, 20), (599, 2, 2))  # more spans than a block has threads
    ),
    *(
        functools.partial(f, rows=r, channels=c, dtype="float32", index="int32")
        for r, c in ((1, 3), (45, 7))
        for f in (forward, backward)
    ),
    functools.partial(moments, width=8, span=20, **FAR),
    functools.partial(statistics, span=20, **FAR),
    functools.partial(forward, **FAR),
    not_a_number,
    *(
        functools.partial(f, rows=21, channels=5, width=8, span=11, dtype=d, index=i)
        for d, i in COMBINATIONS[1:]
        for f in (moments, sums)
    ),
    *(
        functools.partial(statistics, rows=21, channels=5, span=11, dtype=d, index=i)
        for d, i in COMBINATIONS[1:]
    ),
    *(
        functools.partial(f, rows=21, channels=5, dtype=d, index=i)
        for d, i in COMBINATIONS[1:]
        for f in (forward, backward)
    ),
]
