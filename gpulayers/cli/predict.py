"""``gpulayers predict``."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers._types import is_array
from gpulayers.cli.output import print_json, verbose
from gpulayers.cli.saved import Saved, open_saved
from gpulayers.errors import DataError, GPULayersError, ImageScaleWarning, ShapeError
from gpulayers.ops.softmax import softmax_forward
from gpulayers.training.datasets.folder import FolderImages
from gpulayers.training.settings import device_backend

__all__ = ["read_images", "run"]


def run(options: Namespace) -> int:
    """Print the most likely classes of each image; return the exit code."""
    with backend.use_backend(device_backend(options.device or "auto")):
        saved = open_saved(options.path)
        verbose(options, f"{saved.path}: {saved.network.name}, takes {saved.input_shape or '?'}")
        predictions: list[dict[str, Any]] = []
        for file in options.images:
            images = read_images(Path(file), saved.input_shape, options.invert, options.digit)
            for i, row in enumerate(_probabilities(saved, images, file, options.batch_size)):
                place = {"index": i} if len(images) > 1 else {}
                predictions.append({"file": file, **place, **_named(row, saved, options.top)})
    if options.json:
        print_json({"model": str(saved.path), "predictions": predictions})
        return 0
    several = len(predictions) > 1
    for one in predictions:
        if options.quiet:
            print(one["class"])
            continue
        where = one["file"] + (f"[{one['index']}]" if "index" in one else "")
        shown = "  ".join(f"{t['class']} {t['probability']:.2%}" for t in one["top"])
        print(f"{where}: {shown}" if several else shown)
    return 0


def _probabilities(saved: Saved, images: np.ndarray, file: str, batch_size: int) -> np.ndarray:
    saved.network.pixels.watch(file, images)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageScaleWarning)  # said, with the file's name
            logits = saved.network.predict(images, batch_size)
        if logits.ndim != 2:
            raise ShapeError(
                f"the network's output has shape {logits.shape}, expected (n, classes)"
            )
    except GPULayersError as error:
        raise type(error)(f"{file} ({images.shape}): {error}") from error
    return softmax_forward(backend.to_cpu(logits).astype(np.float64))


def _named(row: np.ndarray, saved: Saved, top: int) -> dict[str, Any]:
    best = np.argsort(-row, kind="stable")[:top].tolist()
    named: list[dict[str, Any]] = [
        {"class": saved.classes[k] if k < len(saved.classes) else str(k), "probability": row[k]}
        for k in best
    ]
    for entry in named:
        entry["probability"] = float(entry["probability"])
    return {**named[0], "top": named}


# --------------------------------------------------------------------------------------- images


def read_images(
    path: Path, shape: tuple[int, ...] | None, invert: bool = False, digit: bool = False
) -> np.ndarray:
    """Return the images in a file as (n, rows, cols, channels): uint8, or floats as they are.

    Parameters
    ----------
    path : Path
        ``.npy``, or anything that Pillow reads.
    shape : (rows, cols, channels) or None
        What the network takes. Image files are scaled to it, the middle cut out where the sides'
        ratio differs; arrays must have it already, channels of 1 may be missing.
    invert : bool
        Swap dark and bright.
    digit : bool
        Prepare each image as MNIST's were (`demo.drawing.centred`).

    Raises
    ------
    DataError
        If the file cannot be read, or the images do not fit.
    """
    if path.suffix.lower() == ".npy":
        images = _read_npy(path, shape)
    else:
        images = _read_picture(path, shape, digit)
    if invert:
        images = (255 if images.dtype == np.uint8 else 1.0) - images
    if not digit:
        return images
    from gpulayers.demo.drawing import centred

    if images.dtype != np.uint8 or images.shape[-1] != 1:
        raise DataError(
            f"{path}: --digit takes uint8 images of one channel, got {images.dtype} {images.shape}"
        )
    return np.stack([centred(image[..., 0])[..., None] for image in images])


def _read_npy(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        images = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no .npy file of numbers: {error}") from error
    if not is_array(images) or not (images.dtype == np.uint8 or backend.is_floating(images.dtype)):
        raise DataError(f"{path}: expected uint8 or floats, got {getattr(images, 'dtype', 'npz')}")
    if images.ndim == 2:
        images = images[None, ..., None]
    elif images.ndim == 3:
        many = shape is not None and shape[-1] == 1 and images.shape[1:] == shape[:2]
        images = images[..., None] if many else images[None]
    if images.ndim != 4 or not images.size:
        raise DataError(f"{path}: expected (n, rows, cols, channels), got shape {images.shape}")
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"{path}: the network was trained on images of shape {shape} (rows, cols, channels), "
            f"these are {images.shape[1:]}"
        )
    return images


def _read_picture(path: Path, shape: tuple[int, ...] | None, digit: bool) -> np.ndarray:
    """One picture, prepared as those of a folder that is trained on."""
    gray = digit or (shape is not None and shape[-1] == 1)
    size = None if shape is None or digit else (shape[0], shape[1])
    return FolderImages([path], size, gray).read(np.zeros(1, np.int64))
