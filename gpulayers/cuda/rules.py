"""The update rules of flat.cu, as they are told to it; needs no CuPy."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RULES", "Numbers"]

#: in the order of flat.cu
RULES = ("sgd", "adagrad", "rmsprop", "adam", "nesterov")


class Numbers(NamedTuple):
    """A rule of flat.cu and its constants; those that it has no use for are zero.

    What is done to gradients first: numbers are cut to `limit` and each gradient to the norm
    `longest`, where these are positive; `pull` times the weight is added.
    """

    rule: str
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    log_a: float = 0.0
    log_c: float = 0.0
    eps: float = 0.0
    decay: float = 0.0
    limit: float = 0.0
    pull: float = 0.0
    longest: float = 0.0
