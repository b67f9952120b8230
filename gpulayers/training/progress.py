"""What a training run shows while it runs: a bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

import sys
from typing import IO, Any, Protocol

from gpulayers.training.history import Epoch

__all__ = ["BarProgress", "LineProgress", "NoProgress", "Progress", "make_progress"]


class Progress(Protocol):
    """What the trainer reports to."""

    def start(self, epochs: int, steps: int, done: int) -> None:
        """A run of `epochs` with `steps` batches each begins after `done` batches in all."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        """`step` batches of `epoch` are done; means since the epoch began, examples/s."""

    def validating(self, epoch: int) -> None:
        """The epoch's batches are done, the test split is being run."""

    def epoch_done(self, record: Epoch) -> None:
        """An epoch is finished."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def stop(self) -> None:
        """The run is over, in whatever way."""


class NoProgress:
    """Shows nothing."""

    def start(self, epochs: int, steps: int, done: int) -> None: ...
    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None: ...
    def validating(self, epoch: int) -> None: ...
    def epoch_done(self, record: Epoch) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class LineProgress(NoProgress):
    """One line an epoch, for logs, notebooks and terminals without rich.

    Parameters
    ----------
    stream : text stream, optional
        Standard output if None.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream
        self.epochs = 0

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs

    def epoch_done(self, record: Epoch) -> None:
        self.message(_line(record, self.epochs))

    def message(self, text: str) -> None:
        print(text, file=self.stream or sys.stdout, flush=True)


class BarProgress:
    """A bar with loss, accuracy, examples/s and the time left, and a line for each epoch.

    Parameters
    ----------
    console : rich.console.Console
    """

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.console = console
        self.bar = RichProgress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=5,  # drawing takes a core's time from the training
            transient=True,
        )
        self.task: Any = None
        self.steps = self.epochs = 0

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.task = self.bar.add_task(
            "",
            total=epochs * steps,
            completed=done,
            epoch=min(done // steps + 1, epochs),
            epochs=epochs,
            figures="",
        )
        self.bar.start()

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        self.bar.update(
            self.task,
            completed=(epoch - 1) * self.steps + step,
            epoch=epoch,
            figures=f"loss {loss:.4f}  acc {accuracy:.2%}  {rate:,.0f} ex/s",
        )

    def validating(self, epoch: int) -> None:
        self.bar.update(self.task, completed=epoch * self.steps, figures="testing ...")

    def epoch_done(self, record: Epoch) -> None:
        self.message(_line(record, self.epochs))

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        self.bar.stop()


def make_progress(stream: IO[str] | None = None) -> Progress:
    """Return a bar where there is a terminal and rich, else one line an epoch.

    Parameters
    ----------
    stream : text stream, optional
        Standard output if None.
    """
    stream = stream or sys.stdout
    if getattr(stream, "isatty", lambda: False)():
        try:
            from rich.console import Console
        except ImportError:
            line = LineProgress(stream)
            line.message('no progress bar: rich is not installed (pip install "gpulayers[train]")')
            return line
        console = Console(file=stream)
        if console.is_terminal and not console.is_dumb_terminal:
            return BarProgress(console)
    return LineProgress(stream)


def _line(record: Epoch, epochs: int) -> str:
    width = len(str(epochs))
    return (
        f"epoch {record.epoch:>{width}}/{epochs}  "
        f"loss {record.train_loss:.4f}  acc {record.train_accuracy:.2%}  "
        f"test loss {record.val_loss:.4f}  test acc {record.val_accuracy:.2%}  "
        f"{record.examples_per_second:,.0f} ex/s  {record.seconds:.1f} s"
    )
