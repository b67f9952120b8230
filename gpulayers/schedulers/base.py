"""What the schedules share: parameters, strings, state; and how a description becomes one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self

from gpulayers import _spec
from gpulayers.errors import CheckpointError, ParameterError

Check = Callable[[str, str, Any], Any]
positive: Check = partial(_spec.real, low=0.0, open_low=True)
not_negative: Check = partial(_spec.real, low=0.0)

KNOWN: dict[str, type[SchedulerBase]] = {}
"""Schedules by the names that strings and dicts may use; the package's `__init__` fills it."""


class SchedulerBase(ABC):
    """Base class of the schedules; one of your own defines ``learning_rate(step, cur_loss)``."""

    _fields: ClassVar[Mapping[str, Check]] = {}
    _rate: ClassVar[str] = ""  # the argument that is its learning rate, see `rate_of`

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
        return not_negative(type(self).__name__, "step", step)


def rate_of(scheduler: Any) -> float | None:
    """The learning rate that a schedule was given: its lr, initial_lr or max_lr, behind a warm-up
    the other schedule's; None for those without such an argument, as Noam's or one of your own."""
    name = getattr(scheduler, "_rate", "")
    value = getattr(scheduler, name) if name else None
    return rate_of(value) if isinstance(value, SchedulerBase) else value
