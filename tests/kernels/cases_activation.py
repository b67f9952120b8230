"""activation.cu: every activation with special values, bias, and the sums of columns."""

from __future__ import annotations

import functools

import numpy as np

from gpulayers.cuda import table
from gpulayers.cuda.fusible import RELU, Formula
from tests.kernels import fused, gold
from tests.kernels.arrays import (
    COMBINATIONS,
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

#: far and near, both sides of every kink (2.5 is hard-sigmoid's), signed zeros, infinities, NaN
SPECIAL = [0.0, -0.0, 2.5, -2.5, 40.0, -40.0, 1e-3, -1e-3, np.inf, -np.inf, np.nan]
#: alpha and beta that no activation takes for granted
ALPHA, BETA = 0.75, 1.5
#: slopes picked by comparing: what NaN gives
PICKED = {"identity": 1.0, "relu": 0.0, "leaky_relu": 1.0, "affine": ALPHA, "hard_sigmoid": 0.0}
#: rounding of exp and tanh, amplified a little by the formulas
LOOSE = 4.0


def _inputs(name: str, *shape: int) -> np.ndarray:
    return random(*shape, seed=name, scale=2.0)


def _number(name: str) -> int:
    return table.ACTIVATIONS.index(name)


def bias_add(launcher: Launcher, dtype: str, index: str) -> None:
    z, values = rounded(random(37, 9), dtype)
    b, bias = rounded(random(9), dtype)
    launcher.launch("bias_add", dtype, index, blocks(z.size, "bias_add"), (z, b, z.size, 9))
    close(z, values + bias, dtype)


def bias_relu(launcher: Launcher, dtype: str, index: str) -> None:
    """NaN stays; a sum of just zero and one just below are zero."""
    values = random(37, 9)
    values[3, 4], values[36] = np.nan, 0.0
    z, values = rounded(values, dtype)
    b, bias = rounded(np.array([*random(7), 0.0, -1e-3]), dtype)
    launcher.launch("bias_relu", dtype, index, blocks(z.size, "bias_relu"), (z, b, z.size, 9))
    close(
        z, np.array([[v if v > 0 or v != v else 0.0 for v in row] for row in values + bias]), dtype
    )


def bias_activation(launcher: Launcher, name: str, dtype: str, index: str) -> None:
    z, values = rounded(_inputs(name, 37, 9), dtype)
    b, bias = rounded(random(9), dtype)
    y = poisoned(z.shape, dtype)
    args = (z, b, y, z.size, 9, _number(name), ALPHA, BETA)
    launcher.launch("bias_activation", dtype, index, blocks(z.size, "bias_activation"), args)
    close(z, values + bias, dtype)
    close(y, gold.activation(name, load(z, dtype), ALPHA, BETA), dtype, LOOSE)


def forward(launcher: Launcher, name: str, dtype: str, index: str) -> None:
    z, values = rounded(_inputs(name, 259), dtype)
    y = poisoned(z.shape, dtype)
    args = (z, y, z.size, _number(name), ALPHA, BETA)
    launcher.launch("activation_forward", dtype, index, blocks(z.size, "activation_forward"), args)
    close(y, gold.activation(name, values, ALPHA, BETA), dtype, LOOSE)


def backward(launcher: Launcher, name: str, dtype: str, index: str) -> None:
    z, values = rounded(_inputs(name, 259), dtype)
    dy, upstream = rounded(random(259, seed="dy"), dtype)
    dz = poisoned(z.shape, dtype)
    args = (dy, z, dz, z.size, _number(name), ALPHA, BETA)
    grid = blocks(z.size, "activation_backward")
    launcher.launch("activation_backward", dtype, index, grid, args)
    close(dz, upstream * gold.slope(name, values, ALPHA, BETA), dtype, LOOSE)


def backward_by_value(launcher: Launcher, act: Formula, dtype: str, index: str) -> None:
    y, values = fused.outputs(act, dtype, 259)
    dy, upstream = rounded(random(259, seed="dy"), dtype)
    dz = poisoned(y.shape, dtype)
    args = (dy, y, dz, y.size, _number(act[0]), *act[1:])
    name = "activation_backward_by_value"
    launcher.launch(name, dtype, index, blocks(y.size, name), args)
    close(dz, upstream * fused.slope_at_value(act, values), dtype, LOOSE)


def special(launcher: Launcher, name: str) -> None:
    """Kinks, infinities and NaN; at NaN a slope is NaN unless picked by comparing."""
    z = store(np.array(SPECIAL), "float32")
    values, (low, high, low_slope, high_slope) = load(z, "float32"), gold.LIMITS[name](ALPHA, BETA)
    finite = np.isfinite(values)
    y = poisoned(z.shape, "float32")
    args = (z, y, z.size, _number(name), ALPHA, BETA)
    launcher.launch("activation_forward", "float32", "int32", (1,), args)
    close(y[finite], gold.activation(name, values[finite], ALPHA, BETA), "float32", 4)
    np.testing.assert_allclose(y[-3:], [high, low, np.nan], rtol=1e-6)

    dy, dz = store(np.ones(z.size), "float32"), poisoned(z.shape, "float32")
    args = (dy, z, dz, z.size, _number(name), ALPHA, BETA)
    launcher.launch("activation_backward", "float32", "int32", (1,), args)
    close(dz[finite], gold.slope(name, values[finite], ALPHA, BETA), "float32", 4)
    np.testing.assert_allclose(
        dz[-3:], [high_slope, low_slope, PICKED.get(name, np.nan)], rtol=1e-6
    )


def sums(launcher: Launcher, rows: int, channels: int, width: int, dtype: str, index: str) -> None:
    stored, x = rounded(random(rows, channels), dtype)
    out = poisoned(channels, dtype)
    grid = (-(-channels // width), 1)
    launcher.launch("column_sums", dtype, index, grid, (stored, out, rows, channels, width))
    close(out, gold.column_sums(x), dtype, 20.0)


def sums_in_two_passes(launcher: Launcher, dtype: str, index: str) -> None:
    rows, channels, width, down = 300, 35, 32, 3
    stored, x = rounded(random(rows, channels), dtype)
    partial, out = np.full((down, channels), 99.0, WIDE[dtype]), poisoned(channels, dtype)
    args = (stored, partial, rows, channels, width)
    launcher.launch("column_sums_partial", dtype, index, (2, down), args)
    height = 256 // width
    for k in range(down):  # block row k takes every down-th group of rows
        own = np.arange(rows) // height % down == k
        close(partial[k], gold.column_sums(x[own]), WIDE[dtype], 20.0)
    args = (partial, out, down, channels, width)
    launcher.launch("column_sums_final", dtype, index, (2, 1), args)
    close(out, gold.column_sums(x), dtype, 20.0)


CASES = [
    *(
        functools.partial(f, dtype=d, index=i)
        for d, i in COMBINATIONS
        for f in (bias_add, bias_relu)
    ),
    *(
        functools.partial(sums, rows=r, channels=c, width=w, dtype="float32", index="int32")
        for r, c, w in ((70, 6, 8), (1, 33, 32), (300, 1, 1), (5, 2, 2))
    ),
    *(functools.partial(sums_in_two_passes, dtype=d, index=i) for d, i in COMBINATIONS),
    *(
        functools.partial(sums, rows=40, channels=10, width=16, dtype=d, index=i)
        for d, i in COMBINATIONS
    ),
    *(
        functools.partial(f, name=n, dtype="float32", index="int32")
        for n in table.ACTIVATIONS
        for f in (forward, backward)
    ),
    *(functools.partial(special, name=n) for n in table.ACTIVATIONS),
    *(
        functools.partial(backward_by_value, act=act, dtype="float32", index="int32")
        for act in (RELU, *fused.BY_VALUE)
    ),
    *(
        functools.partial(backward_by_value, act=fused.TANH, dtype=d, index=i)
        for d, i in COMBINATIONS
    ),
    *(
        functools.partial(f, name=n, dtype=d, index=i)
        for (d, i), n in zip(
            COMBINATIONS, ("gelu_tanh", "gelu_erf", "selu", "softplus"), strict=True
        )
        for f in (bias_activation, forward, backward)
    ),
]
