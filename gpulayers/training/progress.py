"""What a training run shows while it runs: a bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

from typing import IO, Any, Protocol

from gpulayers._progress import Bar, Lines, in_notebook, make_display
from gpulayers.errors import ParameterError, suggest
from gpulayers.training.curve import CurveProgress
from gpulayers.training.history import Epoch, History

__all__ = [
    "BarProgress",
    "LineProgress",
    "NoProgress",
    "Progress",
    "checked_progress",
    "choose_progress",
    "make_progress",
]


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
        self.lines = Lines(stream)
        self.epochs = 0

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs

    def epoch_done(self, record: Epoch) -> None:
        self.message(_line(record, self.epochs))

    def message(self, text: str) -> None:
        self.lines.message(text)


class BarProgress:
    """A bar with loss, accuracy, examples/s and the time left, and a line for each epoch.

    Parameters
    ----------
    bar : Bar
    """

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.steps = self.epochs = 0

    def _label(self, epoch: int) -> str:
        return f"epoch {epoch}/{self.epochs}"

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.bar.start(epochs * steps, done, self._label(min(done // steps + 1, epochs)))

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        figures = f"loss {loss:.4f}  acc {accuracy:.2%}  {rate:,.0f} ex/s"
        self.bar.show((epoch - 1) * self.steps + step, self._label(epoch), figures)

    def validating(self, epoch: int) -> None:
        self.bar.show(epoch * self.steps, self._label(epoch), "testing ...")

    def epoch_done(self, record: Epoch) -> None:
        self.message(_line(record, self.epochs))

    def message(self, text: str) -> None:
        self.bar.message(text)

    def stop(self) -> None:
        self.bar.stop()


def make_progress(stream: IO[str] | None = None) -> Progress:
    """Return a bar where there is rich and a terminal or notebook, else one line an epoch.

    Parameters
    ----------
    stream : text stream, optional
        Standard output if None.
    """
    display = make_display(stream)
    return BarProgress(display) if isinstance(display, Bar) else LineProgress(stream)


def checked_progress(progress: Any) -> Any:
    """Return a `Trainer`'s argument; ParameterError if it is no bool, "curve" or display."""
    methods = ("start", "step", "validating", "epoch_done", "message", "stop")
    known = isinstance(progress, bool) or progress == "curve"
    display = all(callable(getattr(progress, method, None)) for method in methods)
    if not known and (isinstance(progress, type) or not display):
        raise ParameterError(
            f"Trainer: progress must be True, False, 'curve' or a display, got {progress!r}"
            + (suggest(progress, ("curve",)) if isinstance(progress, str) else "")
        )
    return progress


def choose_progress(progress: bool | str | Progress, history: History) -> Progress:
    """Return the display that a `Trainer`'s argument means.

    Parameters
    ----------
    progress : True, False, "curve" or Progress
        "curve" is `CurveProgress` in a notebook, and elsewhere what True is.
    history : History
        Of the run, which may have epochs already.

    Raises
    ------
    ParameterError
        If it is something else.
    """
    progress = checked_progress(progress)
    if isinstance(progress, str):
        return CurveProgress(history) if in_notebook() else make_progress()
    if progress is True:
        return make_progress()
    return progress or NoProgress()


def _line(record: Epoch, epochs: int) -> str:
    width = len(str(epochs))
    return (
        f"epoch {record.epoch:>{width}}/{epochs}  "
        f"loss {record.train_loss:.4f}  acc {record.train_accuracy:.2%}  "
        f"test loss {record.val_loss:.4f}  test acc {record.val_accuracy:.2%}  "
        f"{record.examples_per_second:,.0f} ex/s  {record.seconds:.1f} s"
    )
