"""A run's folder: when a checkpoint is due, which older ones stay, from which a run goes on."""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from gpulayers.errors import CheckpointError
from gpulayers.training import settings
from gpulayers.training.atomic import PART
from gpulayers.training.checkpoint import read_checkpoint
from gpulayers.training.safetensors import UnreadableError

__all__ = [
    "BEST_FILE",
    "LOG_FILE",
    "MODEL_FILE",
    "OLDER",
    "Keeper",
    "checkpoint_path",
    "position_name",
]

MODEL_FILE, BEST_FILE, LOG_FILE = "model.safetensors", "best.safetensors", "log.csv"
OLDER = "checkpoints"  # folder of the checkpoints before the last one
_OLD_FORMAT = "model.npz"  # of gpulayers 0.1


class Keeper:
    """Writes a run's checkpoints: the last one is always ``model.safetensors``, the ones before it
    lie in ``checkpoints/``, named after how far they had come.

    The last checkpoint is moved there by its name alone (a link) before the new one takes its
    place, so there is a whole checkpoint under the first name at every moment.

    Parameters
    ----------
    keep_last : int
        How many checkpoints stay, the last one included.
    batches, seconds : int, float or None
        How often a checkpoint is due inside an epoch.

    Raises
    ------
    ParameterError
        If a value is out of range.
    """

    def __init__(self, keep_last: int, batches: int | None, seconds: float | None) -> None:
        self.keep_last = settings.count("keep_last", keep_last)
        self.batches = settings.optional_count("checkpoint_batches", batches)
        self.seconds = settings.seconds("checkpoint_seconds", seconds)
        self.folder: Path | None = None
        self.started_from: Path | None = None  # the file that a resumed run was read from
        self._position: str | None = None  # of the file under the first name, if it is this run's
        self._since = time.monotonic()
        self._count = 0

    def begin(self, folder: Path, position: str | None) -> None:
        """A run writes to `folder` from now on, and has come as far as `position` (None: it is a
        new one). Checkpoints of another run there, or from behind this position, are removed."""
        if folder == self.folder:
            return
        self.folder, self._position = folder, None
        self._since, self._count = time.monotonic(), 0
        for part in folder.glob(f".*{PART}") if folder.is_dir() else ():
            if part.name.startswith((f".{MODEL_FILE}.", f".{BEST_FILE}.", f".{LOG_FILE}.")):
                part.unlink(missing_ok=True)  # of a process that was killed
        here = self.started_from
        if (
            position is not None
            and here is not None
            and here.resolve().is_relative_to(folder.resolve())
        ):
            if here.name == MODEL_FILE and here.parent.resolve() == folder.resolve():
                self._position = position
            obsolete = [path for path in _older(folder) if path.stem > position]
        else:
            obsolete = _older(folder)
        for path in obsolete:
            path.unlink(missing_ok=True)

    def due(self, batches: int = 1) -> bool:
        """Whether it is time for a checkpoint; called after every batch, or so many of them."""
        self._count += batches
        if self.batches is not None and self._count >= self.batches:
            return True
        return self.seconds is not None and time.monotonic() - self._since >= self.seconds

    @property
    def most(self) -> float:
        """Batches until a checkpoint is due."""
        return math.inf if self.batches is None else max(1, self.batches - self._count)

    def keep(self, position: str, write: Callable[[Path], Path]) -> Path:
        """Let `write` make the last checkpoint, and keep the one it replaces."""
        if self.folder is None:
            raise CheckpointError("Keeper: no folder to write to")
        path = self.folder / MODEL_FILE
        if self._position not in (None, position) and self.keep_last > 1 and path.exists():
            _link(path, self.folder / OLDER / f"{self._position}{path.suffix}")
        written = write(path)
        self._position = position
        older = _older(self.folder)
        for obsolete in older[: max(0, len(older) - (self.keep_last - 1))]:
            obsolete.unlink(missing_ok=True)
        self._since, self._count = time.monotonic(), 0
        return written


def position_name(epoch: int, step: int) -> str:
    """How far a run has come, as a name that sorts: finished epochs, batches of the next one."""
    return f"epoch-{epoch:05d}-batch-{step:08d}"


def _older(folder: Path) -> list[Path]:
    """The checkpoints before the last one, the oldest first."""
    return sorted((folder / OLDER).glob("epoch-*-batch-*.safetensors"))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where there are no links, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}{PART}")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)


def checkpoint_path(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the last one in a run's folder that is whole.

    Warns
    -----
    RuntimeWarning
        If a later one in the folder is damaged.

    Raises
    ------
    CheckpointError
        If the folder holds none that can be read.
    """
    try:
        is_dir = path.is_dir()
    except OSError:  # reading it will say why
        is_dir = False
    if not is_dir:
        return path
    candidates = [path / MODEL_FILE, *reversed(_older(path)), path / _OLD_FORMAT]
    found = [candidate for candidate in candidates if candidate.exists()]
    if not found:
        raise CheckpointError(
            f"the folder {path} holds no checkpoint: {path / MODEL_FILE} does not exist. If its "
            "run was stopped before the first one, start it anew"
        )
    first: UnreadableError | None = None
    for candidate in found:
        try:
            read_checkpoint(candidate)
        except UnreadableError as error:
            first = first or error
            continue
        gone = candidate.parent.name == OLDER and candidate is found[0]
        if first is not None or gone:
            reason = str(first or f"{path / MODEL_FILE} does not exist.")
            reason = reason.partition(" Use an older")[0]
            warnings.warn(
                f"{reason} The checkpoint before it is used: {candidate}",
                RuntimeWarning,
                stacklevel=2,
            )
        return candidate
    others = f" Neither can {', '.join(p.name for p in found[1:])}." if len(found) > 1 else ""
    raise CheckpointError(f"{first}{others}") from first
