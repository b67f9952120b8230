"""The learning-rate range test: which rates a network can be trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers.errors import DivergedError, ParameterError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.schedulers import ExponentialScheduler
from gpulayers.training.data import Dataset
from gpulayers.training.description import describe, rebuild
from gpulayers.training.feed import Feed
from gpulayers.training.samplers import ShuffledSampler
from gpulayers.training.settings import parts
from gpulayers.training.setup import output_check, set_up
from gpulayers.training.step import Step

__all__ = ["RateSearch", "find_learning_rate"]

_SMOOTH = 0.9  # of the running mean of the losses
_TOO_HIGH = 4.0  # times the lowest smoothed loss: the test ends there


@dataclass(frozen=True)
class RateSearch:
    """What `find_learning_rate` measured.

    Attributes
    ----------
    rates : (n,) float64 NumPy array
        The learning rate of each step.
    losses : (n,) float64 NumPy array
        The loss of each step's batch, before the step.
    smoothed : (n,) float64 NumPy array
        Their exponential running mean, without the bias of its beginning.
    suggestion : float
        The rate at which the smoothed loss falls most steeply over the logarithm of the rate, in
        the first four fifths of its way down.
    lowest : float
        The rate at which the smoothed loss is lowest: more is too much.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float
    lowest: float


def find_learning_rate(
    network: Sequential,
    data: Dataset,
    optimizer: Any = None,
    batch_size: int = 64,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    seed: int = 0,
    loss: Any = None,
) -> RateSearch:
    """Train a copy of the network with a rate that grows from step to step, and look at the loss.

    The rate of step t is low (high / low)^(t / (steps - 1)); the test ends early where the smoothed
    loss is four times its lowest, or not finite. Neither the network nor the default random
    generator is changed. (Smith, "Cyclical learning rates for training neural networks", 2017,
    section 3.3; the steepest place as a suggestion is that of later practice.)

        found = find_learning_rate(network, data, "Adam")
        Trainer(network, data, optimizer=f"Adam(lr={found.suggestion})").fit()

    Parameters
    ----------
    network : Sequential
    data : Dataset
        Batches come from its training images, in shuffled order, again and again.
    optimizer : str or optimizer, optional
        Whose rate is tested; None is the layers' own.
    batch_size, steps : int
        `steps` at least 10.
    low, high : float
        0 < low < high.
    seed : int
    loss : loss object, optional
        None is `losses.SoftmaxCrossEntropy`.

    Raises
    ------
    ParameterError
        If a value is out of range.
    DivergedError
        If the loss is not finite before anything can be told: `low` is too high already.
    """
    name = "find_learning_rate"
    network, data = parts(network, data, name)
    size = _spec.integer(name, "batch_size", batch_size, 1)
    steps = _spec.integer(name, "steps", steps, 10)
    low = float(_spec.real(name, "low", low, 0.0, open_low=True))
    high = float(_spec.real(name, "high", high, 0.0, open_low=True))
    if not low < high:
        raise ParameterError(f"{name}: expected low < high, got {low:g} and {high:g}")
    before = random.get_state()
    former_dtype = backend.default_dtype()
    try:
        random.seed(seed)
        backend.set_default_dtype(network.dtype)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            rates, losses = _test(network, data, optimizer, size, (low, high), steps, seed, loss)
    finally:
        backend.set_default_dtype(former_dtype)
        random.set_state(before)
    return _judged(np.array(rates), np.array(losses), low)


def _test(
    network: Sequential,
    data: Dataset,
    optimizer: Any,
    size: int,
    limits: tuple[float, float],
    steps: int,
    seed: int,
    loss: Any,
) -> tuple[list[float], list[float]]:
    clone = _cloned(network)
    set_up(clone, data.train, optimizer, None, True, steps, 1, "find_learning_rate")
    low, high = limits
    ratio = (high / low) ** (1.0 / (steps - 1))
    # an optimizer's first step has number 1
    schedule = ExponentialScheduler(initial_lr=low / ratio, stage_length=1, decay=ratio)
    for _, layer in clone.walk():
        layer.optimizer.reset_step()
        layer.optimizer.lr_scheduler = schedule.copy()
    place = network.home or backend.current_backend()
    clone.to(place)
    feed = Feed(data.train, place)
    shape = (min(size, feed.count), *data.train.images.shape[1:])
    objective = SoftmaxCrossEntropy() if loss is None else loss
    check = output_check("find_learning_rate", network.name, data)
    step = Step(clone, objective, place == "numpy", shape, None, check)
    rates: list[float] = []
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    epoch, sampler = 0, ShuffledSampler(feed.count)
    while True:
        for X, labels in feed.batches(size, sampler, seed, epoch):
            value = float(step.forward(X, labels)[0])
            if not math.isfinite(value):
                return rates, losses
            rates.append(low * ratio ** len(rates))
            losses.append(value)
            mean = _SMOOTH * mean + (1 - _SMOOTH) * value
            smooth = mean / (1 - _SMOOTH ** len(losses))
            lowest = min(lowest, smooth)
            if len(losses) == steps or smooth > _TOO_HIGH * lowest:
                return rates, losses
            step.update(value)
        epoch += 1


def _cloned(network: Sequential) -> Sequential:
    """An independent network, with the optimizers' state."""
    arrays: dict[str, np.ndarray] = {}
    spec = describe(network, arrays, "network")
    custom: dict[str, type] = {
        type(part).__name__: type(part) for part in (network, *(x for _, x in network.walk()))
    }
    return rebuild(spec, {key: array.copy() for key, array in arrays.items()}, custom)


def _judged(rates: np.ndarray, losses: np.ndarray, low: float) -> RateSearch:
    if len(losses) < 3:
        raise DivergedError(
            f"find_learning_rate: the loss is not finite after {len(losses)} steps from the rate "
            f"{low:g} on; choose a smaller `low`"
        )
    smoothed, mean = np.empty(len(losses)), 0.0
    for i, value in enumerate(losses):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        smoothed[i] = mean / (1 - _SMOOTH ** (i + 1))
    lowest = int(smoothed.argmin())
    # over several steps, as single ones are noise; behind the first few, whose mean is of few
    # values; and not up to the lowest point, where the network is on the brink
    top = max(1, lowest - lowest // 5)
    first, span = min(len(losses) // 8, top - 1), max(1, top // 8)
    falls = smoothed[span : top + 1] - smoothed[: top + 1 - span]
    steepest = first + int(falls[first:].argmin()) + span // 2 if len(falls) > first else top
    return RateSearch(rates, losses, smoothed, float(rates[steepest]), float(rates[lowest]))
