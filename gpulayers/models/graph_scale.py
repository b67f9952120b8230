"""The loss scale of a captured step in float16: it follows the gradients on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array

__all__ = ["LossScale"]


class LossScale:
    """What the loss's gradient is multiplied by, so that small gradients do not become zero in
    float16, and how many steps were left out because a gradient was not finite.

    Kernels read and change it; nothing waits for the device until somebody asks. (Micikevicius et
    al., "Mixed precision training", ICLR 2018, section 3.2.)

    Parameters
    ----------
    scale : float
        A power of two, of the first step.
    good, skipped : int
        Steps since the scale was last changed, and steps left out, of an earlier run.
    interval : int
        After so many good steps the scale is doubled.
    smallest, largest : float
        It stays between them.

    Attributes
    ----------
    state : flat.ScaleState
        The arrays on the device.
    on_skipped : function of an int, or None
        Is told of steps left out, when somebody looks.
    """

    def __init__(
        self,
        scale: float = 2.0**15,
        good: int = 0,
        skipped: int = 0,
        interval: int = 2000,
        smallest: float = 2.0**-14,
        largest: float = 2.0**24,
    ) -> None:
        from gpulayers.cuda import flat  # needs CuPy

        xp = backend.module("cupy")
        self._known = skipped
        self.on_skipped: Callable[[int], None] | None = None
        self.state = flat.ScaleState(
            scale=xp.asarray(np.full(1, scale, np.float32)),
            inverse=xp.asarray(np.full(1, 1.0 / scale, np.float32)),
            good=xp.ones(1, dtype="int32"),
            counts=xp.asarray(np.array((good, skipped, 0), np.int32)),
            interval=interval,
            smallest=smallest,
            largest=largest,
        )

    def arrays(self) -> list[Array]:
        """Those that a step changes."""
        return [self.state.scale, self.state.inverse, self.state.good, self.state.counts]

    def noticed(self) -> None:
        """One more step was left out, and whoever would be told of it knows."""
        self._known += 1

    def write(self, scale: float, good: int, skipped: int) -> None:
        """Go on with these instead."""
        self.read()  # what was left out till now
        self.state.scale.fill(scale)
        for i, count in enumerate((good, skipped, 0)):
            self.state.counts[i : i + 1].fill(count)
        self._known = skipped

    def read(self) -> dict[str, Any]:
        """Return scale, good, skipped and stuck (steps left out at the smallest scale); waits for
        the device."""
        good, skipped, stuck = (int(n) for n in backend.to_cpu(self.state.counts))
        scale = float(backend.to_cpu(self.state.scale)[0])
        news, self._known = skipped - self._known, skipped
        if news and self.on_skipped is not None:
            self.on_skipped(news)
        return {"scale": scale, "good": good, "skipped": skipped, "stuck": stuck}
