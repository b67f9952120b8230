"""What a trainer does to a network before its first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpulayers.errors import ShapeError
from gpulayers.models import Pixels, Sequential, scale
from gpulayers.training.data import Dataset, Normalizer, Split
from gpulayers.training.schedule import set_schedule
from gpulayers.training.step import Step

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["make_step", "output_check", "set_up"]


def set_up(
    network: Sequential,
    train: Split,
    optimizer: Any,
    schedule: Any,
    normalize: bool,
    steps: int,
    epochs: int,
    owner: str = "Trainer",
) -> None:
    """Give a network optimizers, schedules (for so many steps an epoch) and what is done to bytes.

    Warns
    -----
    ImageScaleWarning
        If the images are floats so far from 1 that little is learnt from them.

    Raises
    ------
    ParameterError
        If the optimizer or the schedule is unknown, or both have a learning rate and they differ.
    """
    if optimizer is not None:
        network.set_optimizer(optimizer)
    if schedule is not None:
        set_schedule(network, schedule, steps, epochs)
    network.pixels = Pixels()
    if normalize and train.images.dtype == np.uint8:
        channels = Normalizer.fit(train)
        network.pixels = Pixels(channels.mean.tolist(), channels.std.tolist())
    elif train.images.dtype != np.uint8:
        text = scale.unlearnable(scale.sample_of(train.images), train.images.dtype)
        if text is not None:
            scale.warn(owner, text)


def output_check(owner: str, name: str, data: Dataset) -> Callable[[tuple[int, ...]], None]:
    """A function of the outputs' shape that raises ShapeError if the classes do not fit in; the
    error says who trains and which network it is."""

    def check(shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] < len(data.classes):
            raise ShapeError(
                f"{owner}: {data.name} has {len(data.classes)} classes, so {name} must give "
                f"outputs (n, {len(data.classes)}), got {shape}"
            )

    return check


def make_step(trainer: Trainer, shape: tuple[int, ...], planned: bool) -> Step:
    """The step of a trainer whose batches look like `shape`, by the network's plan or not."""
    largest = (min(trainer.batch_size, trainer.examples), *shape[1:])
    return Step(
        trainer.network,
        trainer.train_loss,
        planned,
        largest,
        trainer.clip_global_norm,
        output_check("Trainer", trainer.network.name, trainer.data),
        trainer.accumulate,
        trainer.scaler,
    )
