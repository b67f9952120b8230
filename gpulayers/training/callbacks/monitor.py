"""Callbacks that watch one figure: early stopping, the best weights."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gpulayers import _spec
from gpulayers.backend import Array
from gpulayers.errors import ParameterError, suggest
from gpulayers.training.callbacks.base import Callback
from gpulayers.training.callbacks.weights import WeightSwap, snapshot
from gpulayers.training.history import Epoch

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["BestModel", "EarlyStopping", "Monitor"]

_FIGURES = tuple(f.name for f in fields(Epoch) if f.name != "epoch")
_MODES = ("min", "max", "auto")


class Monitor(Callback):
    """Base class of callbacks that compare one figure of each epoch with the best so far.

    Parameters
    ----------
    monitor : str
        A figure of `Epoch`, such as "val_loss" or "val_accuracy".
    mode : {"auto", "min", "max"}
        Which way is better; "auto": larger for accuracies and speed, smaller for the rest.
    min_delta : float >= 0
        By how much a value must be better to count. NaN never counts.

    Attributes
    ----------
    best : float
        Infinitely bad at first.
    best_epoch : int
        0 at first.

    Raises
    ------
    ParameterError
        If the figure or the mode is unknown or min_delta out of range.
    """

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        name = type(self).__name__
        if monitor not in _FIGURES:
            raise ParameterError(
                f"{name}: unknown figure {monitor!r}, expected one of {', '.join(_FIGURES)}"
                f"{suggest(str(monitor), _FIGURES)}"
            )
        if mode not in _MODES:
            raise ParameterError(
                f"{name}: mode must be one of {', '.join(_MODES)}, got {mode!r}"
                f"{suggest(str(mode), _MODES)}"
            )
        if mode == "auto":
            mode = "max" if "accuracy" in monitor or "per_second" in monitor else "min"
        self.monitor, self.mode = monitor, mode
        self.min_delta = float(_spec.real(name, "min_delta", min_delta, 0.0))
        self.best = -math.inf if mode == "max" else math.inf
        self.best_epoch = 0

    def improved(self, record: Epoch) -> bool:
        """Compare the epoch's figure with the best, and keep it if it is better."""
        value = float(getattr(record, self.monitor))
        gain = value - self.best if self.mode == "max" else self.best - value
        if not gain > self.min_delta:  # false for NaN
            return False
        self.best, self.best_epoch = value, record.epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["monitor"] != self.monitor:
            raise ParameterError(
                f"resume: {type(self).__name__} watches {self.monitor}, but watched "
                f"{state['monitor']} in the run; going on needs the same"
            )
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])


class EarlyStopping(Monitor):
    """Stop when a figure has not become better for some epochs.

    (Prechelt, "Early stopping - but when?", 1998.) A stopped run stays stopped: `fit` again, or a
    resumed run, ends at once unless `patience` is larger then.

    Parameters
    ----------
    monitor, mode, min_delta
        See `Monitor`.
    patience : int >= 1
        How many epochs in a row may be no better.

    Attributes
    ----------
    waited : int
        Epochs since the best one.

    Raises
    ------
    ParameterError
        If an argument is out of range.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        mode: str = "auto",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = _spec.integer(type(self).__name__, "patience", patience, 1)
        self.waited = 0

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._look(trainer)

    def on_epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        self.waited = 0 if self.improved(record) else self.waited + 1
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if self.waited >= self.patience:
            trainer.stop(
                f"{self.monitor} has not become better for {self.waited} epochs"
                + (f" (best: {self.best:.4g}, epoch {self.best_epoch})" if self.best_epoch else "")
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.waited = int(state["waited"])


class BestModel(Monitor):
    """Keep the weights of the best epoch, and give them to the network when `fit` has ended.

    With a `WeightAverage` they are the averaged ones. Training can still go on (more epochs,
    a resumed run): then it does so with the weights it had reached.

    Parameters
    ----------
    monitor, mode, min_delta
        See `Monitor`.
    restore : bool
        False only keeps them, in `weights`.

    Attributes
    ----------
    weights : dict of str to array
        By the parameters' names; empty before the first epoch.
    """

    def __init__(
        self,
        monitor: str = "val_accuracy",
        mode: str = "auto",
        min_delta: float = 0.0,
        restore: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.restore = _spec.flag(type(self).__name__, "restore", restore)
        self.weights: dict[str, Array] = {}
        self._swap = WeightSwap()

    def on_epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        if self.improved(record):
            self.weights = snapshot(trainer.network)

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._swap.take_back(trainer.network)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.restore and self.weights:
            self._swap.put(trainer.network, self.weights)

    @property
    def holds_weights(self) -> bool:  # type: ignore[override]
        return self._swap.trained is not None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weights": self.weights, "trained": self._swap.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weights = dict(state["weights"])
        self._swap.load(state["trained"])
