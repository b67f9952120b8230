"""Schedules of the step alone: constant, exponential, Noam's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from gpulayers import _spec
from gpulayers.errors import ParameterError
from gpulayers.schedulers.base import KNOWN, Check, SchedulerBase, not_negative, positive


class ConstantScheduler(SchedulerBase):
    """The same learning rate at each step.

    Parameters
    ----------
    lr : float
        >= 0.

    Raises
    ------
    ParameterError
        If lr is out of range or an argument unknown.
    """

    _fields: ClassVar[Mapping[str, Check]] = {"lr": not_negative}
    _rate = "lr"
    lr: float

    def __init__(self, lr: float = 0.01, **unknown: Any) -> None:
        self._start(unknown, lr=lr)

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return lr; step and loss do not matter."""
        return float(self.lr)


class ExponentialScheduler(SchedulerBase):
    """initial_lr * decay ** (step / stage_length).

    numpy-ml gives it the id "StepScheduler", which its own initializer does not know; here the id
    is the class's name, and both names are read.

    Parameters
    ----------
    initial_lr : float
        >= 0.
    stage_length : int or float
        Steps after which the rate has been multiplied by `decay` once; > 0.
    staircase : bool
        Round ``step / stage_length`` down, so that the rate falls once per stage.
    decay : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown, or (in use) the step missing or the rate
        too large for a number.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "initial_lr": not_negative,
        "stage_length": positive,
        "staircase": _spec.flag,
        "decay": not_negative,
    }
    _rate = "initial_lr"
    initial_lr: float
    stage_length: float
    staircase: bool
    decay: float

    def __init__(
        self,
        initial_lr: float = 0.01,
        stage_length: float = 500,
        staircase: bool = False,
        decay: float = 0.1,
        **unknown: Any,
    ) -> None:
        self._start(
            unknown,
            initial_lr=initial_lr,
            stage_length=stage_length,
            staircase=staircase,
            decay=decay,
        )

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`."""
        stage = self._step(step) / self.stage_length
        if self.staircase:
            stage = math.floor(stage)
        try:
            return float(self.initial_lr * self.decay**stage)
        except OverflowError:
            raise ParameterError(
                f"{self}: the learning rate at step {step} is too large for a number"
            ) from None


class NoamScheduler(SchedulerBase):
    """scale_factor * model_dim**-0.5 * min(step**-0.5, step * warmup_steps**-1.5).

    Rises linearly for `warmup_steps` steps, then falls with the root of the step (Vaswani et al.,
    "Attention is all you need", 2017, eq. 3). At step 0 it is 0, the formula's limit (numpy-ml
    divides by zero).

    Parameters
    ----------
    model_dim : int or float
        > 0.
    scale_factor : float
        >= 0.
    warmup_steps : int or float
        > 0.

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown, or (in use) the step missing.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "model_dim": positive,
        "scale_factor": not_negative,
        "warmup_steps": positive,
    }
    model_dim: float
    scale_factor: float
    warmup_steps: float

    def __init__(
        self,
        model_dim: float = 512,
        scale_factor: float = 1,
        warmup_steps: float = 4000,
        **unknown: Any,
    ) -> None:
        self._start(
            unknown, model_dim=model_dim, scale_factor=scale_factor, warmup_steps=warmup_steps
        )

    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`."""
        step_number = self._step(step)
        if step_number == 0:
            return 0.0
        slope = min(step_number**-0.5, step_number * self.warmup_steps**-1.5)
        return float(self.scale_factor * self.model_dim**-0.5 * slope)


def make_scheduler(
    param: SchedulerBase | str | Mapping[str, Any] | None, lr: float | None = None
) -> SchedulerBase:
    """Return the scheduler that `param` describes; see `initializers.SchedulerInitializer`."""
    owner = "SchedulerInitializer"
    if param is None:
        if lr is None:
            raise ParameterError(f"{owner}: give a scheduler or a learning rate, got neither")
        return ConstantScheduler(lr)
    if isinstance(param, SchedulerBase):
        return param
    kind, given = read_scheduler(param)
    if lr is not None and kind._rate:
        if kind._rate == "scheduler":  # a warm-up: the other schedule's rate
            given["scheduler"] = make_scheduler(given.get("scheduler"), lr)
        given.setdefault(kind._rate, lr)
    return kind(**given)


def read_scheduler(param: str | Mapping[str, Any]) -> tuple[type[SchedulerBase], dict[str, Any]]:
    """Return the class of schedules that `param` names, and the arguments that it gives."""
    owner = "SchedulerInitializer"
    if isinstance(param, (str, Mapping)):
        found: Any = _spec.described(param, KNOWN, owner, "scheduler")
        return found
    raise ParameterError(
        f"{owner}: expected None, a scheduler, a string such as 'NoamScheduler(model_dim=64)' or a "
        f"dict with hyperparameters, got {type(param).__name__}"
    )
