"""Saving and loading: one ``.npz`` file with plain arrays and a JSON header, never a pickle.

The file holds the network's architecture, parameters and optimizer state and, when a `Trainer`
wrote it, all that is needed to go on as if nothing had happened: epoch, place in the epoch, random
number state, history. It is written under another name first and then moved into place, so an
interrupted save leaves the old file whole.
"""

from __future__ import annotations

import inspect
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
from gpulayers import backend, layers, models, modules
from gpulayers.errors import CheckpointError, GPULayersError, suggest
from gpulayers.initializers import OptimizerInitializer
from gpulayers.models import Composite, Pixels, Residual, Sequential
from gpulayers.modules import ModuleBase
from gpulayers.wrappers import WrapperBase, init_wrappers

__all__ = ["Checkpoint", "load", "load_checkpoint", "save", "write_atomically"]

FORMAT = "gpulayers checkpoint"
VERSION = 1
_HEADER = "header.json"
_ARRAY, _TUPLE = "$array", "$tuple"
_WRAPPED = "$wrapped"  # the class of a layer with wrappers around it


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    network : Sequential
    trainer : dict or None
        The `Trainer`'s state, if one wrote the file.
    info : dict
        What the caller of `save` wanted kept (plain values and arrays).
    """

    network: Sequential
    trainer: dict[str, Any] | None = None
    info: dict[str, Any] = field(default_factory=dict)


# --------------------------------------------------------------------------------------- saving


def save(
    path: str | os.PathLike[str],
    network: Sequential,
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
    network : Sequential
    trainer : dict, optional
        A `Trainer`'s state.
    info : dict, optional
        Anything plain to keep with it: numbers, strings, lists, dictionaries, arrays.

    Raises
    ------
    CheckpointError
        If something cannot be represented, or the file cannot be written.
    """
    path = Path(path)
    if not path.suffix:
        path = path.with_suffix(".npz")
    arrays: dict[str, Any] = {}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "gpulayers": gpulayers.__version__,
        "network": _describe(network, arrays, "network"),
        "trainer": _pack(trainer, arrays, "trainer"),
        "info": _pack(info or {}, arrays, "info"),
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


def _describe(layer: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """The JSON description of a layer or group of layers; its arrays go into `arrays`."""
    if isinstance(layer, Composite):
        parts = {
            key: _describe(part, arrays, f"{where}.{key}") for key, part in layer.components.items()
        }
        spec = {"class": type(layer).__name__, "name": layer.name, "components": parts}
        if isinstance(layer, Sequential):
            spec["pixels"] = {"mean": layer.pixels.mean, "std": layer.pixels.std}
        return spec
    if isinstance(layer, WrapperBase):
        described = layer.hyperparameters["wrappers"]
        return {
            "class": _WRAPPED,
            "wrappers": described,
            "layer": _describe(layer._base_layer, arrays, where),
        }
    if isinstance(layer, ModuleBase):
        parts = zip(layer.component_ids, layer.components, strict=True)
        return {
            "class": type(layer).__name__,
            "arguments": _pack(layer.arguments, arrays, where),
            "components": {k: _describe(part, arrays, f"{where}.{k}") for k, part in parts},
        }
    hyperparameters = layer.hyperparameters
    hyperparameters.pop("optimizer", None)
    if not hasattr(layer.optimizer, "state_dict"):
        raise CheckpointError(
            f"cannot save {where}: its optimizer {type(layer.optimizer).__name__} has no "
            "state_dict(); the built-in ones have"
        )
    return {
        "class": type(layer).__name__,
        "trainable": layer.trainable,
        "parameters": _pack(layer.parameters, arrays, where),
        "hyperparameters": _pack(hyperparameters, arrays, where),
        "optimizer": _pack(layer.optimizer.state_dict(), arrays, f"{where}.optimizer"),
    }


def _pack(value: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """`value` as JSON can hold it; arrays move into `arrays`, named after their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), arrays, where)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"cannot save {where}: the key {key!r} is no string")
        return {key: _pack(v, arrays, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        packed = [_pack(v, arrays, f"{where}.{i}") for i, v in enumerate(value)]
        return {_TUPLE: packed} if isinstance(value, tuple) else packed
    try:
        array = backend.to_cpu(value)
    except GPULayersError:
        raise CheckpointError(
            f"cannot save {where}: {type(value).__name__} is neither a plain value nor an array"
        ) from None
    if array.dtype.kind not in "biufcV" or array.dtype.names:
        raise CheckpointError(f"cannot save {where}: arrays of dtype {array.dtype} are not kept")
    dtype = array.dtype.name
    if array.dtype.kind == "V":  # bfloat16: NumPy's file format does not know it
        array = array.view(np.uint16)
    arrays[where] = array
    return {_ARRAY: where, "dtype": dtype}


# -------------------------------------------------------------------------------------- loading


def load(
    path: str | os.PathLike[str], custom: Iterable[type] = (), device: str | None = None
) -> Sequential:
    """Return the network saved in `path`, with parameters and optimizer state.

    Parameters
    ----------
    path : path
    custom : classes of your own that the network contains
        Layers, or subclasses of Sequential or Residual with their constructors.
    device : "numpy", "cupy" or None
        Where the parameters go; None is the current backend.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, corrupted, of a newer version or of something else.
    """
    return load_checkpoint(path, custom, device).network


def load_checkpoint(
    path: str | os.PathLike[str], custom: Iterable[type] = (), device: str | None = None
) -> Checkpoint:
    """Return everything in the file, as `load` otherwise."""
    path = Path(path)
    header, arrays = _read(path)
    try:
        network = _rebuild(header["network"], arrays, {c.__name__: c for c in custom})
        trainer = _unpack(header["trainer"], arrays)
        info = _unpack(header["info"], arrays)
    except CheckpointError:
        raise
    except (GPULayersError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is a gpulayers checkpoint, but its contents do not fit together "
            f"({type(error).__name__}: {error}); it was damaged or edited. Use an older checkpoint."
        ) from error
    if not isinstance(network, Sequential):
        raise CheckpointError(f"{path}: expected a Sequential network, got {type(network)}")
    network.to(device or backend.current_backend())
    return Checkpoint(network, trainer, info)


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


def _rebuild(spec: dict[str, Any], arrays: dict[str, np.ndarray], custom: dict[str, type]) -> Any:
    """The layer or group of layers that `_describe` described."""
    name = spec["class"]
    if name == _WRAPPED:
        return init_wrappers(_rebuild(spec["layer"], arrays, custom), spec["wrappers"])
    kind = custom.get(name) or _known().get(name)
    if kind is None:
        raise CheckpointError(
            f"the checkpoint contains a layer {name!r} that gpulayers does not know"
            f"{suggest(name, _known())}; if it is your own class, load(path, custom=[{name}])"
        )
    make: Any = kind
    if issubclass(kind, Composite):
        parts = {k: _rebuild(part, arrays, custom) for k, part in spec["components"].items()}
        if not issubclass(kind, Sequential):
            return make(parts["body"], parts.get("shortcut"), name=spec["name"])
        network = make(parts.values(), name=spec["name"])
        network.pixels = Pixels(**spec["pixels"])
        return network
    if issubclass(kind, ModuleBase):
        module = make(**_unpack(spec["arguments"], arrays))
        for key, part in zip(module.component_ids, module.components, strict=True):
            described = spec["components"][key]
            _restore(getattr(part, "_base_layer", part), described.get("layer", described), arrays)
        return module
    values = _unpack(spec["hyperparameters"], arrays)
    accepted = inspect.signature(kind).parameters
    layer = make(**{k: v for k, v in values.items() if k in accepted})
    _restore(layer, spec, arrays)
    return layer


def _restore(layer: Any, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Give a layer the parameters, settings and optimizer state that `_describe` described."""
    values = _unpack(spec["hyperparameters"], arrays)
    layer.set_params({"parameters": _unpack(spec["parameters"], arrays), "hyperparameters": values})
    state = _unpack(spec["optimizer"], arrays)
    optimizer: Any = OptimizerInitializer({"hyperparameters": state["hyperparameters"]})()
    optimizer.load_state_dict(state)
    layer.optimizer = optimizer
    if not spec["trainable"]:
        layer.freeze()


def _known() -> dict[str, type]:
    """The layer classes a checkpoint may name: nothing else is ever constructed from a file."""
    bases = (layers.LayerBase, ModuleBase, Sequential, Residual)
    found = {}
    for module in (layers, models, modules):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, bases):
                found[name] = kind
    return found


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, arrays) for v in value]
    if isinstance(value, dict):
        if _ARRAY in value:
            array = arrays[value[_ARRAY]]
            if value["dtype"] == "bfloat16":
                array = array.view(_bfloat16())
            return array
        if _TUPLE in value:
            return tuple(_unpack(v, arrays) for v in value[_TUPLE])
        return {k: _unpack(v, arrays) for k, v in value.items()}
    return value


def _bfloat16() -> np.dtype:
    try:
        import ml_dtypes  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise CheckpointError(
            "the checkpoint holds bfloat16 arrays, which need ml_dtypes: pip install ml_dtypes"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def _neighbours(path: Path) -> str:
    """Name the checkpoints that lie where `path` was looked for."""
    found = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    return f"; {path.parent} holds {', '.join(found[:5])}" if found else ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
