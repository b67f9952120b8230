"""Folders of pictures, a subfolder for each class, decoded by Pillow (extra `train`)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers.errors import DataError
from gpulayers.threads import thread_count
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.choice import divide
from gpulayers.training.datasets.lazy import LazyImages
from gpulayers.training.datasets.readers import first_names, list_folder, reason

__all__ = ["ENDINGS", "FolderImages", "has_pictures", "loose_pictures", "read_pictures"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY = 1 << 30  # bytes up to which the pictures are decoded once and kept
TEST_SHARE = 0.2  # held out where there is no test folder
_TEST_NAMES = ("test", "val", "valid", "validation")  # those after the first hold validation sets
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError)


def _pillow() -> tuple[ModuleType, ModuleType]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            "folders of pictures need the package pillow: pip install pillow"
        ) from error
    return Image, ImageOps


class FolderImages(LazyImages):
    """Pictures in files, decoded whenever they are asked for, by several threads.

    A picture is turned as its EXIF entry says, made grey or RGB (transparency is dropped, 16-bit
    greys keep their upper byte, an animation its first frame), scaled to cover `size` and cut
    to it around its centre.

    Parameters
    ----------
    files : sequence of paths
    size : (rows, cols), optional
        None is the first picture's; the others must have it too.
    grayscale : bool
        One channel instead of three.

    Raises
    ------
    DataError
        If Pillow is missing or the first picture cannot be read; on reading, if a picture is
        broken or of another size than the first: the file is named.
    """

    def __init__(
        self, files: Sequence[Path], size: tuple[int, int] | None = None, grayscale: bool = False
    ) -> None:
        self._image, self._ops = _pillow()
        self._files = list(files)
        self._mode = "L" if grayscale else "RGB"
        self._size = size
        rows, cols = size or self._decoded(self._files[0]).shape[:2]
        self.shape = (len(self._files), rows, cols, 1 if grayscale else 3)
        self.dtype = np.dtype(np.uint8)

    def read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        numbers: list[int] = indices.tolist()
        places = list(enumerate(numbers))

        def load(place: tuple[int, int]) -> None:
            images[place[0]] = self._checked(self._files[place[1]])

        workers = min(thread_count(), len(places) // 2)
        if workers <= 1:
            for place in places:
                load(place)
        else:
            with ThreadPoolExecutor(workers, "gpulayers-pictures") as pool:
                for _ in pool.map(load, places):  # raises the first error
                    pass
        return images

    def _checked(self, file: Path) -> np.ndarray:
        image = self._decoded(file)
        if image.shape != self.shape[1:]:
            rows, cols = image.shape[:2]
            raise DataError(
                f"{file}: {rows} x {cols} pixels, but {self._files[0]} has {self.shape[1]} x "
                f"{self.shape[2]}; image_size=(rows, cols), or --image-size N in a shell, scales "
                "all to one size"
            )
        return image

    def _decoded(self, file: Path) -> np.ndarray:
        """One picture: (rows, cols, channels) uint8."""
        broken = (*_BROKEN, struct.error, zlib.error, self._image.DecompressionBombError)
        try:
            with self._image.open(file) as opened:
                image = self._ops.exif_transpose(opened)
                if image.mode.startswith("I;16"):
                    high = (np.asarray(image) >> 8).astype(np.uint8)
                    image = self._image.fromarray(high)
                elif image.mode in ("I", "F"):
                    raise DataError(f"{file}: pictures of mode {image.mode} have no fixed range")
                if image.mode == "P":  # through RGBA: a palette may hold transparent colours
                    image = image.convert("RGBA")
                image = image.convert(self._mode)
                if self._size is not None and image.size != self._size[::-1]:
                    method = self._image.Resampling.BILINEAR
                    image = self._ops.fit(image, self._size[::-1], method)
                array = np.asarray(image)
        except DataError:
            raise
        except broken as error:
            raise DataError(f"{file}: the picture cannot be read: {self._why(error)}") from error
        return array.reshape(*array.shape[:2], 1 if self._mode == "L" else 3)

    def _why(self, error: BaseException) -> str:
        """What is wrong with a picture, without the path that the message begins with."""
        if isinstance(error, self._image.UnidentifiedImageError):
            return "it is in no format that Pillow knows, or cut off"
        if isinstance(error, IsADirectoryError):
            return "it is a folder; expected a file"
        return reason(error) if isinstance(error, OSError) else str(error)


def loose_pictures(folder: Path) -> bool:
    """Whether `folder` itself holds a picture."""
    return _pictures(folder)


def has_pictures(folder: Path) -> bool:
    """Whether a subfolder of `folder`, or one of those, holds a picture."""
    return any(
        _pictures(inner) or any(_pictures(low) for low in _subfolders(inner))
        for inner in _subfolders(folder)
    )


def read_pictures(
    root: Path, size: tuple[int, int] | None, grayscale: bool, in_memory: bool | None
) -> tuple[Split, Split, tuple[str, ...], Split | None]:
    """Read ``root/train/<class>/*`` with ``root/test/...``, or ``root/<class>/*``.

    The classes are the subfolders' names in ascending order, an example's place is that of its
    path. A folder val, valid or validation is the validation split, or stands for a missing test
    folder. Without either a fifth of each class is held out as the test split, always the same.
    Hidden files and those without a picture's ending are left out.

    Returns
    -------
    train, test, classes, validation or None

    Raises
    ------
    DataError
        If a class has no pictures, a test class no training pictures, or as `FolderImages`.
    """
    names = {path.name: path for path in _subfolders(root)}
    if "train" not in names:
        files, labels, classes = _class_files(root, None)
        whole = _split(files, labels, size, grayscale, in_memory, root)
        try:
            kept, held = divide(whole.labels, TEST_SHARE, seed=0, stratified=True)
        except DataError as error:
            raise DataError(f"{root}: too few pictures for a test split ({error})") from error
        return whole.take(kept), whole.take(held), classes, None
    present = [name for name in _TEST_NAMES if name in names]
    if not present:
        raise DataError(
            f"{root}: beside the folder train expected one of {', '.join(_TEST_NAMES)}, found "
            f"{first_names(names)}"
        )
    files, labels, classes = _class_files(names["train"], None)
    train = _split(files, labels, size, grayscale, in_memory, names["train"])
    others: list[Split] = []
    for name in present[:2]:
        files, labels, _ = _class_files(names[name], classes)
        others.append(_split(files, labels, size, grayscale, in_memory, names[name]))
    validation = others[1] if len(others) > 1 else None
    return train, others[0], classes, validation


def _split(
    files: list[Path],
    labels: list[int],
    size: tuple[int, int] | None,
    grayscale: bool,
    in_memory: bool | None,
    source: Path,
) -> Split:
    lazy = FolderImages(files, size, grayscale)
    keep = lazy.nbytes <= IN_MEMORY if in_memory is None else in_memory
    images: Any = np.asarray(lazy) if keep else lazy
    return Split(images, np.array(labels, dtype=np.int64), str(source))


def _class_files(
    folder: Path, known: tuple[str, ...] | None
) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The pictures below a folder, their labels, and the classes (`known`, or the subfolders)."""
    present = {path.name: path for path in _subfolders(folder)}
    if known is not None and not set(present) <= set(known):
        strange = sorted(set(present) - set(known))
        raise DataError(f"{folder}: the training pictures have no class {first_names(strange)}")
    classes = tuple(sorted(present)) if known is None else known
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _all_pictures(present[name]) if name in present else []
        if not found and known is None:
            raise DataError(
                f"{present[name]}: no picture of this class (expected files ending in "
                f"{', '.join(ENDINGS)})"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{folder}: holds no pictures in subfolders named after the classes")
    return files, labels, classes


def _subfolders(folder: Path) -> list[Path]:
    paths = (folder / name for name in sorted(list_folder(folder)) if not name.startswith("."))
    return [path for path in paths if path.is_dir()]


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def _pictures(folder: Path) -> bool:
    return any(_is_picture(name) for name in list_folder(folder))


def _all_pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, in the order of its path's parts."""

    def fail(error: OSError) -> None:
        raise DataError(f"{folder}: cannot be read: {reason(error)}") from error

    found = [
        Path(where) / name
        for where, _, names in os.walk(folder, onerror=fail)
        for name in names
        if _is_picture(name)
    ]
    return sorted(found, key=lambda path: path.parts)
