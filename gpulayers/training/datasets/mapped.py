"""Datasets as ``.npy`` files, which are mapped into memory and need not fit into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers.errors import DataError, ParameterError
from gpulayers.training.datasets.arrays import Dataset, Split
from gpulayers.training.datasets.readers import list_folder, reason

__all__ = ["NPY_FILES", "read_npy", "save_data"]

NPY_FILES = ("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy")
_CLASSES = "classes.txt"
_BLOCK = 64 << 20  # bytes written at a time


def read_npy(
    folder: Path, in_memory: bool | None = None
) -> tuple[Split, Split, tuple[str, ...] | None, Split | None]:
    """Read x_train.npy, y_train.npy, x_test.npy, y_test.npy from a folder.

    There may be x_validation.npy and y_validation.npy too, and classes.txt with a name in each
    line. Images are (n, rows, cols) or (n, rows, cols, channels), uint8 or floating.

    Parameters
    ----------
    folder : path
    in_memory : bool, optional
        Whether to read the images whole; by default they stay in their files.

    Returns
    -------
    train, test, classes or None, validation or None

    Raises
    ------
    DataError
        If a file is missing, cut, no array, holds objects, or as `Split` does.
    """
    present = list_folder(folder)
    missing = [name for name in NPY_FILES if name not in present]
    if missing:
        raise DataError(f"{folder}: expected {', '.join(NPY_FILES)}; missing {', '.join(missing)}")
    parts = ["train", "test"]
    if present & {"x_validation.npy", "y_validation.npy"}:
        parts.append("validation")
    splits: list[Split] = []
    for part in parts:
        images = _load(folder / f"x_{part}.npy", not in_memory)
        labels = _load(folder / f"y_{part}.npy", False)
        if images.ndim == 3:
            images = images[..., None]
        splits.append(Split(images, labels, f"{folder} (x_{part}.npy, y_{part}.npy)"))
    classes = _read_classes(folder / _CLASSES) if _CLASSES in present else None
    return splits[0], splits[1], classes, splits[2] if len(splits) > 2 else None


def _load(path: Path, mapped: bool) -> np.ndarray:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic != b"\x93NUMPY":
            raise DataError(f"{path}: expected an array in .npy format, got {magic.hex(' ')!r}")
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise DataError(f"{path}: the array cannot be read: {error}") from error
    return array


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a class's name in each line, as UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip())


def save_data(data: Dataset, folder: str | os.PathLike[str]) -> Path:
    """Write a dataset as ``.npy`` files, from which `load_data` reads it without loading it whole.

    Sets larger than memory can be written: images that are not in memory (`LazyImages`) are read
    and written in parts. So a folder of pictures need be decoded but once.

    Parameters
    ----------
    data : Dataset
    folder : path
        Created if need be.

    Returns
    -------
    The folder.

    Raises
    ------
    DataError
        If the folder holds such files already, cannot be written, or an image cannot be read. No
        file with a final name is left incomplete.
    ParameterError
        If `data` is no dataset or `folder` no path.
    """
    if not isinstance(data, Dataset):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"save_data: data must be a Dataset, got {type(data).__name__}")
    if not isinstance(folder, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"save_data: expected a folder's path, got {folder!r}")
    target = Path(folder)
    parts = {"train": data.train, "test": data.test}
    if data.validation is not None:
        parts["validation"] = data.validation
    try:
        target.mkdir(parents=True, exist_ok=True)
        names = [f"{axis}_{part}.npy" for part in parts for axis in "xy"]
        there = sorted(list_folder(target) & {*names, _CLASSES})
        if there:
            raise DataError(f"{target}: holds {', '.join(there)} already; choose another folder")
        for part, split in parts.items():
            _write(target / f"x_{part}.npy", split.images)
            _write(target / f"y_{part}.npy", split.labels)
        text = "".join(f"{name}\n" for name in data.classes)
        (target / _CLASSES).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {reason(error)}") from error
    return target


def _write(path: Path, array: Any) -> None:
    """Write an array, or LazyImages, under another name first."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        mapped = np.lib.format.open_memmap(unfinished, "w+", array.dtype, array.shape)
        step = max(1, _BLOCK // max(1, array.nbytes // len(array)))
        for start in range(0, len(array), step):
            mapped[start : start + step] = array[start : start + step]
        mapped.flush()
        del mapped
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
