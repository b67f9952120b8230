"""Schedules that are ours: warm-up, cosine, one cycle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from gpulayers import _spec
from gpulayers.schedulers.base import Check, SchedulerBase, not_negative, positive
from gpulayers.schedulers.rules import make_scheduler

_inside: Check = partial(_spec.real, low=0.0, high=1.0, open_low=True, open_high=True)
_at_least_one: Check = partial(_spec.real, low=1.0)


def _any_schedule(owner: str, name: str, value: Any) -> SchedulerBase:
    """A schedule of one's own: what is given is copied."""
    return make_scheduler(value, lr=0.01).copy()


def _cosine(first: float, last: float, share: float) -> float:
    """From `first` at share 0 along half a cosine wave to `last` at share 1."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * share))


class WarmupScheduler(SchedulerBase):
    """Another schedule's rate, rising to it in a straight line: min(1, step / warmup_steps) of it.

    (Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2.)

    Parameters
    ----------
    warmup_steps : int or float
        > 0; the other schedule's rate is reached at this step.
    scheduler : None, SchedulerBase, str or dict
        The other schedule, copied; None is a constant rate of 0.01. It is asked from the first
        step on.

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown, or (in use) the step missing.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "warmup_steps": positive,
        "scheduler": _any_schedule,
    }
    _rate = "scheduler"
    warmup_steps: float
    scheduler: SchedulerBase

    def __init__(self, warmup_steps: float = 1000, scheduler: Any = None, **unknown: Any) -> None:
        self._start(unknown, warmup_steps=warmup_steps, scheduler=scheduler)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """As the other schedules; "scheduler" is a string."""
        return {**super().hyperparameters, "scheduler": str(self.scheduler)}

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`."""
        share = min(1.0, self._step(step) / self.warmup_steps)
        return share * self.scheduler(step, cur_loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the other schedule's state."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the other schedule's state; CheckpointError if the entries do not fit."""
        self.scheduler.load_state_dict(state)


class CosineScheduler(SchedulerBase):
    """From `initial_lr` to `final_lr` along half a cosine wave, after an optional warm-up.

    final_lr + (initial_lr - final_lr) * (1 + cos(pi * t)) / 2,
    t = (step - warmup_steps) / (total_steps - warmup_steps)

    (Loshchilov & Hutter, "SGDR", 2017, equation 5, without restarts.) Before `warmup_steps` the
    rate is initial_lr * step / warmup_steps, from `total_steps` on it is `final_lr`.

    Parameters
    ----------
    initial_lr : float
        >= 0.
    total_steps : int or float
        > 0; warm-up included.
    final_lr : float
        >= 0.
    warmup_steps : int or float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown, or (in use) the step missing.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "initial_lr": not_negative,
        "total_steps": positive,
        "final_lr": not_negative,
        "warmup_steps": not_negative,
    }
    _rate = "initial_lr"
    initial_lr: float
    total_steps: float
    final_lr: float
    warmup_steps: float

    def __init__(
        self,
        initial_lr: float = 0.01,
        total_steps: float = 1000,
        final_lr: float = 0.0,
        warmup_steps: float = 0,
        **unknown: Any,
    ) -> None:
        self._start(
            unknown,
            initial_lr=initial_lr,
            total_steps=total_steps,
            final_lr=final_lr,
            warmup_steps=warmup_steps,
        )

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`."""
        now = self._step(step)
        if now < self.warmup_steps:
            return self.initial_lr * now / self.warmup_steps
        if now >= self.total_steps:
            return float(self.final_lr)
        share = (now - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return _cosine(self.initial_lr, self.final_lr, share)


class OneCycleScheduler(SchedulerBase):
    """Up to `max_lr` and down again to almost nothing, both along half a cosine wave.

    From max_lr / initial_divisor at step 1 to max_lr after the share `rise` of the run, then to
    max_lr / (initial_divisor * final_divisor) at `total_steps`, where it stays. The rates are those
    of PyTorch's ``OneCycleLR``. (Smith & Topin, "Super-convergence", 2018)

    Parameters
    ----------
    max_lr : float
        >= 0.
    total_steps : int or float
        > 0.
    rise : float
        In (0, 1).
    initial_divisor, final_divisor : float
        >= 1.

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown, or (in use) the step missing.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "max_lr": not_negative,
        "total_steps": positive,
        "rise": _inside,
        "initial_divisor": _at_least_one,
        "final_divisor": _at_least_one,
    }
    _rate = "max_lr"
    max_lr: float
    total_steps: float
    rise: float
    initial_divisor: float
    final_divisor: float

    def __init__(
        self,
        max_lr: float = 0.1,
        total_steps: float = 1000,
        rise: float = 0.3,
        initial_divisor: float = 25.0,
        final_divisor: float = 1e4,
        **unknown: Any,
    ) -> None:
        self._start(
            unknown,
            max_lr=max_lr,
            total_steps=total_steps,
            rise=rise,
            initial_divisor=initial_divisor,
            final_divisor=final_divisor,
        )

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`."""
        done, last = max(self._step(step) - 1.0, 0.0), self.total_steps - 1.0
        peak = self.rise * self.total_steps - 1.0
        first = self.max_lr / self.initial_divisor
        final = first / self.final_divisor
        if done >= last:
            return final
        if done <= peak:
            return _cosine(first, self.max_lr, done / peak) if peak > 0 else float(self.max_lr)
        # a rise shorter than one step starts at the peak
        peak = max(peak, 0.0)
        return _cosine(self.max_lr, final, (done - peak) / (last - peak))
