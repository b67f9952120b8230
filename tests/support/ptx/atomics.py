"""atom and red: one thread after another, in their order, which nobody may count on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import Generic, Global, Shared
from tests.support.ptx.types import NUMPY, is_float

__all__ = ["apply", "change"]

Array = np.ndarray[Any, Any]
Change = Callable[..., Any]


def change(name: str, kind: str, operands: int) -> Change:
    """What becomes of a number, by the operation's operands.

    Raises
    ------
    UnknownError
    """
    numpy = NUMPY[kind]
    changes: dict[str, tuple[int, Change]] = {
        "add": (1, lambda old, by: old + by),
        "exch": (1, lambda old, by: by),
        "cas": (2, lambda old, known, new: new if old == known else old),
    }
    if not is_float(kind):
        changes |= {
            "min": (1, min),
            "max": (1, max),
            "and": (1, lambda old, by: old & by),
            "or": (1, lambda old, by: old | by),
            "xor": (1, lambda old, by: old ^ by),
            "inc": (1, lambda old, most: numpy(0) if old >= most else old + numpy(1)),
            "dec": (1, lambda old, most: most if old == 0 or old > most else old - numpy(1)),
        }
    count, function = changes.get(name, (0, None))
    if function is None or count != operands:
        raise UnknownError(f"atomic .{name}.{kind} with {operands} operands")
    return function


def apply(
    space: Global | Shared | Generic,
    address: Array,
    function: Change,
    values: list[Array],
    threads: Array,
) -> Array:
    """Does it; the numbers that were there before, one for each thread."""
    if isinstance(space, Generic):
        space, address = space.space(address, threads)  # type: ignore[assignment]
    if not isinstance(space, Global):
        raise UnknownError("atomics on shared memory")
    kind = values[0].dtype
    offset = space.offsets(address, kind.itemsize, threads)
    space.note_write(offset, kind.itemsize, threads)
    view, places = space.view(kind.type), offset // kind.itemsize
    before = np.empty(len(threads), kind)
    for k, place in enumerate(places):
        before[k] = view[place]
        view[place] = function(before[k], *(value[k] for value in values))
    return before
