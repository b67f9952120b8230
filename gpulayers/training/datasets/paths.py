"""Reading a dataset of the user's from a folder or a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.cifar import (
    CIFAR10_FORMAT,
    CIFAR100_FORMAT,
    CifarFormat,
    read_cifar,
)
from gpulayers.training.datasets.folder import has_pictures, loose_pictures, read_pictures
from gpulayers.training.datasets.mapped import NPY_FILES, read_npy
from gpulayers.training.datasets.readers import (
    IDX_FILES,
    find_idx,
    first_names,
    is_folder,
    list_folder,
    read_idx,
    read_npz,
)
from gpulayers.training.datasets.registry import CIFAR10, CIFAR100

__all__ = ["Loaded", "load_path"]

_CIFAR_CLASSES = {CIFAR10_FORMAT: CIFAR10.classes, CIFAR100_FORMAT: CIFAR100.classes}
# What users have themselves goes first, then the files of the published sets.
_FORMATS = (
    "a folder with a subfolder of pictures for each class, an .npz with x_train, y_train, x_test "
    "and y_test, a folder with these as .npy, or the files of MNIST "
    f"({IDX_FILES[0]} and three more, plain or .gz) or CIFAR ({CIFAR10_FORMAT.archive} or what is "
    "in it)"
)


class Loaded(NamedTuple):
    """The splits, and the names of the classes if the format tells them."""

    train: Split
    test: Split
    classes: tuple[str, ...] | None = None
    validation: Split | None = None


def load_path(
    path: Path,
    image_size: tuple[int, int] | None = None,
    grayscale: bool = False,
    in_memory: bool | None = None,
) -> Loaded:
    """Read a dataset from a folder or file of the user's.

    The classes are None where only the labels tell how many there are (idx, arrays without names).

    Parameters
    ----------
    path : Path
    image_size, grayscale : as `read_pictures` takes them
    in_memory : bool, optional
        As `read_npy` and `read_pictures` take it.

    Raises
    ------
    DataError
        If the path does not exist, holds no known format, or is damaged.
    """
    found_folder = is_folder(path)
    if found_folder is None:
        raise DataError(f"{path}: no such file or folder")
    if found_folder:
        found = _load_folder(path, in_memory)
        if found is not None:
            return found
        if has_pictures(path):
            return Loaded(*read_pictures(path, image_size, grayscale, in_memory))
        if loose_pictures(path):
            raise DataError(
                f"{path}: the pictures lie in the folder itself; expected a subfolder for each "
                f"class, as in {path / 'cat' / '1.png'}"
            )
        raise DataError(f"{path}: expected {_FORMATS}; found {first_names(list_folder(path))}")
    if path.suffix == ".npz":
        return Loaded(*read_npz(path))
    if path.name.endswith((".tar.gz", ".tgz")):
        kind = CIFAR100_FORMAT if path.name.startswith("cifar-100") else CIFAR10_FORMAT
        return _cifar(path, kind)
    raise DataError(f"{path}: unknown format; expected {_FORMATS}")


def _load_folder(folder: Path, in_memory: bool | None) -> Loaded | None:
    """The dataset of the formats that are known by the names of their files."""
    present = list_folder(folder)
    files, missing = find_idx(folder)
    kinds = {
        kind: present & {*kind.files, kind.archive, kind.folder}
        for kind in (CIFAR10_FORMAT, CIFAR100_FORMAT)
    }
    found: dict[str, list[str]] = {
        "idx files": [path.name for path in files.values()],
        "npy files": sorted(present & set(NPY_FILES)),
        **{kind.title: sorted(names) for kind, names in kinds.items()},
    }
    several = [title for title, names in found.items() if names]
    if len(several) > 1:
        last = found[several[-1]]
        raise DataError(
            f"{folder}: holds both {several[0]} and {several[-1]} ({first_names(last)}); "
            "expected one dataset in a folder"
        )
    if files:
        if missing:
            raise DataError(
                f"{folder}: expected the four idx files of a dataset (plain or .gz), "
                f"missing {', '.join(missing)}"
            )
        return Loaded(*read_idx(files))
    if found["npy files"]:
        return Loaded(*read_npy(folder, in_memory))
    for kind, names in kinds.items():
        if names & set(kind.files):
            return _cifar(folder, kind)
        if names:
            return _cifar(folder / min(names, key=len), kind)
    return None


def _cifar(path: Path, kind: CifarFormat) -> Loaded:
    return Loaded(*read_cifar(path, kind=kind), _CIFAR_CLASSES[kind])
