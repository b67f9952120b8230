"""Checks of constructor arguments; each error names the layer, what was expected, what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gpulayers import _spec, backend
from gpulayers._types import is_mapping, is_sequence
from gpulayers.errors import DTypeError, ParameterError, suggest
from gpulayers.initializers import WeightInitializer
from gpulayers.ops.window import Window


def integer(layer: str, name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as a Python int (array-library integers too), at least `minimum`."""
    return _spec.integer(layer, name, value, minimum)


def number(layer: str, name: str, value: Any, low: float, high: float, closed: str = "") -> float:
    """Return `value` as a float in the interval (low, high); ``closed`` holds "[" and / or "]"."""
    try:
        x = float(value)
    except (TypeError, ValueError):
        x = math.nan
    inside = low < x < high or (x == low and "[" in closed) or (x == high and "]" in closed)
    if not inside:
        left, right = "[" if "[" in closed else "(", "]" if "]" in closed else ")"
        raise ParameterError(
            f"{layer}: {name} must be a number in {left}{low:g}, {high:g}{right}, got {value!r}"
        )
    return x


def choice(layer: str, name: str, value: Any, known: Sequence[Any]) -> Any:
    """Return `value` if it is one of `known`."""
    for candidate in known:
        if type(candidate) is type(value) and candidate == value:
            return value
    expected = ", ".join(repr(k) for k in known)
    hint = (
        suggest(value, [k for k in known if isinstance(k, str)]) if isinstance(value, str) else ""
    )
    raise ParameterError(f"{layer}: {name} must be one of {expected}, got {value!r}{hint}")


def plain(value: Any) -> Any:
    """Return ints, strings and sequences of them as plain Python objects (tuples of ints)."""
    if hasattr(value, "tolist"):  # an array or a scalar of an array library
        value = value.tolist()
    if is_sequence(value):
        return tuple(plain(v) for v in value)
    if isinstance(value, (bool, str)) or value is None:
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value  # the check that follows names it


def weights(layer: str, act_fn: Any, init: Any) -> WeightInitializer:
    """Return what draws the weights in the mode `init`."""
    modes = WeightInitializer.MODES
    if not isinstance(init, str) or init not in modes:  # an array compares with each
        raise ParameterError(
            f"{layer}: init: unknown mode {init!r}, expected one of {', '.join(modes)}"
            + (suggest(init, modes) if isinstance(init, str) else "")
        )
    return WeightInitializer(str(act_fn), mode=init)


NOT_NONE = "expected a numpy or cupy array, got None"


def array(layer: str, what: str, value: Any) -> str:
    """Return the backend of an array."""
    if value is None:
        raise DTypeError(f"{layer}: {what}: {NOT_NONE}")
    return backend.home_of(layer, what, value)


def floating(layer: str, what: str, value: Any) -> str:
    """Return the backend of a floating array."""
    home = array(layer, what, value)
    dtype = value.dtype
    if not backend.is_floating(dtype):
        kinds = " (float16, bfloat16, float32 or float64)" if dtype.kind == "f" else ""
        raise DTypeError(
            f"{layer}: {what} must have a floating dtype{kinds}, got {dtype}; "
            "convert it, e.g. with .astype('float32')"
        )
    return home


def pair(value: Any) -> Any:
    """Return one number for both axes as a pair; anything else unchanged."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def group(layer: str, summary: Any, name: str = "") -> dict[str, Any]:
    """Return a copy of a summary, or of its group `name`: a dict, or None for nothing."""
    value = summary.get(name) if name else summary
    if name and value is None:
        return {}
    if not is_mapping(value):
        what = f"{name!r} in the summary must be" if name else "expected a summary,"
        raise ParameterError(f"{layer}: {what} a dict, got {type(value).__name__}")
    return dict(value)


# The window depends on the image size only through 'same', 'causal' and the check that it fits;
# training asks for the same few again and again.
window_2d = lru_cache(maxsize=1024)(Window.make)
window_1d = lru_cache(maxsize=1024)(Window.make_1d)
