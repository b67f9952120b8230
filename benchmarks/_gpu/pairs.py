"""Two ways of a captured step's convolutions between which a rule decides, not the autotuner: by
whole examples or by products, gradients before a pooling laid out or not. Each is held against the
array formulas in float64 before it is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from _gpu.clock import alone
from _gpu.correct import Poison, hold
from _gpu.kernels import WINDOW, in_precision, numbers_on
from gpulayers.cuda.fusible import RELU
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

_IMAGES, _SIZE, _CHANNELS = 128, 32, 32
_FEW = (14, 14, 6, 16, 5)  # LeNet's second convolution: image, filters, side of the window
_POOL, _LOST = Window((2, 2), (2, 2)), 4  # where ReLU left zero, no pixel of the window has won

Run = Callable[[], Any]
#: what turns a run's results into arrays to compare, and what these should be
Check = tuple[Callable[[Any], tuple[Any, ...]], tuple[Any, ...]]


def items(xp: Any) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield each pair, and what times it."""
    for way in ("forward", "back"):
        yield f"few channels, {way} fp32", lambda w=way: _timed(xp, *_few_channels(xp, w))
    for precision in ("tf32", "bf16"):
        name = f"convolution before a pooling, back {precision}"
        yield name, lambda p=precision: _timed(xp, *_pooled(xp, p), p)


def _timed(xp: Any, runs: dict[str, Run], check: Check, precision: str = "fp32") -> dict[str, Any]:
    """Microseconds of both, the rule's first.

    Raises
    ------
    ArithmeticError
        If one of them is wrong.
    """
    poison, (parts, wanted) = Poison(xp), check
    with in_precision(precision):
        wrong = {
            name: hold(xp, name, parts(poison(run)), wanted, precision).norm
            for name, run in runs.items()
        }
        poison.free()
        times = {name: alone(xp, [run]).each(1e3) for name, run in runs.items()}
    found = {name: time.median for name, time in times.items()}
    spread = {name: [time.least, time.most] for name, time in times.items()}
    best = min(found, key=lambda name: found[name])
    rule = next(iter(found))
    return {"rule": rule, "best": best, "us": found, "us, range": spread, "error": wrong}


def _winners(xp: Any, *shape: int) -> Any:
    """Which of four, or none."""
    return xp.asarray(np.random.default_rng(1).integers(0, _LOST + 1, shape, np.uint8))


def _before_pooling(xp: Any, dZ: Any, winners: Any, shape: tuple[int, ...]) -> Any:
    """The gradient in float64 of what a pooling of ReLU's took."""
    kept = xp.where(winners == _LOST, 0.0, dZ.astype("float32").astype("float64"))
    place = xp.minimum(winners, np.uint8(_LOST - 1))
    return Reference().max_pool2d_backward(kept, place, shape, _POOL)


def _wide(*arrays: Any) -> tuple[Any, ...]:
    return tuple(array.astype("float32").astype("float64") for array in arrays)


def _gradients(
    xp: Any, X: Any, dZ: Any, W: Any, winners: Any, window: Window, masked: bool
) -> Check:
    """What the way back gives: the input's gradient, and that of weight and bias in parts."""
    e, (X64, W64) = Reference(), _wide(X, W)
    n, filters = len(X), W.shape[3]
    out = window.output_size(*X.shape[1:3])
    dZ64 = _before_pooling(xp, dZ, winners, (n, *out, filters))
    dX = e.conv2d_input_grad(dZ64, W64, X.shape, window)
    if masked:
        dX = dX * (X64 > 0)
    weight = e.conv2d_weight_grad(X64, dZ64, window).reshape(-1, filters)
    wanted = dX, weight, e.bias_grad(dZ64).reshape(-1)

    def parts(found: Any) -> tuple[Any, ...]:
        own, grads = found
        total = grads.astype("float64").sum(axis=0)
        return own, total[:-1], total[-1]

    return parts, wanted


def _few_channels(xp: Any, way: str) -> tuple[dict[str, Run], Check]:
    from gpulayers.cuda import conv, conv_step, example_conv

    rows, cols, channels, filters, side = _FEW
    numbers, window = numbers_on(xp, "fp32"), Window((side, side))
    X, W = numbers(_IMAGES, rows, cols, channels), numbers(side, side, channels, filters)
    if way == "forward":
        b = numbers(filters)
        runs: dict[str, Run] = {
            "by examples": lambda: example_conv.forward(X, W, b, window, RELU, True),
            "by products": lambda: conv.forward(X, W, b, window, RELU, True, special=True),
        }
        return runs, _forward(xp, X, W, b, window)
    pooled = _IMAGES, (rows - side + 1) // 2, (cols - side + 1) // 2, filters
    dZ, winners, each = numbers(*pooled), _winners(xp, *pooled), W.size // filters + 1
    choice = conv_step.backward_choice(X.shape, filters, window, True, True, X.dtype)
    parts = example_conv.parts(_IMAGES, each * filters)
    own, others = (xp.full((n, each, filters), np.nan, "float32") for n in (parts, choice.parts))

    def by_examples() -> Any:
        return example_conv.backward(X, dZ, winners, W, window, own, True, RELU), own

    def by_products() -> Any:
        return conv_step.backward(X, dZ, W, window, winners, others, True, RELU), others

    runs = {"by examples": by_examples, "by products": by_products}
    return runs, _gradients(xp, X, dZ, W, winners, window, True)


def _forward(xp: Any, X: Any, W: Any, b: Any, window: Window) -> Check:
    """The pooled output; and what lies at the place that is told of the winner, which is as large
    (of two that are nearly equal either may have won), or zero where none is told."""
    Z = Reference().conv2d_forward(*_wide(X, W, b), window)
    n, rows, cols, filters = Z.shape
    Z = xp.maximum(Z, 0.0)[:, : rows // 2 * 2, : cols // 2 * 2]
    cells = Z.reshape(n, rows // 2, 2, cols // 2, 2, filters).transpose(0, 1, 3, 5, 2, 4)
    cells = cells.reshape(n, rows // 2, cols // 2, filters, _LOST)
    wanted = cells.max(axis=4)

    def parts(found: Any) -> tuple[Any, ...]:
        own, winners = found
        at_winner = xp.zeros_like(wanted)
        for place in range(_LOST):
            at_winner = xp.where(winners == place, cells[..., place], at_winner)
        return own, at_winner

    return parts, (wanted, wanted)


def _pooled(xp: Any, precision: str) -> tuple[dict[str, Run], Check]:
    from gpulayers.cuda import conv_step

    numbers = numbers_on(xp, precision)
    X, W = numbers(_IMAGES, _SIZE, _SIZE, _CHANNELS), numbers(3, 3, _CHANNELS, _CHANNELS)
    half = _IMAGES, _SIZE // 2, _SIZE // 2, _CHANNELS
    dZ, winners = numbers(*half), _winners(xp, *half)

    def back(patched: Callable[[], contextlib.AbstractContextManager[object]]) -> Run:
        with patched(), in_precision(precision):
            sizes = X.shape, _CHANNELS, WINDOW, True, True, X.dtype
            parts = conv_step.backward_choice(*sizes).parts
        grads = xp.full((parts, 9 * _CHANNELS + 1, _CHANNELS), np.nan, "float32")

        def run() -> Any:
            with patched():
                return conv_step.backward(X, dZ, W, WINDOW, winners, grads, True), grads

        return run

    kept = lambda: mock.patch.object(conv_step, "unpools", return_value=False)  # noqa: E731
    runs = {"laid out": back(contextlib.nullcontext), "kept pooled": back(kept)}
    return runs, _gradients(xp, X, dZ, W, winners, WINDOW, False)
