"""What an arithmetic instruction is: `Formula`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Formula", "UnknownError", "same"]

Array = np.ndarray[Any, Any]


class UnknownError(ValueError):
    """An instruction, or a form of one, that is not interpreted."""


@dataclass(frozen=True)
class Formula:
    """A function of arrays, the types of its sources and that of its result. `checked`: a function
    of the same sources that tells the lanes where the result is not defined, and why that is."""

    function: Callable[..., Array]
    sources: tuple[str, ...]
    result: str
    checked: tuple[Callable[..., Array], str] | None = None


def same(function: Callable[..., Array], kind: str, count: int) -> Formula:
    """One of so many sources, all of the result's type."""
    return Formula(function, (kind,) * count, kind)
