"""The schedule that watches the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from gpulayers import _spec
from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.schedulers.base import Check, SchedulerBase, not_negative

_count: Check = partial(_spec.integer, low=1)


def gaussian_cdf(x: float, mean: float, var: float) -> float:
    """Return P(X <= x) for X normal with `mean` and variance `var`.

    With variance 0 it is the step from 0 to 1, one half at `mean` itself.

    Raises
    ------
    ParameterError
        If the variance is negative.
    """
    if var < 0:
        raise ParameterError(f"gaussian_cdf: var must be >= 0, got {var}")
    if var == 0:
        return 0.5 * (1.0 + (x > mean) - (x < mean))
    return 0.5 * (1.0 + math.erf((x - mean) / math.sqrt(2.0 * var)))


class KingScheduler(SchedulerBase):
    """Multiply the rate by `decay` at each step at which the loss has stopped falling.

    A line is fitted to the last ``patience + 1`` losses; its slope is normal with the variance
    that the residuals tell. The loss counts as stalled when the slope is negative with probability
    below 0.51, both for all losses and without the highest tenth of them (single spikes)
    (D. King, "Automatic learning rate scheduling that really works", dlib blog, 2018).

    Unlike numpy-ml's, the history is long enough for any patience (there one of 100 or more,
    the default too, never decays); the parameters of one layer, updated at the same step with the
    same loss, count as one step; and without a loss the current rate is returned.

    Attributes
    ----------
    current_lr : float
    loss_history : list of float
        The last `max_history` losses; losses that are not finite are left out.
    max_history : int

    Parameters
    ----------
    initial_lr : float
        >= 0.
    patience : int
        Steps without progress to wait for; >= 1.
    decay : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range or an argument unknown.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "initial_lr": not_negative,
        "patience": _count,
        "decay": not_negative,
    }
    _rate = "initial_lr"
    initial_lr: float
    patience: int
    decay: float

    def __init__(
        self,
        initial_lr: float = 0.01,
        patience: int = 1000,
        decay: float = 0.99,
        **unknown: Any,
    ) -> None:
        self.loss_history: list[float] = []
        self._last: tuple[int, float] | None = None
        self._start(unknown, initial_lr=initial_lr, patience=patience, decay=decay)

    def set_params(self, hparam_dict: Mapping[str, Any] | None) -> Self:
        """As the other schedules; a changed `initial_lr` becomes the current rate too."""
        before = getattr(self, "initial_lr", None)
        super().set_params(hparam_dict)
        if self.initial_lr != before:
            self.current_lr = float(self.initial_lr)
        # of h losses the robust test keeps floor(0.9 (h - 1)) + 1: more than the patience, and 3
        self.max_history = max(
            math.ceil(1.1 * (self.patience + 1)), -(-10 * self.patience // 9) + 1, 4
        )
        del self.loss_history[: -self.max_history]
        return self

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the rate after taking the current loss into account.

        Parameters
        ----------
        step : int, optional
        cur_loss : float or 0-d array, optional
            An array on a GPU makes the host wait for it.

        Raises
        ------
        ParameterError
            If the loss is no number.
        """
        if cur_loss is None:
            return self.current_lr
        try:
            loss = float(cur_loss)
        except (TypeError, ValueError):
            raise ParameterError(
                f"KingScheduler: cur_loss must be a number, got {cur_loss!r}"
            ) from None
        if step is not None:
            if self._last == (step, loss):
                return self.current_lr
            self._last = (step, loss)
        if not math.isfinite(loss):
            return self.current_lr
        self.loss_history.append(loss)
        del self.loss_history[: -self.max_history]
        if self._stalled(robust=False) and self._stalled(robust=True):
            self.current_lr *= self.decay
        return self.current_lr

    def _stalled(self, robust: bool) -> bool:
        losses = np.asarray(self.loss_history, dtype=np.float64)
        if robust:
            losses = losses[losses <= np.quantile(losses, 0.9)]
        if len(losses) <= max(self.patience, 2):  # a slope's variance takes three points
            return False
        return _probability_decreasing(losses[-max(self.patience + 1, 3) :]) < 0.51

    def state_dict(self) -> dict[str, Any]:
        """Return the current rate and the losses seen."""
        return {
            "current_lr": self.current_lr,
            "loss_history": list(self.loss_history),
            "last": None if self._last is None else list(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; CheckpointError if the entries do not fit."""
        try:
            lr = float(state["current_lr"])
            history = [float(loss) for loss in state["loss_history"]]
            last = None if state["last"] is None else (int(state["last"][0]), state["last"][1])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"KingScheduler: bad state {state!r}") from error
        self.current_lr, self.loss_history, self._last = lr, history, last


def _probability_decreasing(losses: np.ndarray) -> float:
    """Probability that the slope of the least-squares line through equally spaced losses is < 0."""
    n = len(losses)
    y = losses - losses[0]  # a constant loss then has slope 0 exactly
    x = np.arange(n) - 0.5 * (n - 1)
    spread = (n**3 - n) / 12.0  # sum of x^2
    slope = float(x @ y) / spread
    residual = y - y.mean() - slope * x
    return gaussian_cdf(0.0, slope, float(residual @ residual) / (n - 2) / spread)
