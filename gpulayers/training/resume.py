"""What a trainer keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.initializers import OptimizerInitializer
from gpulayers.models import Sequential
from gpulayers.optimizers._rate import rate_asked
from gpulayers.training.checkpoint import load_checkpoint
from gpulayers.training.history import History
from gpulayers.training.keeper import checkpoint_path
from gpulayers.training.samplers import Sampler
from gpulayers.training.schedule import refit
from gpulayers.training.settings import data_sum

# settings that are not in the checkpoints of version 0.1, which had none of them
_ABSENT = {
    "clip_global_norm": None,
    "accumulate": 1,
    "label_smoothing": 0.0,
    "transform": None,
    "sampler": None,
    "precision": None,
}

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["checkpoint_path", "config_of", "restore", "state_of", "transplant"]


def config_of(
    trainer: Trainer, normalize: bool, label_smoothing: float, sampler: Sampler | None
) -> dict[str, Any]:
    """What the result depends on besides the network, in plain values."""
    return {
        "data": trainer.data.name,
        "train_examples": len(trainer.data.train),
        "data_sum": data_sum(trainer.data.train),
        "batch_size": trainer.batch_size,
        "seed": trainer.seed,
        "dtype": trainer.dtype.name,
        "precision": trainer.precision if trainer.scaler or trainer.precision == "tf32" else None,
        "normalize": bool(normalize),
        "clip_global_norm": trainer.clip_global_norm,
        "accumulate": trainer.accumulate,
        "label_smoothing": float(label_smoothing),
        "transform": None if trainer.transform is None else repr(trainer.transform),
        "sampler": None if sampler is None else repr(sampler),
        "loss": _told(trainer.train_loss),  # last: the others may be why it differs
    }


def _told(loss: Any) -> str:
    """A loss as text: its class, and its settings if it tells them."""
    return type(loss).__name__ if type(loss).__str__ is object.__str__ else str(loss)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything besides the network that the rest of the run depends on."""
    history = trainer.history.to_dict()
    history["step_losses"] = np.array(history["step_losses"], np.float64)
    return {
        "config": trainer.config,
        "epochs": trainer.epochs,
        "schedule": trainer.schedule,
        "epoch": trainer._epoch,
        "step": trainer._step,
        "seconds": trainer._seconds,
        "train_seconds": trainer._train_seconds,
        **trainer._tally.state(),
        "random": trainer._random_state,
        "history": history,
        "callbacks": trainer.callbacks.state(),
        "loss_scale": None if trainer.scaler is None else trainer.scaler.state(),
    }


def restore(trainer: Trainer, path: Path, optimizer: Any, schedule: Any) -> None:
    """Put `trainer` and its network into the state that `path` holds.

    `schedule`, unless None, is taken up there in place of the run's.

    Raises
    ------
    CheckpointError
        If the file cannot be read, was not written by a Trainer, or is of another network.
    ParameterError
        If data, batch size, seed, dtype, optimizer, callbacks or another setting differ.
    """
    path = checkpoint_path(path)
    custom: list[type] = [
        type(trainer.network),
        *(type(layer) for _, layer in trainer.network.walk()),
    ]
    checkpoint = load_checkpoint(path, custom, device="numpy", kind=Sequential)
    state = checkpoint.trainer
    if state is None:
        raise CheckpointError(
            f"{path} holds a network but no training state; load it with gpulayers.load and start "
            "a new training"
        )
    try:
        untold = {name: trainer.config[name] for name in ("data_sum", "loss")}  # by version 0.1
        saved = {**untold, **_ABSENT, **state["config"]}
        for name, value in trainer.config.items():
            if saved[name] != value:
                raise ParameterError(
                    f"resume: {name} is {value!r}, but the run in {path} has {saved[name]!r}; "
                    "going on needs the same"
                )
        epoch, step, history = state["epoch"], state["step"], History.from_dict(state["history"])
        random_state = state["random"]
        losses, hits = state["losses"], state["hits"]
        seconds, train_seconds = state["seconds"], state["train_seconds"]
        if trainer.scaler is not None:
            trainer.scaler.load(state["loss_scale"])
        fitted = state["epochs"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"the training state in {path} is incomplete ({error!r}); use an older checkpoint"
        ) from error
    if optimizer is not None:
        _same_optimizer(OptimizerInitializer(optimizer)(), checkpoint.network, path)
    trainer.callbacks.load(state.get("callbacks", []), str(path))
    transplant(checkpoint.network, trainer.network, str(path))
    if schedule is None:
        trainer.schedule, trainer._fitted = state.get("schedule"), fitted
        fit_to_length(trainer)
    else:
        refit(trainer.network, schedule, trainer.steps, trainer.epochs)
    trainer._epoch, trainer._step, trainer.history = epoch, step, history
    trainer._random_state = random_state
    trainer._tally.load(losses, hits)
    trainer._seconds, trainer._train_seconds = seconds, train_seconds
    trainer._keeper.started_from = path
    trainer.saved = (path, epoch, step)


def fit_to_length(trainer: Trainer) -> None:
    """Fit the schedule to the trainer's epochs, if it was fitted to another number of them."""
    former, trainer._fitted = trainer._fitted, trainer.epochs
    if trainer.schedule is not None and former != trainer.epochs:
        refit(trainer.network, trainer.schedule, trainer.steps, trainer.epochs, former)


def _same_optimizer(asked: Any, network: Sequential, path: Path) -> None:
    """Raise ParameterError unless the run has this optimizer, be its schedule what it is."""

    def settings(optimizer: Any) -> dict[str, Any]:
        found = {"id": type(optimizer).__name__, **getattr(optimizer, "hyperparameters", {})}
        found["lr"] = rate_asked(optimizer)[0] if getattr(asked, "lr_asked", False) else None
        return {**found, "lr_scheduler": None}

    for _, layer in network.walk():
        if settings(layer.optimizer) != settings(asked):
            raise ParameterError(
                f"resume: optimizer is {asked}, but the run in {path} has {layer.optimizer}; going "
                "on needs the same; leave `optimizer` out to go on with it"
            )


def transplant(source: Sequential, target: Sequential, where: str) -> None:
    """Give `target` the parameters, optimizers, pixels and frozen layers of `source`.

    Raises
    ------
    CheckpointError
        If the two networks are not built alike.
    """
    ours, theirs = list(target.walk()), list(source.walk())
    if [(n, type(a)) for n, a in ours] != [(n, type(a)) for n, a in theirs]:
        raise CheckpointError(f"{where} holds another network: {source!r} there, {target!r} here")
    for (name, layer), (_, saved) in zip(ours, theirs, strict=True):
        mine, other = _shape_of(layer), _shape_of(saved)
        for key, value in mine.items():
            if value is not None and other.get(key) != value:
                raise CheckpointError(
                    f"{where} holds another network: {key} of layer {name} "
                    f"({type(layer).__name__}) is {other.get(key)!r} there, {value!r} here"
                )
    for (_, layer), (_, saved) in zip(ours, theirs, strict=True):
        summary = saved.summary()
        summary["hyperparameters"].pop("optimizer", None)
        if saved.is_initialized or not layer.is_initialized:
            layer.set_params(summary)
        layer.optimizer = saved.optimizer.copy()
        layer.trainable = saved.trainable
    target.pixels = source.pixels


def _shape_of(layer: Any) -> dict[str, Any]:
    values = layer.hyperparameters
    values.pop("optimizer", None)
    return values
