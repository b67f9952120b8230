"""standardize.cu: rows of a matrix and of groups, short and long, far from zero, NaN."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    close,
    load,
    poisoned,
    random,
    rounded,
    store,
)

EPS = 0.25
#: (examples, pixels, groups, channels of a group): one number a row, a matrix of 9 rows (more than
#: the 8 warps of a block) of just over a warp, and groups whose chunks lie apart
SHORT = ((2, 1, 1, 1), (9, 1, 1, 35), (2, 5, 3, 4))
#: a whole block a row: fewer numbers than threads, and more
LONG = ((2, 7, 1, 43), (1, 9, 3, 5))


def rows_of(x: np.ndarray) -> np.ndarray:
    """(examples, pixels, groups, chunk) with a row for each example and group."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0] * x.shape[2], -1)


def _launch(
    launcher: Launcher, name: str, dtype: str, index: str, args: tuple, shape: tuple, long: bool
) -> None:
    n, pixels, groups, chunk = shape
    rows = n * groups
    numbers = (rows, pixels * chunk, groups, chunk)
    grid = (rows if long else -(-rows // 8),)
    launcher.launch(name + "_long" * long, dtype, index, grid, (*args[0], *numbers, *args[1]))


def forward(
    launcher: Launcher,
    shape: tuple[int, int, int, int],
    dtype: str,
    index: str,
    long: bool,
    offset: float = 0.0,
) -> None:
    x, values = rounded(random(*shape) + offset, dtype)
    x_hat, inv_std = poisoned(shape, dtype), poisoned(shape[0] * shape[2], WIDE[dtype])
    none = poisoned(0, dtype)
    arrays = (x, none, none, x_hat, inv_std, none)
    _launch(launcher, "standardize_forward", dtype, index, (arrays, (EPS, 0)), shape, long)
    want = [gold.standardized(row, EPS) for row in rows_of(values).tolist()]
    close(rows_of(x_hat), np.array([w[0] for w in want]), dtype, 4.0)
    close(inv_std, np.array([w[3] for w in want]), WIDE[dtype], 4.0)


def affine(launcher: Launcher, width: int, dtype: str, index: str, long: bool) -> None:
    """With scaler and intercept."""
    x, values = rounded(random(3, width), dtype)
    (s, scaler), (b, intercept) = (rounded(random(width, seed=k), dtype) for k in "sb")
    x_hat, y, inv_std = poisoned(x.shape, dtype), poisoned(x.shape, dtype), poisoned(3, WIDE[dtype])
    args = ((x, s, b, x_hat, inv_std, y), (EPS, 1))
    _launch(launcher, "standardize_forward", dtype, index, args, (3, 1, 1, width), long)
    want = np.array([gold.standardized(row, EPS)[0] for row in values.tolist()])
    close(x_hat, want, dtype, 4.0)
    close(y, want * scaler + intercept, dtype, 4.0)


def affine_backward(launcher: Launcher, width: int, dtype: str, index: str, long: bool) -> None:
    x_hat, hats = rounded(random(3, width), dtype)
    dy, upstream = rounded(random(3, width, seed="dy"), dtype)
    s, scaler = rounded(random(width, seed="s"), dtype)
    inv_std, dx = store(np.array([0.5, 1.0, 2.0]), WIDE[dtype]), poisoned(dy.shape, dtype)
    args = ((dy, x_hat, s, inv_std, dx), (1,))
    _launch(launcher, "standardize_backward", dtype, index, args, (3, 1, 1, width), long)
    close(dx, _gradient(upstream * scaler, hats, inv_std), dtype, 8.0)


def _gradient(dy: np.ndarray, x_hat: np.ndarray, inv_std: np.ndarray) -> np.ndarray:
    rows = zip(dy.tolist(), x_hat.tolist(), inv_std.tolist(), strict=True)
    return np.array([gold.standardized_grad(*row) for row in rows])


def backward(
    launcher: Launcher, shape: tuple[int, int, int, int], dtype: str, index: str, long: bool
) -> None:
    x_hat, hats = rounded(random(*shape), dtype)
    dy, upstream = rounded(random(*shape, seed="dy"), dtype)
    inv_std = store(np.linspace(0.5, 2.0, shape[0] * shape[2]), WIDE[dtype])
    dx = poisoned(shape, dtype)
    arrays = (dy, x_hat, poisoned(0, dtype), inv_std, dx)
    _launch(launcher, "standardize_backward", dtype, index, (arrays, (0,)), shape, long)
    close(rows_of(dx), _gradient(rows_of(upstream), rows_of(hats), inv_std), dtype, 8.0)


def far_from_zero(launcher: Launcher, long: bool) -> None:
    """A mean of 1e4 with a deviation of 1: x itself is known to 5e-4 only, but what is made of it
    is as exact as near zero."""
    forward(launcher, (2, 1, 1, 300), "float32", "int32", long, offset=1e4)


def special(launcher: Launcher, long: bool) -> None:
    """A NaN or an infinity spoils its own row; a row of one number gives zeros."""
    x = store(random(4, 40), "float32")
    x[0, 39], x[1, 0], x[2] = np.nan, np.inf, 7.0
    x_hat, inv_std = poisoned(x.shape, "float32"), poisoned(4, "float32")
    none = poisoned(0, "float32")
    arrays = (x, none, none, x_hat, inv_std, none)
    args = (arrays, (EPS, 0))
    _launch(launcher, "standardize_forward", "float32", "int32", args, (4, 1, 1, 40), long)
    assert np.isnan(x_hat[:2]).all() and np.isnan(inv_std[:2]).all()
    assert (x_hat[2] == 0).all() and inv_std[2] == 2.0
    close(x_hat[3], np.array(gold.standardized(load(x, "float32")[3].tolist(), EPS)[0]), "float32")


CASES = [
    *(
        functools.partial(f, shape=s, dtype="float32", index="int32", long=long)
        for long, shapes in ((False, SHORT), (True, LONG))
        for s in shapes
        for f in (forward, backward)
    ),
    *(functools.partial(f, long=long) for f in (far_from_zero, special) for long in (False, True)),
    *(
        functools.partial(f, width=w, dtype="float32", index="int32", long=w > 32)
        for w in (9, 50)
        for f in (affine, affine_backward)
    ),
    *(
        functools.partial(f, shape=(2, 2, 3, 5), dtype=d, index=i, long=long)
        for d, i in COMBINATIONS[1:]
        for f in (forward, backward)
        for long in (False, True)
    ),
]
