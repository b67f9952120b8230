"""Checks of what a trainer is given."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers._dtypes import float_dtype
from gpulayers._types import is_array, is_mapping
from gpulayers.errors import BackendError, ParameterError, suggest
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.models.engines import ENGINES
from gpulayers.training.data import Dataset, Split
from gpulayers.training.mixed import MixedLoss
from gpulayers.training.samplers import Sampler, ShuffledSampler
from gpulayers.training.transforms import Compose

__all__ = [
    "count",
    "data_sum",
    "device_backend",
    "extras",
    "feeding",
    "folder",
    "losses",
    "max_norm",
    "optional_count",
    "parameter_dtype",
    "parts",
    "plan",
    "sampling",
    "seconds",
    "the_network",
]

DEVICES = {"cpu": "numpy", "gpu": "cupy", "auto": "auto", "numpy": "numpy", "cupy": "cupy"}


def device_backend(device: str | None) -> str:
    """Return the backend's name ("numpy", "cupy" or "auto") for "cpu", "gpu", "auto" or None.

    Raises
    ------
    ParameterError
        If the name is unknown.
    """
    if device is None:
        return backend.current_backend()
    name = DEVICES.get(str(device).lower())
    if name is None:
        raise ParameterError(
            f"unknown device {device!r}, expected cpu, gpu or auto{suggest(device, DEVICES)}"
        )
    return name


def max_norm(value: Any) -> float | None:
    """Return the limit of the gradients' norm, or None.

    Raises
    ------
    ParameterError
        If it is no finite number above 0.
    """
    if value is None:
        return None
    return float(_spec.real("Trainer", "clip_global_norm", value, 0.0, open_low=True))


def the_network(owner: str, network: Any) -> Sequential:
    """Return it; ParameterError unless it is a network."""
    if not isinstance(network, Sequential):
        raise ParameterError(
            f"{owner}: network must be a Sequential, got {network!r}; Sequential([layer, ...])"
        )
    return network


def parts(network: Any, data: Any, owner: str = "Trainer") -> tuple[Sequential, Dataset]:
    """Return both.

    Raises
    ------
    ParameterError
        If the one is no network, or the other no dataset.
    """
    network = the_network(owner, network)
    if not isinstance(data, Dataset):
        raise ParameterError(
            f"{owner}: data must be a Dataset, got a {type(data).__name__}; load_data(...) reads "
            "one, Dataset(name, Split(images, labels), Split(test_images, test_labels), classes) "
            "makes one of arrays"
        )
    return network, data


def sampling(sampler: Any, examples: int) -> Sampler:
    """Return the sampler, for None one that shuffles all examples.

    Raises
    ------
    ParameterError
        If it has no length or no order to give.
    """
    if sampler is None:
        return ShuffledSampler(examples)
    has_order = callable(getattr(sampler, "order", None)) and hasattr(sampler, "__len__")
    if isinstance(sampler, type) or not has_order:
        raise ParameterError(
            "Trainer: sampler must be a Sampler or None, such as BalancedSampler(data.train), got "
            f"{sampler!r}"
        )
    return sampler


def extras(info: Any) -> dict[str, Any]:
    """Return what is to be kept in the checkpoints; ParameterError unless a dict or None."""
    if info is not None and not is_mapping(info):
        raise ParameterError(f"Trainer: info must be a dict or None, got {info!r}")
    return dict(info or {})


def feeding(threads: Any, share: Any) -> tuple[int | None, float]:
    """Return the arguments of a `Feed`; ParameterError if one is out of range."""
    if threads is not None:
        threads = _spec.integer("Trainer", "threads", threads, 0)
    return threads, _spec.real("Trainer", "device_share", share, 0.0, 1.0)


def folder(out: Any, what: str = "out", kind: str = "a folder's path") -> Path | None:
    """Return the folder that is written to, or read from; None for none.

    Raises
    ------
    ParameterError
        If it is no path, or an empty one.
    """
    if out is None:
        return None
    try:
        path = Path(out)
    except TypeError:
        path = None
    if path is None or out == "":  # an empty one would be the current folder
        raise ParameterError(f"Trainer: {what} must be {kind} or None, got {out!r}")
    return path


def parameter_dtype(dtype: Any, network: Sequential) -> np.dtype:
    """Return the parameters' dtype: as asked for, else as they are, else the default.

    Raises
    ------
    ParameterError
        If it is no floating dtype, or the parameters have another one already.
    """
    if dtype is None:
        return np.dtype(network.dtype)
    asked = float_dtype(dtype, "Trainer: dtype")
    if network.home is not None and network.dtype != asked:
        raise ParameterError(
            f"Trainer: dtype={asked.name} was asked for, but the network's parameters are "
            f"{network.dtype.name} already; build a new network"
        )
    return asked


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def count(name: str, value: Any) -> int:
    """Return `value` as an int; ParameterError unless it is a positive integer."""
    if not _is_whole(value) or value < 1:
        raise ParameterError(f"Trainer: {name} must be a positive integer, got {value!r}")
    return int(value)


def optional_count(name: str, value: Any) -> int | None:
    """As `count`, or None."""
    return None if value is None else count(name, value)


def plan(value: Any, device: str) -> tuple[bool | None, str]:
    """Return whether to train by a plan (None: where that is of use), and by which engine.

    Raises
    ------
    ParameterError
        If it is neither a bool nor None nor the name of an engine.
    BackendError
        If the engine needs a GPU, and `device` is none.
    """
    if value is None or isinstance(value, bool):
        return value, "auto"
    if value not in ENGINES:
        raise ParameterError(
            f"Trainer: compile must be True, False, None or one of {', '.join(ENGINES)}, got "
            f"{value!r}{suggest(str(value), ENGINES)}"
        )
    if value != "auto" and backend.module(device) is np:
        raise BackendError(
            f'Trainer: compile="{value}" needs a GPU, but it would train on numpy; leave compile '
            "out for the plan of a CPU"
        )
    return (None if value == "auto" else True), value


def seconds(name: str, value: Any) -> float | None:
    """Return a time as a float, or None; ParameterError unless it is finite and above 0."""
    return None if value is None else float(_spec.real("Trainer", name, value, 0.0, open_low=True))


def losses(loss: Any, label_smoothing: float, transform: Compose | None) -> tuple[Any, Any]:
    """Return the losses of validation and of training.

    Raises
    ------
    ParameterError
        If smoothing is asked for beside a loss that is given, or out of range.
    """
    smoothed = SoftmaxCrossEntropy(label_smoothing=label_smoothing)  # checks it
    if loss is None:
        loss, training = SoftmaxCrossEntropy(), smoothed
    elif label_smoothing:
        raise ParameterError(
            "Trainer: label_smoothing is for the default loss; give your own loss the smoothing"
        )
    else:
        training = loss
    for method in ("forward", "backward", "loss"):
        if not callable(getattr(training, method, None)):
            raise ParameterError(
                "Trainer: the loss needs the methods forward(labels, outputs), backward() and "
                f"loss(labels, outputs), got {loss!r}"
            )
    if transform is not None and transform.mixes:
        training = MixedLoss(training)
    return loss, training


def data_sum(split: Split) -> int:
    """A checksum of the labels and of some images, so that another dataset is noticed."""
    total = zlib.crc32(np.ascontiguousarray(split.labels, "<i8").data)
    shape = (*split.images.shape, split.images.dtype.name)
    total = zlib.crc32(repr(shape).encode(), total)
    if is_array(split.images):
        few = split.images[:: max(1, len(split.images) // 32)]
        total = zlib.crc32(np.ascontiguousarray(few).reshape(-1).view(np.uint8).data, total)
    return total
