"""Saving and loading: one safetensors file of arrays with a JSON description, never a pickle.

The file holds the network's architecture, parameters and optimizer state, the default generator's
state and, when a `Trainer` wrote it, all that is needed to go on as if nothing had happened: epoch,
place in the epoch, random number state, history. It is written under another name first and then
moved into place, so an interrupted save leaves the old file whole, and it carries a checksum, so a
damaged file is never taken for a good one. Any program that reads safetensors files finds the
parameters in it, as ``network.0.W`` and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gpulayers
from gpulayers import backend, random
from gpulayers._folders import is_folder
from gpulayers.errors import CheckpointError, GPULayersError, ParameterError
from gpulayers.models import Model, Sequential
from gpulayers.training.atomic import write_atomically
from gpulayers.training.description import describe, pack, rebuild, unpack
from gpulayers.training.safetensors import UnreadableError, read_file, write_safetensors
from gpulayers.training.version1 import looks_like_npz, read_npz

__all__ = [
    "ENDING",
    "Checkpoint",
    "load",
    "load_checkpoint",
    "read_checkpoint",
    "save",
    "write_atomically",
]

FORMAT = "gpulayers checkpoint"
VERSION = 2
ENDING = ".safetensors"
_ENTRY = "gpulayers"  # of the file's metadata: the JSON of everything that is no array


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
    info: dict[str, Any] = field(default_factory=dict[str, Any])
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
        ``.safetensors`` is appended if it has no ending. An existing file is replaced only when
        the new one is complete and on the disk.
    network : Sequential, BernoulliVAE, WGAN_GP or Word2Vec
    trainer : dict, optional
        A `Trainer`'s state.
    info : dict, optional
        Anything plain to keep with it: numbers, strings, lists, dictionaries, arrays.

    Raises
    ------
    CheckpointError
        If something cannot be represented, the file cannot be written, or its name ends in
        ``.npz`` (the format of version 0.1, which is still read).
    """
    if not isinstance(network, (Sequential, Model)):
        raise CheckpointError(
            "save(path, network): expected a Sequential network, or a BernoulliVAE, WGAN_GP or "
            f"Word2Vec, got {type(network).__name__}"
        )
    if not isinstance(path, (str, os.PathLike)) or not Path(path).name:
        raise CheckpointError(f"save: expected the name of a file, got {path!r}")
    path = _with_ending(Path(path))
    if path.suffix == ".npz":
        raise CheckpointError(
            f"save: checkpoints are safetensors files now, name it {path.with_suffix(ENDING)} "
            "(.npz files of gpulayers 0.1 are still read)"
        )
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
    return write_safetensors(path, arrays, {_ENTRY: json.dumps(header, separators=(",", ":"))})


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
        As it was given to `save`: where there is nothing called ``net``, ``net.safetensors`` is
        read. A file or a folder of just that name goes before it.
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
        If the file is missing, truncated, corrupted, of a newer version or of something else, or
        `path` no path.
    ParameterError
        If `custom` holds something else than classes.
    """
    return load_checkpoint(path, custom, device, kind).network


def load_checkpoint(
    path: str | os.PathLike[str],
    custom: Iterable[type] = (),
    device: str | None = None,
    kind: type | None = None,
) -> Checkpoint:
    """Return everything in the file; arguments and errors as `load`."""
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CheckpointError(f"load: expected the path of a file, got {path!r}")
    path = _found(Path(path))
    try:
        classes = {c.__name__: c for c in custom}
    except (TypeError, AttributeError):
        raise ParameterError(f"load: custom must be a list of classes, got {custom!r}") from None
    header, arrays = read_checkpoint(path)
    before = random.get_state()  # an Embedding draws its table as soon as it is made
    try:
        network = rebuild(header["network"], arrays, classes)
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


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a checkpoint file; everything is read, and its checksum compared.
    The file is looked for as by `load`.

    Raises
    ------
    UnreadableError (a CheckpointError)
        If the file is missing, truncated, corrupted or of something else.
    CheckpointError
        If it is of another format version.
    """
    path = _found(path)
    try:
        is_dir = is_folder(path)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
    if is_dir is None:
        raise UnreadableError(f"the checkpoint {path} does not exist{_neighbours(path)}")
    if is_dir:
        beside = _with_ending(path)
        hint = f"; {beside} beside it is a file" if beside != path and beside.is_file() else ""
        raise UnreadableError(f"{path} is a directory, expected a checkpoint file ({ENDING}){hint}")
    if looks_like_npz(path):
        header, arrays = read_npz(path)
    else:
        header, arrays = _read(path)
    try:
        kind, version = header["format"], header["version"]
    except (KeyError, TypeError) as error:
        raise UnreadableError(f"the header of the checkpoint {path} is corrupted") from error
    if kind != FORMAT:
        raise UnreadableError(f"{path} is no gpulayers checkpoint, its header says {kind!r}")
    if version not in (1, VERSION):
        raise CheckpointError(
            f"the checkpoint {path} has format version {version!r}, this gpulayers "
            f"({gpulayers.__version__}) reads versions 1 and {VERSION}; it was written by "
            f"gpulayers {header.get('gpulayers')}: install that version"
        )
    return header, arrays


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        arrays, metadata, summed = read_file(path)
    except UnreadableError as error:
        text = str(error)
        if "no safetensors file" in text:
            text = (
                f"{path} ({path.stat().st_size} bytes) is no gpulayers checkpoint: expected a file "
                "written by gpulayers.training.save"
            )
        raise UnreadableError(text.replace("an older one", "an older checkpoint")) from error
    if _ENTRY not in metadata:
        raise UnreadableError(
            f"{path} is no gpulayers checkpoint: a safetensors file of arrays alone "
            f"({', '.join(list(arrays)[:5]) or 'none'}); gpulayers.training.read_safetensors "
            "returns them"
        )
    if not summed:  # the place where it stands may be what is damaged
        raise UnreadableError(f"the checkpoint {path} has no checksum; use an older checkpoint")
    try:
        header = json.loads(metadata[_ENTRY])
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the header of the checkpoint {path} is corrupted") from error
    return header, arrays


def _with_ending(path: Path) -> Path:
    """The name under which `save` writes."""
    return path if path.suffix else path.with_suffix(ENDING)


def _found(path: Path) -> Path:
    """What `path` names; where there is nothing of that name, what `save` wrote for it."""
    try:
        named = _with_ending(path) if path.name else path
        return named if is_folder(path) is None and is_folder(named) is False else path
    except OSError:  # reading it will say why
        return path


def _neighbours(path: Path) -> str:
    """Name the checkpoints that lie where `path` was looked for."""
    if not path.parent.is_dir():
        return ""
    found = sorted(p.name for p in path.parent.iterdir() if p.suffix in (ENDING, ".npz"))
    where = "this folder" if path.parent == Path() else path.parent
    return f"; {where} holds {', '.join(found[:5])}" if found else ""
