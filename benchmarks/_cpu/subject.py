"""What each side makes of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class UnsupportedError(Exception):
    """This side has no such case."""


@dataclass(frozen=True)
class Subject:
    """`run` is timed; `result` computes the arrays that all sides must agree on, by name."""

    run: Callable[[], Any]
    result: Callable[[], dict[str, np.ndarray]]
