"""Two ways of a captured step's convolutions between which a rule decides, not the autotuner: by
whole examples or by products, gradients before a pooling laid out or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from _gpu.clock import alone
from _gpu.kernels import WINDOW, in_precision, numbers_on
from gpulayers.ops.window import Window

_IMAGES, _SIZE, _CHANNELS = 128, 32, 32
_FEW = (14, 14, 6, 16, 5)  # LeNet's second convolution: image, filters, side of the window

Run = Callable[[], Any]


def items(xp: Any) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield each pair, and what times it."""
    for way in ("forward", "back"):
        yield f"few channels, {way} fp32", lambda w=way: _timed(xp, _few_channels(xp, w))
    for precision in ("tf32", "bf16"):
        name = f"convolution before a pooling, back {precision}"
        yield name, lambda p=precision: _timed(xp, _pooled(xp, p), p)


def _timed(xp: Any, runs: dict[str, Run], precision: str = "fp32") -> dict[str, Any]:
    """Microseconds of both, the rule's first."""
    with in_precision(precision):
        times = {name: 1e3 * alone(xp, [run]) for name, run in runs.items()}
    best = min(times, key=lambda name: times[name])
    return {"rule": next(iter(times)), "best": best, "us": times}


def _winners(numbers: Any, *shape: int) -> Any:
    """Which of four, or none."""
    return (abs(numbers(*shape)) * 8).astype("uint8") % 5


def _few_channels(xp: Any, way: str) -> dict[str, Run]:
    from gpulayers.cuda import conv, conv_step, example_conv

    rows, cols, channels, filters, side = _FEW
    numbers, window = numbers_on(xp, "fp32"), Window((side, side))
    X, W = numbers(_IMAGES, rows, cols, channels), numbers(side, side, channels, filters)
    if way == "forward":
        b = numbers(filters)
        return {
            "by examples": lambda: example_conv.forward(X, W, b, window, True, True),
            "by products": lambda: conv.forward(X, W, b, window, True, True, special=True),
        }
    pooled = _IMAGES, (rows - side + 1) // 2, (cols - side + 1) // 2, filters
    dZ, winners, each = numbers(*pooled), _winners(numbers, *pooled), W.size // filters + 1
    choice = conv_step.backward_choice(X.shape, filters, window, True, True, X.dtype)
    parts = example_conv.parts(_IMAGES, each * filters)
    own, others = (xp.empty((n, each, filters), "float32") for n in (parts, choice.parts))
    return {
        "by examples": lambda: example_conv.backward(X, dZ, winners, W, window, own, True, True),
        "by products": lambda: conv_step.backward(X, dZ, W, window, winners, others, True, True),
    }


def _pooled(xp: Any, precision: str) -> dict[str, Run]:
    from gpulayers.cuda import conv_step

    numbers = numbers_on(xp, precision)
    X, W = numbers(_IMAGES, _SIZE, _SIZE, _CHANNELS), numbers(3, 3, _CHANNELS, _CHANNELS)
    half = _IMAGES, _SIZE // 2, _SIZE // 2, _CHANNELS
    dZ, winners = numbers(*half), _winners(numbers, *half)

    def back(patched: Callable[[], contextlib.AbstractContextManager[object]]) -> Run:
        with patched(), in_precision(precision):
            sizes = X.shape, _CHANNELS, WINDOW, True, True, X.dtype
            parts = conv_step.backward_choice(*sizes).parts
        grads = xp.empty((parts, 9 * _CHANNELS + 1, _CHANNELS), "float32")

        def run() -> Any:
            with patched():
                return conv_step.backward(X, dZ, W, WINDOW, winners, grads, True)

        return run

    kept = lambda: mock.patch.object(conv_step, "unpools", return_value=False)  # noqa: E731
    return {"laid out": back(contextlib.nullcontext), "kept pooled": back(kept)}
