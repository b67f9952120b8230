"""Logs of a run: CSV, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulayers.training.atomic import write_atomically
from gpulayers.training.callbacks.base import Callback
from gpulayers.training.history import Epoch

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["CSVLogger", "JSONLogger", "TensorBoardLogger"]


class _FileLogger(Callback):
    """A file made anew from the history after each epoch: a run that was stopped and goes on
    leaves neither gaps nor lines that stand there twice.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._write(trainer)

    def on_epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_atomically(self.path, self._text(trainer).encode())

    def _text(self, trainer: Trainer) -> str:
        raise NotImplementedError


class CSVLogger(_FileLogger):
    """The figures of each epoch as comma-separated values with a header line."""

    def _text(self, trainer: Trainer) -> str:
        return trainer.history.to_csv()


class JSONLogger(_FileLogger):
    """The figures of each epoch as JSON, one line each; what is not finite becomes null."""

    def _text(self, trainer: Trainer) -> str:
        return "".join(
            json.dumps({k: v if math.isfinite(v) else None for k, v in asdict(epoch).items()})
            + "\n"
            for epoch in trainer.history.epochs
        )


class TensorBoardLogger(Callback):
    """Figures for TensorBoard: the loss of each batch, the figures of each epoch.

    Needs tensorboardX: ``pip install tensorboardX``. A run that goes on marks what an
    earlier, interrupted process wrote beyond its last checkpoint as obsolete.

    Parameters
    ----------
    folder : path
        Of the event files.

    Raises
    ------
    ImportError
        If tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._make = _summary_writer()
        self._writer: Any = None

    def on_fit_begin(self, trainer: Trainer) -> None:
        done = trainer.epoch * trainer.steps
        self._writer = self._make(
            str(self.folder),
            purge_step=done + 1 if done else None,
            filename_suffix=f".{time.time_ns()}",  # two of one second would have the same name
        )

    def on_epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        steps = trainer.steps
        first = (record.epoch - 1) * steps
        for i, loss in enumerate(trainer.history.step_losses[first:], first + 1):
            self._writer.add_scalar("batch/loss", loss, i)
        values = asdict(record)
        values.pop("epoch")
        for name, value in values.items():
            self._writer.add_scalar(f"epoch/{name}", value, record.epoch * steps)
        self._writer.flush()

    def on_close(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(
            "TensorBoardLogger needs tensorboardX, which is not installed: pip install tensorboardX"
        ) from None
    return SummaryWriter
