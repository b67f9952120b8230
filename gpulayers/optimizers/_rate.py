"""One learning rate: an optimizer's `lr` beside a schedule that may have a rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpulayers._types import is_mapping
from gpulayers.errors import ParameterError
from gpulayers.schedulers import (
    ConstantScheduler,
    SchedulerBase,
    make_scheduler,
    rate_of,
    read_scheduler,
)

__all__ = [
    "Implied",
    "agree",
    "asked",
    "changed_schedule",
    "follow",
    "is_record",
    "rate_asked",
    "recorded",
    "schedule_for",
]


class Implied(float):
    """A learning rate that nobody asked for: the default, or what a description records.

    None cannot stand for it, as numpy-ml's signature shows the number.
    """


def asked(lr: float) -> tuple[bool, float]:
    """Whether somebody asked for the rate, and the rate as a plain number."""
    return (False, float(lr)) if isinstance(lr, Implied) else (True, lr)


def agree(owner: str, lr: float, schedule: SchedulerBase) -> None:
    """Raise ParameterError unless the schedule has the learning rate that was asked for."""
    rate, kind = rate_of(schedule), type(schedule).__name__
    if rate is None:
        raise ParameterError(
            f"{owner}: lr={lr} has no effect beside {kind}, which has no learning rate among its "
            "arguments; leave lr out"
        )
    if rate != lr:
        raise ParameterError(
            f"{owner}: lr={lr} was asked for, but {kind} has the learning rate {rate}; give one of "
            "the two"
        )


def schedule_for(
    owner: str, schedule: Any, lr: float, given: bool, former: float | None = None
) -> SchedulerBase:
    """The schedule of an optimizer with the learning rate `lr`, be it `given` or the default.

    A description without a rate gets the given one, else `former`, else its class's default.

    Raises
    ------
    ParameterError
        If the description cannot be read, or has another rate than the given one.
    """
    if schedule is None:
        return ConstantScheduler(lr)
    made = make_scheduler(schedule, lr if given else former)
    if given:
        agree(owner, lr, made)
    return made


def changed_schedule(optimizer: Any, values: Mapping[str, Any]) -> SchedulerBase:
    """The schedule of an optimizer after ``set_params(values)``.

    Raises
    ------
    ParameterError
        As `schedule_for`, or if a new lr would have no effect.
    """
    name, old, lr = type(optimizer).__name__, optimizer.lr_scheduler, values.get("lr", optimizer.lr)
    schedule = values.get("lr_scheduler", old)
    if str(schedule) != str(old):
        given = "lr" in values and not is_record(optimizer, values)
        return schedule_for(name, schedule, lr, given, optimizer.lr if optimizer.lr_asked else None)
    if lr != optimizer.lr and not isinstance(lr, Implied):
        if not isinstance(old, ConstantScheduler):
            raise ParameterError(
                f"{name}: lr={lr} has no effect, the learning rate comes from {old}; set "
                "lr_scheduler"
            )
        return ConstantScheduler(lr)
    return old if isinstance(schedule, str) else schedule  # the same one, whose state stays


def is_record(kind: Any, values: Mapping[str, Any]) -> bool:
    """Whether `values` are what `hyperparameters` of an optimizer (or its class) writes: all of
    them, and a schedule with all its arguments.

    There the schedule counts, as it did when they were written; files of numpy-ml, and our older
    ones, may hold another lr beside it.
    """
    names, schedule = [*kind._fields, "lr_scheduler"], values.get("lr_scheduler")
    if not all(name in values or name in kind._extras for name in names):
        return False
    if not isinstance(schedule, str) and not is_mapping(schedule):
        return False
    try:
        made, given = read_scheduler(schedule)
    except ParameterError:  # a schedule of a user's own, as it writes itself
        return True
    return given.keys() >= made._fields.keys()


def recorded(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, of a record with an `Implied` lr."""
    lr: Any = values.get("lr")
    if type(lr) in (int, float) and is_record(kind, values):
        return {**values, "lr": Implied(lr)}
    return dict(values)


def rate_asked(optimizer: Any) -> tuple[float, bool]:
    """An optimizer's learning rate, of whatever class it is, and whether somebody gave it."""
    lr = getattr(optimizer, "lr", None)
    if lr is None:
        lr = rate_of(getattr(optimizer, "lr_scheduler", None))
    return 0.01 if lr is None else lr, getattr(optimizer, "lr_asked", False)


def follow(optimizer: Any, schedule: SchedulerBase, lr: float) -> None:
    """Let a schedule that was made for `lr` decide; a later one may have another rate."""
    optimizer.lr_scheduler = schedule
    if hasattr(optimizer, "lr_asked"):
        optimizer._lr, optimizer.lr_asked = lr, False
