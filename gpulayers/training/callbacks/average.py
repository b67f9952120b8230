"""The exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.training.callbacks.base import Callback
from gpulayers.training.callbacks.weights import WeightSwap

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["WeightAverage"]


class WeightAverage(Callback):
    """Exponential moving average of the weights: a <- d a + (1 - d) w after each step.

    Validation, ``best.safetensors`` and, when `fit` has ended, the network have the average;
    training goes on with the weights themselves. The average begins as the weights after the first
    step, and d is at first smaller than `decay`, min(decay, (1 + t) / (10 + t)) in step t, so that
    the first weights do not last. Running statistics are averaged too. (Polyak & Juditsky,
    "Acceleration of stochastic approximation by averaging", 1992; the warm-up as TensorFlow's
    ExponentialMovingAverage.)

    Parameters
    ----------
    decay : float in [0, 1)
    warmup : bool
        False uses `decay` from the beginning.

    Attributes
    ----------
    average : dict of str to array
        By the parameters' names; float32 for half types. Empty before the first step.

    Raises
    ------
    ParameterError
        If the decay is out of range.
    """

    early = True  # before those that look at the weights that were evaluated

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        name = type(self).__name__
        self.decay = float(_spec.real(name, "decay", decay, 0.0, 1.0, open_high=True))
        self.warmup = _spec.flag(name, "warmup", warmup)
        self.average: dict[str, Array] = {}
        self.steps = 0
        self._swap = WeightSwap()

    def on_step_end(self, trainer: Trainer) -> None:
        t, self.steps = self.steps, self.steps + 1
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        for name, weight in trainer.network.parameters.items():
            if not backend.is_floating(weight.dtype):
                continue
            wide = weight.astype(np.float32) if weight.dtype.itemsize < 4 else weight
            old = self.average.get(name)
            if old is None:
                self.average[name] = wide.copy()
                continue
            if backend.backend_of(old) != backend.backend_of(wide):  # out of a checkpoint
                self.average[name] = old = backend.to_backend(old, backend.backend_of(wide))
            old += (wide - old) * old.dtype.type(1.0 - decay)

    def on_validation_begin(self, trainer: Trainer) -> None:
        self._swap.put(trainer.network, self.average)

    def on_validation_end(self, trainer: Trainer) -> None:
        self._swap.take_back(trainer.network)

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._swap.take_back(trainer.network)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._swap.put(trainer.network, self.average)

    @property
    def holds_weights(self) -> bool:  # type: ignore[override]
        return self._swap.trained is not None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average, "trained": self._swap.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.average = int(state["steps"]), dict(state["average"])
        self._swap.load(state["trained"])
