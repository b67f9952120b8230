"""Learning-rate schedules: ``scheduler(step, cur_loss)`` returns the learning rate, a Python float.

They are plain host code; an optimizer hands the number on to its update kernel.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from gpulayers import _spec
from gpulayers.errors import CheckpointError, ParameterError

__all__ = [
    "ConstantScheduler",
    "ExponentialScheduler",
    "KingScheduler",
    "NoamScheduler",
    "SchedulerBase",
    "gaussian_cdf",
]

Check = Callable[[str, str, Any], Any]
_positive: Check = partial(_spec.real, low=0.0, open_low=True)
_not_negative: Check = partial(_spec.real, low=0.0)
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


class SchedulerBase(ABC):
    """Base class of the schedules; one of your own defines ``learning_rate(step, cur_loss)``."""

    _fields: ClassVar[Mapping[str, Check]] = {}

    def __call__(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step` (1 at the first update), given the current loss."""
        return self.learning_rate(step=step, cur_loss=cur_loss)

    @abstractmethod
    def learning_rate(self, step: int | None = None, cur_loss: Any = None) -> float:
        """Return the learning rate at `step`, given the current loss."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments and the class's name as "id": a new dict on each use."""
        return {"id": type(self).__name__, **{name: getattr(self, name) for name in self._fields}}

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)}" for name in self._fields)
        return f"{type(self).__name__}({arguments})"

    def __repr__(self) -> str:
        return f"<{self}>"

    def copy(self) -> Self:
        """Return an independent copy, with its state."""
        return copy.deepcopy(self)

    def set_params(self, hparam_dict: Mapping[str, Any] | None) -> Self:
        """Change hyperparameters; the new values are used from the next call on.

        (numpy-ml's changes the dict only, not the schedule.)

        Raises
        ------
        ParameterError
            For an unknown name, a value out of range, or the "id" of another class.
        """
        values = dict(hparam_dict or {})
        name = type(self).__name__
        wanted = values.pop("id", name)
        if wanted != name and KNOWN.get(_spec.fold(str(wanted))) is not type(self):
            raise ParameterError(f"{name}: got hyperparameters of {wanted!r}")
        _spec.refuse_unknown(f"{name}.set_params", values, self._fields)
        checked = {key: self._fields[key](name, key, value) for key, value in values.items()}
        for key, value in checked.items():
            setattr(self, key, value)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during training, JSON-able; empty for a pure function of the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        CheckpointError
            If the entries do not fit.
        """
        if state:
            raise CheckpointError(f"{type(self).__name__} has no state, got {sorted(state)}")

    def _start(self, unknown: Mapping[str, Any], **values: Any) -> None:
        _spec.refuse_unknown(type(self).__name__, unknown, self._fields)
        self.set_params(values)

    def _step(self, step: int | None) -> float:
        if step is None:
            raise ParameterError(f"{type(self).__name__}: the learning rate needs the step number")
        return _not_negative(type(self).__name__, "step", step)


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

    _fields: ClassVar[Mapping[str, Check]] = {"lr": _not_negative}
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
        If a value is out of range, an argument unknown, or (in use) the step missing.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "initial_lr": _not_negative,
        "stage_length": _positive,
        "staircase": _spec.flag,
        "decay": _not_negative,
    }
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
        return float(self.initial_lr * self.decay**stage)


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
        "model_dim": _positive,
        "scale_factor": _not_negative,
        "warmup_steps": _positive,
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


class KingScheduler(SchedulerBase):
    """Multiply the rate by `decay` at each step at which the loss has stopped falling.

    A line is fitted to the last ``patience + 1`` losses; its slope is normal with the variance
    that the residuals tell. The loss counts as stalled when the slope is negative with probability
    below 0.51, both for all losses and without the highest tenth of them (single spikes)
    (D. King, "Automatic learning rate scheduling that really works", dlib blog, 2018).

    Unlike numpy-ml's, the history is long enough for any patience (there a patience of 99 or more,
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
        "initial_lr": _not_negative,
        "patience": _count,
        "decay": _not_negative,
    }
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
        """
        if cur_loss is None:
            return self.current_lr
        loss = float(cur_loss)
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


KNOWN: dict[str, type[SchedulerBase]] = {
    "constant": ConstantScheduler,
    "constantscheduler": ConstantScheduler,
    "exponential": ExponentialScheduler,
    "exponentialscheduler": ExponentialScheduler,
    "step": ExponentialScheduler,
    "stepscheduler": ExponentialScheduler,
    "noam": NoamScheduler,
    "noamscheduler": NoamScheduler,
    "king": KingScheduler,
    "kingscheduler": KingScheduler,
}


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
    if isinstance(param, str):
        return _spec.build(param, KNOWN, owner, "scheduler")
    if isinstance(param, Mapping):
        return _spec.build_from_dict(param, KNOWN, owner, "scheduler")
    raise ParameterError(
        f"{owner}: expected None, a scheduler, a string such as 'NoamScheduler(model_dim=64)' or a "
        f"dict with hyperparameters, got {type(param).__name__}"
    )
