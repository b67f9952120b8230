"""What the stand-in says about CuPy, claim by claim (the table of test_conformance.py).

A claim is a function of `cp` (the library) and `put` (host array -> device array) with the value or
the exception it must give. `host_only` claims touch no device memory: they need no GPU and are also
confirmed by the real library over host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Function = Callable[[Any, Callable[[np.ndarray], Any]], Any]


@dataclass(frozen=True)
class Raises:
    """The claim's function raises `kind` with `words` in the message."""

    kind: type[BaseException]
    words: str = ""


@dataclass(frozen=True)
class Claim:
    """One statement about CuPy."""

    name: str
    function: Function
    expected: Any
    host_only: bool


CLAIMS: dict[str, Claim] = {}


def claim(expected: Any, host_only: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function as a claim."""

    def register(function: Function) -> Function:
        name = function.__name__
        if name in CLAIMS:
            raise ValueError(f"two claims are called {name}")
        CLAIMS[name] = Claim(name, function, expected, host_only)
        return function

    return register


def grid() -> np.ndarray:
    """A (3, 4) float32 array, different in every element."""
    return np.arange(12, dtype=np.float32).reshape(3, 4)
