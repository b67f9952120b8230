"""Learning-rate schedules that fit the length of a run."""

from __future__ import annotations

import math
from typing import Any

from gpulayers import _spec
from gpulayers._types import is_mapping
from gpulayers.errors import ParameterError
from gpulayers.models import Sequential
from gpulayers.optimizers._rate import agree, follow, rate_asked
from gpulayers.schedulers import (
    ConstantScheduler,
    CosineScheduler,
    ExponentialScheduler,
    KingScheduler,
    NoamScheduler,
    OneCycleScheduler,
    SchedulerBase,
    WarmupScheduler,
    make_scheduler,
    read_scheduler,
)

__all__ = [
    "fit_schedule",
    "is_blind",
    "learning_rate",
    "refit",
    "schedule_text",
    "set_schedule",
    "states_rate",
]

_BLIND = (
    ConstantScheduler,
    CosineScheduler,
    ExponentialScheduler,
    NoamScheduler,
    OneCycleScheduler,
)
FINAL_SHARE = 0.05  # of the first learning rate, where a bare "exponential" ends


def fit_schedule(
    schedule: Any,
    lr: float,
    steps: int,
    epochs: int,
    asked: bool = False,
    owner: str = "fit_schedule",
) -> SchedulerBase:
    """Return the scheduler that `schedule` describes, fitted to the run in what it leaves open.

    - ``"constant"``: `lr` throughout.
    - ``"exponential"``: from `lr` smoothly down to 5 % of it at the last step.
    - ``"cosine"``: from `lr` down to 0 along half a cosine wave.
    - ``"onecycle"``: up to `lr` and down again to almost nothing.
    - ``"warmup"``: linearly up to `lr` during the first epoch, then constant.
    - ``"noam"``: linearly up to `lr` during the first epoch, then falling as step**-0.5.
    - ``"king"``: `lr`, multiplied by 0.99 whenever the loss has not fallen for an epoch.

    With arguments, in a string or a dict, those count and the others are as above:
    ``"cosine(final_lr=0.0001)"`` begins at `lr` and ends with the run. A stage of
    ``"exponential(staircase=True)"`` is an epoch; of one with a `stage_length` the decay is the
    class's. ``"noam"`` with a `model_dim` or a `scale_factor` takes its rate from them alone.
    An object is taken as it is.

    Parameters
    ----------
    schedule : None, str, dict or scheduler
    lr : float
    steps : int
        Batches in an epoch.
    epochs : int
    asked : bool
        Whether somebody gave `lr`: then a schedule with another rate is refused.
    owner : str
        Who is named in that error.

    Raises
    ------
    ParameterError
        If the name is unknown, a value out of range, or two learning rates differ.
    """
    if schedule is None:
        return ConstantScheduler(lr)
    described = isinstance(schedule, str) or is_mapping(schedule)
    made = _fitted(schedule, lr, steps, epochs) if described else make_scheduler(schedule)
    if asked and (not described or states_rate(schedule)):
        agree(owner, lr, made)
    return made


def _fitted(schedule: Any, lr: float, steps: int, epochs: int) -> SchedulerBase:
    kind, given = read_scheduler(schedule)
    kind(**given)  # says what is wrong with them
    return kind(**{**_defaults(kind, given, lr, steps, epochs), **given})


def _defaults(
    kind: type[SchedulerBase], given: dict[str, Any], lr: float, steps: int, epochs: int
) -> dict[str, Any]:
    """The arguments of a schedule that is fitted to a run, in whose description `given` are."""
    if kind is ConstantScheduler:
        return {"lr": lr}
    if kind is ExponentialScheduler:
        stages = epochs if given.get("staircase") else 1
        fitted = {"stage_length": steps * epochs // stages, "decay": FINAL_SHARE ** (1 / stages)}
        return {"initial_lr": lr, **({} if "stage_length" in given else fitted)}
    if kind is CosineScheduler:
        return {"initial_lr": lr, "total_steps": steps * epochs}
    if kind is OneCycleScheduler:
        return {"max_lr": lr, "total_steps": steps * epochs}
    if kind is KingScheduler:
        return {"initial_lr": lr, "patience": max(2, steps)}
    if kind is WarmupScheduler:
        inner = given.pop("scheduler", None)  # fitted too, if it is a description
        return {
            "warmup_steps": max(1, steps),
            "scheduler": fit_schedule(inner, lr, steps, epochs),
        }
    warmup = given.get("warmup_steps", max(1, steps))
    if "model_dim" in given or "scale_factor" in given:
        return {"warmup_steps": warmup}
    # with model_dim 1 the rate at the end of the warm-up is scale_factor / sqrt(warm-up)
    return {"model_dim": 1, "scale_factor": lr * math.sqrt(warmup), "warmup_steps": warmup}


def states_rate(schedule: Any) -> bool:
    """Whether a schedule, or its description, says what its learning rate is."""
    if not isinstance(schedule, str) and not is_mapping(schedule):
        return schedule is not None
    kind, given = read_scheduler(schedule)
    if kind is WarmupScheduler:
        return states_rate(given.get("scheduler"))
    return any(name in given for name in (kind._rate, "model_dim", "scale_factor"))


def schedule_text(schedule: Any) -> str | None:
    """A description as text, which a checkpoint can keep; None for objects, which fit no run."""
    if not is_mapping(schedule):
        return schedule if isinstance(schedule, str) else None
    kind, given = read_scheduler(schedule)
    parts = [f"{k}={schedule_text(v) or _spec.plain(v)}" for k, v in given.items()]
    text = f"{kind.__name__}({', '.join(parts)})"
    try:
        make_scheduler(text)
    except ParameterError:  # there is an object of a class of one's own in it
        return None
    return text


def set_schedule(network: Sequential, schedule: Any, steps: int, epochs: int) -> None:
    """Put a schedule that begins now into every layer's optimizer.

    Raises
    ------
    ParameterError
        As `fit_schedule`; nothing is changed then.
    """
    made: list[tuple[Any, SchedulerBase, float]] = []
    for _, layer in network.walk():
        owner = f"Trainer: {type(layer.optimizer).__name__}"
        lr, asked = rate_asked(layer.optimizer)
        fitted = fit_schedule(schedule, lr, steps, epochs, asked, owner).copy()
        made.append((layer.optimizer, fitted, lr))
    for optimizer, fitted, lr in made:
        follow(optimizer, fitted, lr)
        optimizer.reset_step()  # of an earlier training


def refit(
    network: Sequential, schedule: Any, steps: int, epochs: int, former: int | None = None
) -> None:
    """Fit `schedule` to a run that goes on to another length; the layers' step counts stay.

    From here on the rates are those of a run that has had this length from the beginning. What
    comes out as it was keeps its state.

    Parameters
    ----------
    former : int, optional
        The epochs that it was fitted to: an optimizer with another schedule than that one keeps it.
        None replaces any.
    """
    for _, layer in network.walk():
        optimizer: Any = layer.optimizer
        lr, _ = rate_asked(optimizer)
        fitted, now = fit_schedule(schedule, lr, steps, epochs), str(optimizer.lr_scheduler)
        kept = former is not None and str(fit_schedule(schedule, lr, steps, former)) != now
        if str(fitted) != now and not kept:
            follow(optimizer, fitted.copy(), lr)


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
