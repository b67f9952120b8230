"""A saved network with what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulayers.errors import DataError, ParameterError
from gpulayers.training import Dataset, Sequential, load_checkpoint, load_data
from gpulayers.training.resume import checkpoint_path

__all__ = ["Saved", "data_of", "open_saved"]


def data_of(settings: dict[str, Any], download: bool = True) -> Dataset:
    """Load the data set that a run's settings name.

    Raises
    ------
    ParameterError, DataError
        As `load_data`.
    """
    return load_data(
        settings["data"],
        settings.get("data_dir"),
        download,
        settings.get("image_size"),
        settings.get("grayscale", False),
    )


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
        data = data_of(options, download=False)
    except (DataError, ParameterError):  # no longer here
        return (), None
    return tuple(data.classes), data.input_shape
