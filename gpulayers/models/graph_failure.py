"""What a step that failed on its way has changed by then is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from gpulayers import random
from gpulayers.backend import Array

__all__ = ["Before", "moving"]


class Before:
    """Arrays that a step changes before it can still fail, as they are before it, and how far the
    random stream has come.

    Parameters
    ----------
    arrays : list of arrays
        Small ones: they are copied.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._pairs = [(array, array.copy()) for array in arrays]
        self._generator = random.default_generator()
        self._counter = self._generator.counter

    def restore(self) -> None:
        """A device that does not answer any more is left alone: the first error is to be told."""
        self._generator.counter = self._counter
        with contextlib.suppress(Exception):
            for array, values in self._pairs:
                array[...] = values


def moving(network: Any) -> list[Array]:
    """What the layers that learn move on by themselves: running statistics."""
    layers = [layer for _, layer in network.walk() if layer.trainable]
    return [a for la in layers for name, a in la.parameters.items() if name not in la.gradients]
