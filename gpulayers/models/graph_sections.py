"""Where a planned network's parameters lie that are in one array, one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpulayers.models.graph_node import Place
from gpulayers.optimizers._master import is_half

__all__ = ["Sections"]


class Sections:
    """The sizes and places alone; no memory.

    Parameters
    ----------
    places : list of (layer, name)
        The parameters that learn, in the order of their gradients.
    dtype : of all of them
    apart : int
        Each parameter starts at a multiple of so many numbers.

    Attributes
    ----------
    shapes, sizes, starts : lists
        Of each parameter.
    total : int
        Numbers of all of them.
    wide : dtype
        That gradients come in and rules compute in.
    names : tuple of str
        Of the arrays that the first one's optimizer keeps; () is one that has no name.
    """

    def __init__(self, places: list[Place], dtype: Any, apart: int = 1) -> None:
        self.places, self.dtype = places, np.dtype(dtype)
        self.shapes = [layer.parameters[name].shape for layer, name in places]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        room = [-(-size // apart) * apart for size in self.sizes]
        self.starts = [sum(room[:i]) for i in range(len(places))]
        self.total = self.starts[-1] + self.sizes[-1]
        self.wide = np.dtype(np.float32) if is_half(self.dtype) else self.dtype
        self.names: tuple[str, ...] = getattr(places[0][0].optimizer, "_state_names", ())

    @property
    def nbytes(self) -> int:
        """Of all parameters with what their optimizers keep."""
        wide = 1 + len(self.names or (0,))
        narrow = self.dtype.itemsize if is_half(self.dtype) else 0
        return self.total * (wide * self.wide.itemsize + narrow)

    def section(self, i: int, start: int, parts: int, stride: int) -> tuple[int, ...]:
        """A row of `sections` (see `cuda/flat.cuh`): where parameter i and its gradient lie."""
        return self.starts[i], start, parts, stride, self.starts[i] + self.sizes[i]
