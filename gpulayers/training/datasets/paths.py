"""Reading a dataset of the user's from a folder or a file."""

from __future__ import annotations

from pathlib import Path

from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.readers import (
    CIFAR10_ARCHIVE,
    CIFAR10_FILES,
    IDX_FILES,
    find_idx,
    first_names,
    list_folder,
    read_cifar10,
    read_idx,
    read_npz,
    reason,
)
from gpulayers.training.datasets.registry import CIFAR10

# The splits, and the names of the classes if the format tells them.
Loaded = tuple[Split, Split, tuple[str, ...] | None]


def load_path(path: Path) -> Loaded:
    """Read a dataset from a folder or file of the user's.

    The classes are None where only the labels tell how many there are (idx, npz without names).

    Raises
    ------
    DataError
        If the path does not exist, holds no known format, or is damaged.
    """
    try:
        is_dir, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    if not exists:
        raise DataError(f"{path}: no such file or folder")
    formats = (
        f"a folder with the idx files {', '.join(IDX_FILES)} (plain or .gz), a folder with "
        f"{', '.join(CIFAR10_FILES)}, the archive {CIFAR10_ARCHIVE}, or an .npz with x_train, "
        "y_train, x_test and y_test"
    )
    if not is_dir:
        if path.suffix == ".npz":
            return read_npz(path)
        if path.name.endswith((".tar.gz", ".tgz")):
            return *read_cifar10(path), CIFAR10.classes
        raise DataError(f"{path}: unknown format; expected {formats}")
    return _load_folder(path, formats)


def _load_folder(folder: Path, formats: str) -> Loaded:
    present = list_folder(folder)
    files, missing = find_idx(folder)
    cifar = present & {*CIFAR10_FILES, CIFAR10_ARCHIVE, "cifar-10-batches-bin"}
    if files and cifar:
        raise DataError(
            f"{folder}: holds both idx files and CIFAR-10 ({first_names(cifar)}); "
            "expected one dataset in a folder"
        )
    if files:
        if missing:
            raise DataError(
                f"{folder}: expected the four idx files of a dataset (plain or .gz), "
                f"missing {', '.join(missing)}"
            )
        return *read_idx(files), None
    if present & set(CIFAR10_FILES):
        return *read_cifar10(folder), CIFAR10.classes
    if cifar:
        return *read_cifar10(folder / min(cifar, key=len)), CIFAR10.classes
    raise DataError(f"{folder}: expected {formats}; found {first_names(present)}")
