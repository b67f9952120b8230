"""The kernels one by one: their time, and how near that is to the speed of a plain copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from _gpu.clock import milliseconds
from gpulayers import activations
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

_TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Case:
    """One operation: `run(engine)` launches it, `moved` is the bytes it cannot avoid."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    run: Callable[[Any], Any]
    moved: int
    pure: bool = True  # a second call gives the same


def cases(xp: Any, batch: int, dtype: str) -> list[Case]:
    """The kernels on the shapes of a small VGG's second convolution (32 channels, 32 x 32)."""

    rng = np.random.default_rng(0)  # CuPy's own generator needs cuRAND

    def numbers(*shape: int) -> Any:
        return xp.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)

    n, hw, ch = batch, 32, 32
    window, pool = Window((3, 3), pad=(1, 1, 1, 1)), Window((2, 2), (2, 2))
    x, dy = numbers(n, hw, hw, ch), numbers(n, hw // 2, hw // 2, ch)
    engine = kernels_for(x)
    columns = engine.im2col(x, window)
    argmax = engine.max_pool2d_forward(x, pool)[1]
    bias, act = numbers(ch), activations.ReLU()
    logits, labels = numbers(64 * n, 10), xp.zeros(64 * n, dtype="int64")
    probs = engine.softmax_forward(logits)
    param, grad, mean = (numbers(n * 32768) for _ in range(3))
    var = xp.ones_like(param)
    gradient = x.copy()
    im, col, small = x.nbytes, columns.nbytes, dy.nbytes + argmax.nbytes
    table: list[tuple[str, Any, int, Callable[[Any], Any]]] = [
        ("im2col", x, im + col, lambda e: e.im2col(x, window)),
        ("col2im", x, im + col, lambda e: e.col2im(columns, x.shape, window, "gather")),
        ("col2im scatter", x, im + col, lambda e: e.col2im(columns, x.shape, window, "scatter")),
        ("max_pool2d_forward", x, im + small, lambda e: e.max_pool2d_forward(x, pool)),
        (
            "max_pool2d_backward",
            x,
            im + small,
            lambda e: e.max_pool2d_backward(dy, argmax, x.shape, pool),
        ),
        ("avg_pool2d_forward", x, im + dy.nbytes, lambda e: e.avg_pool2d_forward(x, pool)),
        (
            "avg_pool2d_backward",
            x,
            im + dy.nbytes,
            lambda e: e.avg_pool2d_backward(dy, x.shape, pool),
        ),
        ("bias_activation", x, 3 * im, lambda e: e.bias_activation(gradient, bias, act)),
        ("activation_backward", x, 3 * im, lambda e: e.activation_backward(gradient, x, act)),
        ("bias_grad", x, im, lambda e: e.bias_grad(x)),
        (
            "softmax_cross_entropy_forward",
            logits,
            2 * logits.nbytes,
            lambda e: e.softmax_cross_entropy_forward(logits, labels),
        ),
        (
            "softmax_cross_entropy_backward",
            logits,
            2 * logits.nbytes,
            lambda e: e.softmax_cross_entropy_backward(probs, labels, 0.01),
        ),
        (
            "adam_update",
            param,
            7 * param.nbytes,
            lambda e: e.adam_update(param, grad, mean, var, 1e-3, 0.9, 0.999, 1e-7, 10),
        ),
        (
            "philox_words",
            param,
            8 * param.size,
            lambda e: e.philox_words(xp, (1, 2), 3, param.size),
        ),
    ]
    changing = ("bias_activation", "adam_update")  # their arguments
    return [
        Case(name, a.shape, dtype, run, moved, name not in changing)
        for name, a, moved, run in table
    ]


def measure_case(xp: Any, case: Case, peak: float) -> dict[str, Any]:
    """Check a case against the reference engine, then time both.

    A kernel's floor is its bytes, each read or written once, over `peak`, a copy's speed.

    Raises
    ------
    ArithmeticError
        If the two give different results.
    """
    engine = kernels_for(xp.empty(0, dtype=case.dtype))
    wrong = _apart(xp, case.run(engine), case.run(Reference())) if case.pure else None
    if wrong is not None and not wrong <= _TOLERANCE[case.dtype]:
        raise ArithmeticError(f"{case.name} is off by {wrong:.1e} from the reference")
    took = milliseconds(xp, lambda: case.run(engine))
    slow = milliseconds(xp, lambda: case.run(Reference()), launches=5, groups=3)
    speed = 1e3 * case.moved / took
    return {
        "shape": list(case.shape),
        "ms": took,
        "GB/s": speed / 1e9,
        "share of copy": speed / peak,
        "reference ms": slow,
        "error": wrong,
    }


def _apart(xp: Any, found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest number wanted."""
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    worst = 0.0
    for a, b in pairs:
        a, b = a.astype("float64"), b.astype("float64")
        largest = max(float(xp.abs(b).max()), 1e-30)
        worst = max(worst, float(xp.abs(a - b).max()) / largest)
    return worst
