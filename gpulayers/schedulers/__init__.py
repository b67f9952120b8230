"""Learning-rate schedules: ``scheduler(step, cur_loss)`` returns the learning rate, a Python float.

They are plain host code; an optimizer hands the number on to its update kernel. Constant,
exponential, Noam and King are numpy-ml's; warm-up, cosine and one-cycle are ours.
"""

from gpulayers.schedulers.base import KNOWN, Check, SchedulerBase, rate_of
from gpulayers.schedulers.king import KingScheduler, gaussian_cdf
from gpulayers.schedulers.rules import (
    ConstantScheduler,
    ExponentialScheduler,
    NoamScheduler,
    make_scheduler,
    read_scheduler,
)
from gpulayers.schedulers.shapes import CosineScheduler, OneCycleScheduler, WarmupScheduler

__all__ = [
    "KNOWN",
    "Check",
    "ConstantScheduler",
    "CosineScheduler",
    "ExponentialScheduler",
    "KingScheduler",
    "NoamScheduler",
    "OneCycleScheduler",
    "SchedulerBase",
    "WarmupScheduler",
    "gaussian_cdf",
    "make_scheduler",
    "rate_of",
    "read_scheduler",
]

for _names, _class in {
    ("constant", "constantscheduler"): ConstantScheduler,
    ("exponential", "exponentialscheduler", "step", "stepscheduler"): ExponentialScheduler,
    ("noam", "noamscheduler"): NoamScheduler,
    ("king", "kingscheduler"): KingScheduler,
    ("cosine", "cosinescheduler"): CosineScheduler,
    ("warmup", "warmupscheduler"): WarmupScheduler,
    ("onecycle", "onecyclescheduler"): OneCycleScheduler,
}.items():
    KNOWN.update(dict.fromkeys(_names, _class))
