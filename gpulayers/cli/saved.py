"""A saved network with what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulayers.errors import DataError, ParameterError
from gpulayers.training import Sequential, load_checkpoint, load_data
from gpulayers.training.resume import checkpoint_path

__all__ = ["Saved", "open_saved"]


@dataclass(frozen=True)
class Saved:
    """A network and its purpose.

    Attributes
    ----------
    path : Path
        Of the checkpoint.
    network : Sequential
    options : dict
        Of the ``gpulayers train`` that made it; empty if something else did.
    classes : tuple of str
        Empty if unknown.
    input_shape : (rows, cols, channels) or None if unknown
    """

    path: Path
    network: Sequential
    options: dict[str, Any]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] | None


def open_saved(path: str, device: str | None = None) -> Saved:
    """Load a run's folder or a checkpoint, onto the current backend.

    What it was trained for stands in the checkpoint; in those of version 0.1 only the data set's
    name does, which is then looked at.

    Raises
    ------
    CheckpointError
        If it cannot be read, or holds no Sequential network.
    """
    where = checkpoint_path(Path(path))
    checkpoint = load_checkpoint(where, device=device, kind=Sequential)
    options = checkpoint.info.get("options", {})
    purpose = checkpoint.info.get("purpose")
    if purpose is not None:
        classes, shape = tuple(purpose["classes"]), tuple(purpose["input_shape"])
    else:
        classes, shape = _purpose_by_data(options)
    return Saved(where, checkpoint.network, options, classes, shape)


def _purpose_by_data(options: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    if options.get("data") is None:
        return (), None
    try:
        data = load_data(options["data"], options.get("data_dir"), download=False)
    except (DataError, ParameterError):  # no longer here
        return (), None
    return tuple(data.classes), data.input_shape
