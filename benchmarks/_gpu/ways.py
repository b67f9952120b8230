"""The ways to work out a product, as the autotuner finds them: right or wrong, and how long each
takes, beside the one that the rule picks. Half types once more with products by warpgroups, which
are tried only where that is asked for. And pairs of ways between which a rule decides."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from _gpu import pairs
from _gpu.kernels import (
    DTYPES,
    WINDOW,
    Numbers,
    convolution,
    dtype_of,
    in_precision,
    numbers_on,
    product,
)
from gpulayers.ops._kernels import kernels_for

_IMAGES, _SIZE, _CHANNELS = 64, 32, 32
_DENSE = 512, 2048, 512  # batch, inputs, outputs
#: how the names of items end that try warpgroups
GROUPS = ", warpgroups too"


def items(xp: Any, _: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield each product, and what makes its list; those that have not met a device last."""
    for groups in (False, True):
        for precision in DTYPES if not groups else ("fp16", "bf16"):
            for name, ask in _operations(precision).items():
                what = f"{name} {precision}{GROUPS if groups else ''}"
                yield what, lambda p=precision, a=ask, g=groups: _ways(xp, p, a, g)
        if not groups:
            yield from pairs.items(xp)


def _operations(precision: str) -> dict[str, Callable[[Any, Numbers], object]]:
    """What asks for a choice, by its name."""
    from gpulayers.cuda import conv_step

    shape, dtype = (_IMAGES, _SIZE, _SIZE, _CHANNELS), dtype_of(precision)
    back = shape, _CHANNELS, WINDOW, False, True, dtype
    return {
        "conv2d_forward": lambda e, r: convolution("conv2d_forward", e, r, _IMAGES).run(),
        "conv2d_backward": lambda _, __: conv_step.backward_choice(*back),
        "dense_backward": lambda e, _: e.dense_parts(*_DENSE, dtype),
        "product nn": lambda e, r: product("nn", e, r).run(),
        "product tn": lambda e, r: product("tn", e, r).run(),
    }


def _ways(
    xp: Any, precision: str, ask: Callable[[Any, Numbers], Any], groups: bool
) -> dict[str, Any]:
    """Microseconds of each candidate, or why it is out; which one the rule takes, and the best."""
    from gpulayers.cuda import tune

    engine = kernels_for(xp.empty(0, dtype="float32"))
    chosen: dict[Any, Any] = {}
    tried = "1" if groups else "0"
    with _tuned_apart(), _environment("GPULAYERS_WARPGROUPS", tried), in_precision(precision):
        with tune.pinned(chosen):
            ask(engine, numbers_on(xp, precision))
        with tune.tuning() as run:
            ask(engine, numbers_on(xp, precision))
    if not run.found:
        raise ArithmeticError("there is only one way")
    key, result = run.found[0]
    times = {row.candidate.label: row.microseconds or row.why_not for row in result.rows}
    rule = chosen[key].label
    return {"shape": list(key.shape), "rule": rule, "best": result.choice.label, "us": times}


@contextlib.contextmanager
def _tuned_apart() -> Iterator[None]:
    """What is found out here does not change what is timed elsewhere."""
    with (
        tempfile.TemporaryDirectory(prefix="gpulayers-ways-") as folder,
        _environment("GPULAYERS_TUNE_DIR", folder),
    ):
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
