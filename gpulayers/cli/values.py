"""What an option's value must look like; each check returns the value or says what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

from gpulayers.errors import ParameterError, suggest

__all__ = [
    "fraction",
    "one_of",
    "optimizer",
    "port",
    "positive",
    "positive_int",
    "schedule",
    "seed",
    "share",
    "transforms",
]


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """A check for one of `names`, in any case."""

    def check(text: str) -> str:
        if text.lower() not in names:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(names)}, got {text!r}{suggest(text, names, 0.6)}"
            )
        return text.lower()

    return check


def positive(text: str) -> float:
    """A finite number above 0."""
    return _real(text, 0.0 < _number(text) < math.inf, "a positive number")


def fraction(text: str) -> float:
    """A number of at least 0 and below 1."""
    return _real(text, 0.0 <= _number(text) < 1.0, "a number from 0 to below 1")


def share(text: str) -> float:
    """A number above 0 and below 1."""
    return _real(text, 0.0 < _number(text) < 1.0, "a number between 0 and 1")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _real(text: str, fits: bool, expected: str) -> float:
    if not fits:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return float(text)


def _integer(text: str, least: int, most: float, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """An integer above 0."""
    return _integer(text, 1, math.inf, "a positive integer")


def seed(text: str) -> int:
    """An integer of 64 bits."""
    return _integer(text, 0, 2**64 - 1, "an integer in 0..2**64-1")


def port(text: str) -> int:
    """A TCP port; 0 stands for any free one."""
    return _integer(text, 0, 65535, "a port, 0..65535")


# What the following import takes longer than to read the other options.


def optimizer(text: str) -> str:
    """The description of an optimizer."""
    from gpulayers._spec import parse_call
    from gpulayers.initializers import OptimizerInitializer
    from gpulayers.schedulers import ConstantScheduler

    owner = "OptimizerInitializer"
    found = _described(text, lambda: OptimizerInitializer(text)(), owner)
    plain = isinstance(OptimizerInitializer(text)().lr_scheduler, ConstantScheduler)
    if not plain or parse_call(text, owner)[2].get("lr_scheduler") is not None:
        raise argparse.ArgumentTypeError(
            f"{text!r} has a schedule, which is an option of its own: --schedule"
        )
    return found


def schedule(text: str) -> str:
    """The description of a schedule."""
    from gpulayers.training.schedule import fit_schedule

    return _described(text, lambda: fit_schedule(text, 0.01, 1, 1), "SchedulerInitializer")


def transforms(text: str) -> str:
    """The description of transforms."""
    from gpulayers.training.transforms import make_transform

    return _described(text, lambda: make_transform(text), "make_transform")


def _described(text: str, read: Callable[[], object], reader: str) -> str:
    """The text, if it can be read; else what is wrong, without the name of the function."""
    try:
        read()
    except ParameterError as error:
        reason = str(error).removeprefix(f"{reader}: ")
        raise argparse.ArgumentTypeError(reason) from error
    return text
