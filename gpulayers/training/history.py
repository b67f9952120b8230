"""What a training run measured: one record an epoch, one loss a step."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Epoch", "History"]


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    train_loss, train_accuracy : float
        Means over the epoch's examples, while the parameters were changing.
    val_loss, val_accuracy : float
        Over the whole validation split, or without one the test split, after the epoch.
    lr : float
        Learning rate of the last step.
    examples_per_second : float
        Training alone, without the validation.
    seconds : float
        Training and validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    examples_per_second: float
    seconds: float


@dataclass
class History:
    """The course of a training run.

    Attributes
    ----------
    epochs : list of Epoch
    step_losses : list of float
        The mean loss of each batch, in order.
    """

    epochs: list[Epoch] = field(default_factory=list[Epoch])
    step_losses: list[float] = field(default_factory=list[float])

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, i: int) -> Epoch:
        return self.epochs[i]

    @property
    def last(self) -> Epoch:
        """The last finished epoch (IndexError if there is none)."""
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        """The first epoch of the highest validation accuracy (ValueError if there is none)."""
        return max(self.epochs, key=lambda e: (e.val_accuracy, -e.epoch))

    @property
    def seconds(self) -> float:
        """Time spent in finished epochs."""
        return sum(e.seconds for e in self.epochs)

    def column(self, name: str) -> list[float]:
        """One figure over the epochs, e.g. ``history.column("val_accuracy")``."""
        return [getattr(e, name) for e in self.epochs]

    def to_csv(self) -> str:
        """The epochs as CSV with a header line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [f.name for f in fields(Epoch)]
        writer.writerow(names)
        for epoch in self.epochs:
            writer.writerow([getattr(epoch, name) for name in names])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {"epochs": [asdict(e) for e in self.epochs], "step_losses": list(self.step_losses)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of `to_dict`."""
        epochs = [Epoch(**e) for e in values["epochs"]]
        return cls(epochs, [float(v) for v in values["step_losses"]])
