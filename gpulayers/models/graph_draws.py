"""Random numbers of a captured step: a stream that goes on by itself on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend, random

__all__ = ["Draws"]

_MASK = 2**64 - 1


class Draws:
    """The default generator's key and counter on the device.

    A step takes blocks of the stream one after the other, and its kernels move the counter on; the
    host follows without looking. It writes only what somebody has changed in between: another
    seed, or numbers drawn for something else.

    Attributes
    ----------
    state : (4,) uint64 array on the device
        Key and counter, the low word of each first.
    taken : int
        Blocks that the step under way has taken.
    """

    def __init__(self) -> None:
        self.state = backend.module("cupy").zeros(4, dtype="uint64")
        self._sent: tuple[Any, ...] = (0, 0, 0, 0)
        self.taken = 0

    def begin(self) -> None:
        """A step begins to be launched, or captured."""
        self.taken = 0

    def reserve(self, blocks: int) -> int:
        """Return how far behind the counter the next `blocks` blocks begin."""
        offset, self.taken = self.taken, self.taken + blocks
        return offset

    def prepare(self) -> None:
        """See to it that the device has the default generator's state."""
        wanted = _words(random.default_generator())
        for i, (word, sent) in enumerate(zip(wanted, self._sent, strict=True)):
            if word != sent:
                self.state[i : i + 1].fill(np.uint64(word))
        self._sent = (None,) * 4  # until the step has been launched, nobody knows

    def was_launched(self, blocks: int, moved: bool) -> None:
        """A step that takes so many blocks was launched: the generator goes on too. `moved`: and so
        does the device's counter, since there was a way back."""
        generator = random.default_generator()
        generator.counter += blocks
        if moved:
            self._sent = _words(generator)


def _words(generator: random.Generator) -> tuple[int, ...]:
    counter = generator.counter
    return (*generator.key, counter & _MASK, counter >> 64 & _MASK)
