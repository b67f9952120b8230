"""Learning-rate schedules that fit the length of a run."""

from __future__ import annotations

import math
from typing import Any

from gpulayers.initializers import SchedulerInitializer
from gpulayers.models import Sequential
from gpulayers.schedulers import (
    ConstantScheduler,
    CosineScheduler,
    ExponentialScheduler,
    KingScheduler,
    NoamScheduler,
    OneCycleScheduler,
    SchedulerBase,
    WarmupScheduler,
)

__all__ = ["fit_schedule", "is_blind", "learning_rate"]

_BLIND = (
    ConstantScheduler,
    CosineScheduler,
    ExponentialScheduler,
    NoamScheduler,
    OneCycleScheduler,
)
FINAL_SHARE = 0.05  # of the first learning rate, where a bare "exponential" ends


def fit_schedule(schedule: Any, lr: float, steps: int, epochs: int) -> SchedulerBase:
    """Return the scheduler that `schedule` describes; a bare name is fitted to the run.

    - ``"constant"``: `lr` throughout.
    - ``"exponential"``: from `lr` smoothly down to 5 % of it at the last step.
    - ``"cosine"``: from `lr` down to 0 along half a cosine wave.
    - ``"onecycle"``: up to `lr` and down again to almost nothing.
    - ``"warmup"``: linearly up to `lr` during the first epoch, then constant.
    - ``"noam"``: linearly up to `lr` during the first epoch, then falling as step**-0.5.
    - ``"king"``: `lr`, multiplied by 0.99 whenever the loss has not fallen for an epoch.

    Anything else (``"ExponentialScheduler(initial_lr=0.1, stage_length=500)"``, an object, a
    dictionary) is taken as it is, see `initializers.SchedulerInitializer`.

    Parameters
    ----------
    schedule : None, str, dict or scheduler
    lr : float
    steps : int
        Batches in an epoch.
    epochs : int

    Raises
    ------
    ParameterError
        If the name is unknown or a value out of range.
    """
    name = schedule.strip().lower() if isinstance(schedule, str) else None
    if schedule is None or name == "constant":
        return ConstantScheduler(lr)
    if name == "exponential":
        return ExponentialScheduler(initial_lr=lr, stage_length=steps * epochs, decay=FINAL_SHARE)
    if name == "cosine":
        return CosineScheduler(initial_lr=lr, total_steps=steps * epochs)
    if name == "onecycle":
        return OneCycleScheduler(max_lr=lr, total_steps=steps * epochs)
    if name == "warmup":
        return WarmupScheduler(warmup_steps=max(1, steps), scheduler=ConstantScheduler(lr))
    if name == "noam":
        # with model_dim 1 the rate at the end of the warm-up is scale_factor / sqrt(warm-up)
        return NoamScheduler(
            model_dim=1, scale_factor=lr * math.sqrt(steps), warmup_steps=max(1, steps)
        )
    if name == "king":
        return KingScheduler(initial_lr=lr, patience=max(2, steps), decay=0.99)
    return SchedulerInitializer(schedule, lr=lr)()


def is_blind(scheduler: Any) -> bool:
    """Whether a schedule is known to look at the step alone and never at the loss."""
    if isinstance(scheduler, WarmupScheduler):
        return is_blind(scheduler.scheduler)
    return isinstance(scheduler, _BLIND)


def learning_rate(network: Sequential) -> float:
    """The learning rate of the last step, of the first layer that learns; 0 if none does."""
    for _, layer in network.walk():
        if layer.trainable and layer.gradients:
            optimizer = layer.optimizer
            if is_blind(optimizer.lr_scheduler):
                return float(optimizer.lr_scheduler(max(optimizer.cur_step, 1)))
            return float(getattr(optimizer.lr_scheduler, "current_lr", math.nan))
    return 0.0
