"""CUDA idioms that the checker must accept, and broken twins that it must catch: what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ORDERS = ("asc", "desc", "random")
Run = Callable[..., object]


@dataclass(frozen=True)
class Fault:
    """Replace ``old`` by ``new`` in the source: the checker must report ``kind``."""

    name: str
    old: str
    new: str
    kind: str


@dataclass(frozen=True)
class Idiom:
    """A correct kernel, a launch that checks its values, and ways to break it."""

    name: str
    code: str
    launch: Callable[[Run], None]
    faults: tuple[Fault, ...]
    kernel: str = "kernel"


def normal(*shape: int, dtype: str = "f4") -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)
