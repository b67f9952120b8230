"""Readers of dataset files: idx (MNIST), npz. No pickle anywhere.

Every problem is a `DataError` that names the file, what was expected and what came.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gpulayers import _folders
from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_UINT8 = 0x08
_IDX_TYPES = {
    0x08: "uint8",
    0x09: "int8",
    0x0B: "int16",
    0x0C: "int32",
    0x0D: "float32",
    0x0E: "float64",
}

# ------------------------------------------------------------------------------- files and folders


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if its name ends in ``.gz`` or ``.tgz``.

    Raises
    ------
    DataError
        If it cannot be read, or its compressed data is truncated or fails its CRC.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    if path.suffix not in (".gz", ".tgz"):
        return data
    if data[:2] != b"\x1f\x8b":
        raise DataError(
            f"{path}: expected gzip data (first bytes 1f 8b), got "
            f"{len(data)} bytes starting with {data[:8].hex(' ') or 'nothing'}"
        )
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise DataError(f"{path}: the gzip data is truncated ({len(data)} bytes)") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: the gzip data is corrupted: {error}") from error


def reason(error: OSError) -> str:
    """Return the system's words for `error`, without the path that the message has already."""
    return error.strerror or str(error)


def is_folder(path: Path) -> bool | None:
    """Return whether a folder is there; False for a file, None for nothing; a DataError where the
    system does not tell."""
    try:
        return _folders.is_folder(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def list_folder(folder: Path) -> set[str]:
    """Return the names in a folder; a DataError if it cannot be listed."""
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {reason(error)}") from error


def check_digest(data: bytes, expected: str, path: Path | str) -> None:
    """Raise DataError unless `data` has the digest ``algorithm:hex``."""
    got = digest(data, expected)
    if got != expected:
        raise DataError(
            f"{path}: the content is not the published one: expected {expected}, got {got}"
        )


def digest(data: bytes, like: str) -> str:
    """Return the digest of `data` as ``algorithm:hex``, by the algorithm of `like`."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def first_names(names: Iterable[str], limit: int = 6) -> str:
    """Return some of `names` for an error message."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "nothing"


# --------------------------------------------------------------------------------------------- idx


def take_idx(data: bytes, offset: int, ndim: int, source: Path | str) -> tuple[np.ndarray, int]:
    """Return the idx array of uint8 that starts at `offset`, and the offset after it.

    The format (LeCun, Cortes and Burges, "The MNIST database"): two zero bytes, a type byte, the
    number of dimensions, each dimension as a big-endian uint32, then the values in C order.

    Raises
    ------
    DataError
        If the magic number is wrong or the data is shorter than its header says.
    """
    expected = f"00 00 08 {ndim:02x} (idx, uint8, {ndim} dimensions)"
    magic = data[offset : offset + 4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
        hint = ", which is gzip: name the file .gz" if magic[:2] == b"\x1f\x8b" else ""
        raise DataError(
            f"{source}: expected the magic number {expected}, got "
            f"{magic.hex(' ') or 'an empty file'}{hint}"
        )
    if magic[2] != _IDX_UINT8:
        raise DataError(f"{source}: expected idx values of uint8, got {_IDX_TYPES[magic[2]]}")
    if magic[3] != ndim:
        raise DataError(
            f"{source}: expected the magic number {expected}, got {magic.hex(' ')}, "
            f"an array of {magic[3]} dimensions"
        )
    start = offset + 4 + 4 * ndim
    if len(data) < start:
        raise DataError(
            f"{source}: truncated in the header: expected {start - offset} bytes, "
            f"got {len(data) - offset}"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset + 4))
    size = math.prod(shape)
    if len(data) - start < size:
        raise DataError(
            f"{source}: truncated: the header promises {' x '.join(map(str, shape))} = {size} "
            f"bytes of values, got {len(data) - start}"
        )
    return np.frombuffer(data, np.uint8, size, start).reshape(shape), start + size


def parse_idx(data: bytes, ndim: int, source: Path | str) -> np.ndarray:
    """Return the uint8 array of a whole idx file; DataError if it is not exactly one."""
    array, end = take_idx(data, 0, ndim, source)
    if end != len(data):
        raise DataError(
            f"{source}: {len(data) - end} bytes too many after the "
            f"{' x '.join(map(str, array.shape))} values that the header promises"
        )
    return array


def find_idx(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the MNIST-named idx files of a folder, and the names of those missing.

    ``train-images-idx3-ubyte`` may also be spelled ``train-images.idx3-ubyte``, each plain or
    with ``.gz``; the plain file is preferred.
    """
    present = list_folder(folder)
    found: dict[str, Path] = {}
    for name in IDX_FILES:
        dotted = name.replace("-idx", ".idx")
        for spelled in (name, dotted, f"{name}.gz", f"{dotted}.gz"):
            if spelled in present:
                found[name] = folder / spelled
                break
    return found, [name for name in IDX_FILES if name not in found]


def read_idx(
    files: Mapping[str, Path], digests: Mapping[str, str] | None = None
) -> tuple[Split, Split]:
    """Read the four idx files that `find_idx` found into the training and the test split.

    Raises
    ------
    DataError
        As `read_bytes`, `parse_idx` and `Split` do; also if a digest is given and differs.
    """
    splits: list[Split] = []
    for images_name, labels_name in (IDX_FILES[:2], IDX_FILES[2:]):
        arrays: list[np.ndarray] = []
        for name, ndim in ((images_name, 3), (labels_name, 1)):
            data = read_bytes(files[name])
            arrays.append(parse_idx(data, ndim, files[name]))
            if digests is not None:
                check_digest(data, digests[name], files[name])
        source = f"{files[images_name]} with {files[labels_name].name}"
        splits.append(Split(arrays[0][..., None], arrays[1], source))
    return splits[0], splits[1]


# --------------------------------------------------------------------------------------------- npz

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Read x_train, y_train, x_test, y_test, and classes (names, optional) from an ``.npz``.

    Images may be (n, rows, cols) or (n, rows, cols, channels), uint8 or floating: floats are kept
    as given, whatever their range. Object arrays are refused, as they would need pickle.

    Raises
    ------
    DataError
        If the file is no npz, a key is missing, an array is damaged or holds objects, or as
        `Split` does.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path}: expected an .npz (a zip archive), got something else or a part of one"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = _npz_arrays(archive, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: the archive is damaged: {error}") from error
    names = arrays.get("classes")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"{path}: classes must be a vector of strings, got {names.dtype} {names.shape}"
        )
    splits: list[Split] = []
    for part in ("train", "test"):
        images = arrays[f"x_{part}"]
        if images.ndim == 3:
            images = images[..., None]
        splits.append(Split(images, arrays[f"y_{part}"], f"{path} (x_{part}, y_{part})"))
    return splits[0], splits[1], None if names is None else tuple(str(name) for name in names)


def _npz_arrays(archive: np.lib.npyio.NpzFile, path: Path) -> dict[str, np.ndarray]:
    missing = [key for key in _NPZ_KEYS if key not in archive.files]
    if missing:
        raise DataError(
            f"{path}: expected the arrays {', '.join(_NPZ_KEYS)}; missing "
            f"{', '.join(missing)}, found {first_names(archive.files)}; "
            "np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...) writes them"
        )
    keys = [*_NPZ_KEYS, "classes"] if "classes" in archive.files else _NPZ_KEYS
    return {key: _npz_array(archive, key, path) for key in keys}


def _npz_array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        array = archive[key]
    except (
        ValueError,  # an object array, or a broken header
        EOFError,
        MemoryError,  # a header that promises too much
        NotImplementedError,  # an unknown compression
        RuntimeError,  # an encrypted member
        zlib.error,
        zipfile.BadZipFile,  # a CRC that differs
    ) as error:
        raise DataError(f"{path}: the array {key} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is no array in .npy format")
    return array
