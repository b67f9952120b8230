"""norm.cu: columns that fill no block, spans of rows, windows of odd images, far from zero.

What the sums over spans should be is worked out here; `column_moments` is examined with
batchnorm.cu.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gpulayers.cuda.fusible import RELU, Formula, constants
from tests.kernels import fused, gold
from tests.kernels.arrays import WIDE, Launcher, close, poisoned, random, rounded, store

EPS, KEEP = 0.25, 0.75


@dataclass(frozen=True)
class Shape:
    """Images (or rows, if `rows` is 0) and how launches are cut."""

    images: int
    rows: int
    cols: int
    channels: int
    width: int
    span: int
    pooled: bool = False

    @property
    def pixels(self) -> int:
        return self.images * max(self.rows, 1) * max(self.cols, 1)

    @property
    def outputs(self) -> int:
        return self.images * (self.rows // 2) * (self.cols // 2) if self.pooled else self.pixels

    @property
    def across(self) -> int:
        return -(-self.channels // self.width)

    def parts(self, rows: int) -> int:
        return -(-rows // self.span)

    def windows(self, values: np.ndarray) -> np.ndarray:
        """(outputs, 4, channels): the pixels of each window; (outputs, 1, channels) without."""
        if not self.pooled:
            return values[:, None]
        image = values.reshape(self.images, self.rows, self.cols, self.channels)
        image = image[:, : self.rows // 2 * 2, : self.cols // 2 * 2]
        image = image.reshape(self.images, self.rows // 2, 2, self.cols // 2, 2, self.channels)
        return image.transpose(0, 1, 3, 2, 4, 5).reshape(self.outputs, 4, self.channels)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """The adjoint of `windows`."""
        if not self.pooled:
            return values[:, 0]
        n, r, c = self.images, self.rows // 2, self.cols // 2
        image = np.zeros((n, self.rows, self.cols, self.channels))
        parts = values.reshape(n, r, c, 2, 2, self.channels).transpose(0, 1, 3, 2, 4, 5)
        image[:, : 2 * r, : 2 * c] = parts.reshape(n, 2 * r, 2 * c, self.channels)
        return image.reshape(self.pixels, self.channels)


class Layer:
    """Input, parameters, and what the layer makes of them in float64."""

    def __init__(
        self, shape: Shape, dtype: str, relu: bool, offset: float = 0.0, act: Formula = RELU
    ) -> None:
        """`relu`: whether there is an activation, `act`."""
        self.shape, self.relu, self.act = shape, relu, act
        values = random(shape.pixels, shape.channels) + offset
        if shape.channels > 1:
            values[:, 1] = np.arange(shape.pixels)  # the middle one becomes zero, with intercept
        self.x, self.values = rounded(values, dtype)
        (self.s, self.scaler), (self.b, self.intercept) = (
            rounded(random(shape.channels, seed=k), dtype) for k in "sb"
        )
        self.b[1:2], self.intercept[1:2] = 0, 0
        columns = [gold.standardized(column, EPS) for column in self.values.T.tolist()]
        x_hat, *moments = (np.array(part) for part in zip(*columns, strict=True))
        self.x_hat, (self.mean, self.var, self.inv_std) = x_hat.T, moments
        normalized = self.scaler * self.x_hat + self.intercept
        windows = shape.windows(rounded(normalized, dtype)[1])
        self.winners = windows.argmax(axis=1)
        self.best = windows.max(axis=1)
        self.y = fused.value(act, self.best) if relu else self.best
        shut = (self.y <= 0) & relu & (act == RELU)
        self.codes = np.where(shut, 4, self.winners).astype("u1")

    def gradient(self, upstream: np.ndarray) -> np.ndarray:
        """Of scaler * x_hat + intercept, (pixels, channels)."""
        size = 4 if self.shape.pooled else 1
        through = upstream * fused.slope(self.act, self.best) if self.relu else upstream
        chosen = np.arange(size)[None, :, None] == self.winners[:, None]
        return self.shape.spread(chosen * through[:, None])

    def saved(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        shift = store(self.mean - self.values[0], WIDE[dtype])
        return shift, store(self.inv_std, WIDE[dtype])

    def flags(self) -> tuple[int, ...]:
        return (self.shape.rows, self.shape.cols, self.relu, self.shape.pooled)


def forward(
    launcher: Launcher,
    shape: Shape,
    dtype: str,
    index: str,
    relu: bool,
    side: bool = False,
    offset: float = 0.0,
    step: int = 0,
    act: Formula = RELU,
) -> None:
    layer, channels = Layer(shape, dtype, relu, offset, act), shape.channels
    spans = [layer.values[k : k + shape.span] for k in range(0, shape.pixels, shape.span)]
    sums = [gold.column_sums(own - layer.values[k * step]) for k, own in enumerate(spans)]
    squares = [gold.column_sums((own - own.mean(axis=0)) ** 2) for own in spans]
    moments = [store(np.array(part).T, WIDE[dtype]) for part in (sums, squares)]
    means, running_mean = rounded(random(channels, seed="m"), dtype)
    vars_, running_var = rounded(random(channels, seed="v") ** 2, dtype)
    added, beside = rounded(random(shape.outputs, channels, seed="side"), dtype)
    shift, inverse = (poisoned(channels, WIDE[dtype]) for _ in range(2))
    y = poisoned((shape.outputs, channels), dtype)
    winners = np.full(y.shape if shape.pooled else 0, 9, "u1")
    args = (layer.x, *moments, layer.s, layer.b, added if side else added[:0])
    args = (*args, means, vars_, shift, inverse, y, winners, shape.pixels, shape.span)
    args = (
        *args,
        step,
        shape.outputs,
        shape.span,
        len(spans),
        channels,
        shape.width,
        *layer.flags(),
    )
    args = (*args, side, EPS, KEEP, 1 - KEEP)
    grid = (shape.across, shape.parts(shape.outputs))
    launcher.launch("norm_forward", dtype, index, grid, args, constants=constants(act))
    want_shift, want_inverse = layer.saved(dtype)
    close(shift, want_shift.astype("f8"), WIDE[dtype], 20.0)
    close(inverse, want_inverse.astype("f8"), WIDE[dtype], 4.0)
    close(means, KEEP * running_mean + (1 - KEEP) * layer.mean, dtype, 4.0)
    close(vars_, KEEP * running_var + (1 - KEEP) * layer.var, dtype, 4.0)
    close(y, layer.y + (beside if side else 0), dtype, 8.0)
    if shape.pooled:
        np.testing.assert_array_equal(winners, layer.codes)


def sums(
    launcher: Launcher, shape: Shape, dtype: str, index: str, relu: bool, act: Formula = RELU
) -> None:
    layer, channels = Layer(shape, dtype, relu, act=act), shape.channels
    dy, upstream = rounded(random(shape.outputs, channels, seed="dy"), dtype)
    parts = shape.parts(shape.outputs)
    found = poisoned((parts, 2, channels), WIDE[dtype])
    codes = layer.codes if shape.pooled else layer.codes[:0]
    args = (layer.x, dy, codes, layer.s, layer.b, *layer.saved(dtype), found)
    args = (*args, shape.outputs, shape.span, channels, shape.width, *layer.flags())
    grid = (shape.across, parts)
    launcher.launch("norm_gradient_sums", dtype, index, grid, args, constants=constants(act))
    through = shape.windows(layer.gradient(upstream))
    products = shape.windows(layer.gradient(upstream) * layer.x_hat)
    for k in range(parts):
        own = slice(k * shape.span, (k + 1) * shape.span)
        for row, values in enumerate((products, through)):
            close(found[k, row], gold.column_sums(values[own].sum(axis=1)), WIDE[dtype], 40.0)


def grad(
    launcher: Launcher, shape: Shape, dtype: str, index: str, relu: bool, act: Formula = RELU
) -> None:
    """The parts of the sums are more than the lines of a block; all but one cancel."""
    layer, channels = Layer(shape, dtype, relu, act=act), shape.channels
    dy, upstream = rounded(random(shape.outputs, channels, seed="dy"), dtype)
    gradient = layer.gradient(upstream)
    totals = [gold.column_sums(gradient * layer.x_hat), gold.column_sums(gradient)]
    lines = 256 // shape.width
    parts = np.zeros((2 * lines + 1, 2, channels))
    parts[:lines], parts[lines : 2 * lines], parts[lines // 2] = 0.5, -0.5, 0.5 + np.array(totals)
    dx = poisoned(layer.x.shape, dtype)
    codes = layer.codes if shape.pooled else layer.codes[:0]
    args = (layer.x, dy, codes, layer.s, layer.b, *layer.saved(dtype), store(parts, WIDE[dtype]))
    args = (*args, dx, shape.pixels, shape.span, len(parts), channels, shape.width, *layer.flags())
    grid = (shape.across, shape.parts(shape.pixels))
    args = (*args, 1.0 / shape.pixels)
    launcher.launch("norm_input_grad", dtype, index, grid, args, constants=constants(act))
    columns = zip(gradient.T.tolist(), layer.x_hat.T.tolist(), layer.inv_std, strict=True)
    want = np.array([gold.standardized_grad(*column) for column in columns]).T
    close(dx, want * layer.scaler, dtype, 16.0)


def not_a_number(launcher: Launcher) -> None:
    """A column with NaN is NaN; its first pixel wins each window."""
    layer, dtype = Layer(IMAGES, "float32", False), "float32"
    sums, squares = (store(np.zeros((3, 1)), dtype) for _ in range(2))
    sums[2] = np.nan
    empty, running = layer.x[0, :0], np.zeros(3, "f4")
    y, winners = poisoned((IMAGES.outputs, 3), dtype), np.full((IMAGES.outputs, 3), 9, "u1")
    args = (layer.x, sums, squares, layer.s, layer.b, empty, running, running.copy())
    args = (*args, running.copy(), running.copy(), y, winners, IMAGES.pixels, IMAGES.pixels)
    args = (*args, 0, IMAGES.outputs, IMAGES.outputs, 1, 3, 4, *layer.flags(), False, EPS, 0.5, 0.5)
    launcher.launch("norm_forward", dtype, "int32", (1, 1), args)
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(y[:, :2]).all()
    assert not winners[:, 2].any()


#: one example; a column alone in a block; columns in two blocks and a last span that is shorter;
#: images of odd sizes in windows, more than one span
ONE = Shape(1, 0, 0, 3, 4, 1)
NARROW = Shape(70, 0, 0, 1, 1, 70)
WIDE_ROWS = Shape(45, 0, 0, 35, 32, 20)
IMAGES = Shape(2, 5, 7, 3, 4, 4, pooled=True)
SPANS = Shape(80, 0, 0, 2, 2, 2)  # more than a warp has lanes

CASES = [
    not_a_number,
    *(
        functools.partial(f, shape=s, dtype="float32", index="int32", relu=relu)
        for s, relu in ((NARROW, True), (WIDE_ROWS, True))
        for f in (forward, sums, grad)
    ),
    *(
        functools.partial(f, shape=ONE, dtype="float32", index="int32", relu=False)
        for f in (forward, sums)  # the gradient is nothing but rounding
    ),
    *(
        functools.partial(f, shape=IMAGES, dtype="float32", index="int32", relu=relu)
        for relu in (False, True)
        for f in (forward, sums, grad)
    ),
    *(
        functools.partial(forward, shape=s, dtype="float32", index="int32", relu=True, side=True)
        for s in (SPANS, IMAGES)
    ),
    *(
        functools.partial(
            forward, shape=WIDE_ROWS, dtype="float32", index="int32", relu=False, offset=1e4, step=k
        )
        for k in (0, WIDE_ROWS.span)
    ),
    *(
        functools.partial(f, shape=IMAGES, dtype=d, index=i, relu=True)
        for d, i in (("float64", "int64"), ("float16", "int32"), ("bfloat16", "int64"))
        for f in (forward, sums, grad)
    ),
    *(
        functools.partial(f, shape=s, dtype=d, index="int32", relu=True, act=act)
        for s, d, act in (
            (NARROW, "float32", ("gelu_tanh", 0.0, 0.0)),
            (IMAGES, "float32", fused.ELU),
            (IMAGES, "bfloat16", fused.TANH),
        )
        for f in (forward, sums, grad)
    ),
]
