"""Saving and loading: one ``.npz`` file with plain arrays and a JSON header, never a pickle.

The file holds the network's architecture, parameters and optimizer state, the default generator's
state and, when a `Trainer` wrote it, all that is needed to go on as if nothing had happened: epoch,
place in the epoch, random number state, history. It is written under another name first and then
moved into place, so an interrupted save leaves the old file whole.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

import gpulayers
from gpulayers import backend, random
from gpulayers.errors import CheckpointError, GPULayersError
from gpulayers.models import Model, Sequential
from gpulayers.training.description import describe, pack, rebuild, unpack

__all__ = ["Checkpoint", "load", "load_checkpoint", "save", "write_atomically"]

FORMAT = "gpulayers checkpoint"
VERSION = 1
_HEADER = "header.json"


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    network : Sequential, or one of the models with a `fit` of their own
    trainer : dict or None
        The `Trainer`'s state, if one wrote the file.
    info : dict
        What the caller of `save` wanted kept (plain values and arrays).
    random : dict or None
        The state of the default generator when the file was written. After
        ``random.set_state(checkpoint.random)`` a `fit` of BernoulliVAE, WGAN_GP or Word2Vec goes on
        as if it had not been interrupted. None in files written before gpulayers kept it.
    """

    network: Any
    trainer: dict[str, Any] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] | None = None


# --------------------------------------------------------------------------------------- saving


def save(
    path: str | os.PathLike[str],
    network: Sequential | Model,
    *,
    trainer: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> Path:
    """Write `network` to `path`, atomically; return the path.

    Parameters
    ----------
    path : path
        ``.npz`` is appended if it has no ending. An existing file is replaced only when the new one
        is complete and on the disk.
    network : Sequential, BernoulliVAE, WGAN_GP or Word2Vec
    trainer : dict, optional
        A `Trainer`'s state.
    info : dict, optional
        Anything plain to keep with it: numbers, strings, lists, dictionaries, arrays.

    Raises
    ------
    CheckpointError
        If something cannot be represented, or the file cannot be written.
    """
    if not isinstance(network, (Sequential, Model)):
        raise CheckpointError(
            "save(path, network): expected a Sequential network, or a BernoulliVAE, WGAN_GP or "
            f"Word2Vec, got {type(network).__name__}"
        )
    path = Path(path)
    if not path.suffix:
        path = path.with_suffix(".npz")
    arrays: dict[str, Any] = {}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "gpulayers": gpulayers.__version__,
        "network": describe(network, arrays, "network"),
        "trainer": pack(trainer, arrays, "trainer"),
        "info": pack(info or {}, arrays, "info"),
        "random": random.get_state(),
    }
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    try:
        # only plain dtypes are in it, so nothing is ever pickled
        write_atomically(path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {_reason(error)}") from error
    return path


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file beside `path`, force it to the disk, then move it into place.

    Parameters
    ----------
    path : Path
        Its folder is created if need be.
    content : bytes, or a function that writes into the open file

    Raises
    ------
    OSError
        If that is not possible; an existing file at `path` is then still whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the new name itself durable (not possible on Windows)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -------------------------------------------------------------------------------------- loading


def load(
    path: str | os.PathLike[str],
    custom: Iterable[type] = (),
    device: str | None = None,
    kind: type | None = None,
) -> Any:
    """Return the network saved in `path`, with parameters and optimizer state.

    Parameters
    ----------
    path : path
    custom : classes of your own that the network contains
        Layers, or subclasses of Sequential, Residual or a model, with their constructors.
    device : "numpy", "cupy" or None
        Where the parameters go; None is the current backend.
    kind : class, optional
        What is expected in the file, such as ``Sequential`` or ``BernoulliVAE``.

    Returns
    -------
    Sequential, BernoulliVAE, WGAN_GP or Word2Vec
        Random numbers are left alone; `load_checkpoint` returns the saved generator's state too.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, corrupted, of a newer version or of something else.
    """
    return load_checkpoint(path, custom, device, kind).network


def load_checkpoint(
    path: str | os.PathLike[str],
    custom: Iterable[type] = (),
    device: str | None = None,
    kind: type | None = None,
) -> Checkpoint:
    """Return everything in the file, as `load` otherwise."""
    path = Path(path)
    header, arrays = _read(path)
    before = random.get_state()  # an Embedding draws its table as soon as it is made
    try:
        network = rebuild(header["network"], arrays, {c.__name__: c for c in custom})
        trainer = unpack(header["trainer"], arrays)
        info = unpack(header["info"], arrays)
        state = header.get("random")
        if state is not None:
            random.Generator().state = state  # checks it
    except CheckpointError:
        raise
    except (GPULayersError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is a gpulayers checkpoint, but its contents do not fit together "
            f"({type(error).__name__}: {error}); it was damaged or edited. Use an older checkpoint."
        ) from error
    finally:
        random.set_state(before)
    if not isinstance(network, (Sequential, Model) if kind is None else kind):
        expected = "a network" if kind is None else f"a {kind.__name__}"
        raise CheckpointError(f"{path} holds a {type(network).__name__}, expected {expected}")
    network.to(device or backend.current_backend())
    return Checkpoint(network, trainer, info, state)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a checkpoint file; everything is read and checked (zip has CRCs)."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory, expected a checkpoint file (.npz)")
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as raw:  # np.load leaves a broken file it opened itself open
            file = np.load(raw, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise CheckpointError(f"{path} is no gpulayers checkpoint: it holds one bare array")
            if _HEADER not in file.files:
                raise CheckpointError(
                    f"{path} is no gpulayers checkpoint: an .npz file without a gpulayers header "
                    f"(it holds {', '.join(file.files[:5]) or 'nothing'})"
                )
            for name in file.files:
                arrays[name] = file[name]
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint {path} does not exist{_neighbours(path)}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        size = path.stat().st_size
        with path.open("rb") as raw:
            is_zip = raw.read(2) == b"PK"
        if is_zip:
            raise CheckpointError(
                f"the checkpoint {path} ({size} bytes) is truncated or corrupted "
                f"({error}). Use an older checkpoint, or copy the file again."
            ) from error
        raise CheckpointError(
            f"{path} ({size} bytes) is no gpulayers checkpoint: expected an .npz file written by "
            "gpulayers.training.save"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {_reason(error)}") from error
    try:
        header = json.loads(arrays.pop(_HEADER).tobytes())
        kind, version = header["format"], header["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the header of the checkpoint {path} is corrupted") from error
    if kind != FORMAT:
        raise CheckpointError(f"{path} is no gpulayers checkpoint, its header says {kind!r}")
    if version != VERSION:
        raise CheckpointError(
            f"the checkpoint {path} has format version {version!r}, this gpulayers "
            f"({gpulayers.__version__}) reads version {VERSION}; it was written by gpulayers "
            f"{header.get('gpulayers')}: install that version"
        )
    return header, arrays


def _neighbours(path: Path) -> str:
    """Name the checkpoints that lie where `path` was looked for."""
    found = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    return f"; {path.parent} holds {', '.join(found[:5])}" if found else ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
