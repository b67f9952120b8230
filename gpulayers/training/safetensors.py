"""Arrays in a file of the safetensors format: a JSON table of contents, then the plain bytes.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length n of the header as a
little-endian integer; n bytes of JSON, ``{name: {"dtype", "shape", "data_offsets"}}`` and under
``"__metadata__"`` strings by name, padded with spaces; then the arrays' bytes, little-endian, in C
order, one behind the other without gaps. Nothing in it is ever executed.

Files written here carry a SHA-256 of all their bytes in the metadata, so that reading notices any
change; files of other programs, which carry none, are read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpulayers._types import is_dict, is_list
from gpulayers.errors import CheckpointError, UnreadableError
from gpulayers.training.atomic import write_atomically

__all__ = ["UnreadableError", "read_safetensors", "write_safetensors"]

CHECKSUM = "gpulayers.sha256"
MOST_HEADER = 100_000_000  # bytes; the limit of the format's own library
_DIGITS = 64  # of a SHA-256 in hexadecimal
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
_CODES = {name: code for code, name in _NAMES.items()}


# -------------------------------------------------------------------------------------- writing


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write arrays to a ``.safetensors`` file, atomically; return the path.

    Parameters
    ----------
    path : path
        An existing file is replaced only when the new one is complete and on the disk.
    arrays : dict of str to NumPy array
        bool, (u)int8..64, float16, bfloat16, float32, float64 or complex64; any shape and layout.
    metadata : dict of str to str, optional

    Raises
    ------
    CheckpointError
        If a dtype has no place in the format, a name or value is no string, or the file cannot be
        written.
    """
    path = Path(path)
    header, blocks = encode(arrays, metadata or {})

    def write(file: IO[bytes]) -> None:
        file.write(header)
        for block in blocks:
            file.write(block)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def encode(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[bytes, list[memoryview]]:
    """The file's length and header, and its data: the arrays' bytes in the order of the file."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(f"safetensors: metadata holds strings only, got {key!r}")
    table: dict[str, Any] = {"__metadata__": {**metadata, CHECKSUM: "0" * _DIGITS}}
    plain = {name: _plain(name, array) for name, array in arrays.items()}
    blocks: list[memoryview] = []
    offset = 0
    # wide entries first, so that each array begins at a multiple of its entries' size
    for name in sorted(plain, key=lambda name: (-plain[name].itemsize, name)):
        array = plain[name]
        code = _CODES[array.dtype.name]
        end = offset + array.nbytes
        table[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        if array.nbytes:
            blocks.append(array.reshape(-1).view(np.uint8).data)
        offset = end
    text = json.dumps(table, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(text)
    for block in blocks:
        digest.update(block)
    text = text.replace(_mark("0" * _DIGITS), _mark(digest.hexdigest()), 1)
    return len(text).to_bytes(8, "little") + text, blocks


def _mark(digest: str) -> bytes:
    """The checksum as it stands in the header."""
    return f'"{CHECKSUM}":"{digest}"'.encode()


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if not isinstance(name, str) or name == "__metadata__":
        raise CheckpointError(f"safetensors: {name!r} is no name for an array")
    if not isinstance(array, np.ndarray):
        raise CheckpointError(
            f"safetensors: {name} must be a NumPy array, got {type(array).__name__}"
        )
    if array.dtype.name not in _CODES:
        raise CheckpointError(
            f"safetensors: {name} has dtype {array.dtype}, which the format does not know; it "
            f"knows {', '.join(_CODES)}"
        )
    order = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    # ascontiguousarray makes 0-d arrays 1-d
    return np.ascontiguousarray(array.astype(order, copy=False)).reshape(array.shape)


# -------------------------------------------------------------------------------------- reading


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a ``.safetensors`` file by name, and its metadata.

    Everything is read and checked: the header's size and JSON (names that stand there twice too),
    dtypes and shapes, that the arrays fill the rest of the file without gap or overlap, and the
    checksum where there is one.

    Raises
    ------
    UnreadableError (a CheckpointError)
        If the file is missing, truncated, corrupted or something else.
    CheckpointError
        If it holds bfloat16 arrays and ml_dtypes is not installed.
    """
    arrays, metadata, _ = read_file(Path(path))
    return arrays, metadata


def read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    """As `read_safetensors`, and whether there was a checksum."""
    try:
        with path.open("rb") as file:
            return _read(file, path, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise UnreadableError(f"{path} does not exist") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error


def _read(
    file: IO[bytes], path: Path, size: int
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    start = file.read(9)
    if len(start) < 9 or start[8:] != b"{":
        raise UnreadableError(f"{path} ({size} bytes) is no safetensors file")
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, MOST_HEADER):
        raise _damaged(path, size, f"a header of {length} bytes does not fit")
    text = b"{" + file.read(length - 1)
    try:
        table: dict[str, Any] = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, size, f"the header is no JSON: {error}") from error
    metadata = table.pop("__metadata__", {})
    if not is_dict(metadata) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, size, "the metadata is not made of strings")
    try:
        entries = sorted(
            (_entry(name, value) for name, value in table.items()), key=lambda e: e[1:3]
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise _damaged(path, size, str(error)) from error
    end = 0
    for name, begin, stop, _, _ in entries:
        if begin != end:
            raise _damaged(path, size, f"{name} begins at {begin}, expected {end}")
        end = stop
    if 8 + length + end != size:
        raise _damaged(path, size, f"the arrays need {end} bytes, there are {size - 8 - length}")
    said = metadata.pop(CHECKSUM, None)
    digest = hashlib.sha256(text if said is None else text.replace(_mark(said), _mark("0" * 64), 1))
    arrays: dict[str, np.ndarray] = {}
    for name, _, stop, dtype, shape in entries:
        array = np.empty(shape, dtype)
        if array.nbytes:
            view = array.reshape(-1).view(np.uint8).data
            if file.readinto(view) != array.nbytes:  # type: ignore[attr-defined]
                raise _damaged(path, size, f"{name} ends before byte {stop}")
            if said is not None:
                digest.update(view)
        arrays[name] = array if sys.byteorder == "little" else array.byteswap()
    if said is not None and digest.hexdigest() != said:
        raise _damaged(path, size, "its checksum is another one")
    return arrays, metadata, said is not None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(name: str, value: Any) -> tuple[str, int, int, np.dtype[Any], tuple[int, ...]]:
    """One line of the table, checked: name, first byte, byte behind the last, dtype, shape."""
    if not is_dict(value) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _NAMES:
        raise ValueError(f"{name} has the unknown dtype {code!r}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not is_list(numbers) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{name} has the {what} {numbers!r}")
    dtype = bfloat16() if code == "BF16" else np.dtype(_NAMES[code])
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: {code} of shape {shape} does not fit the offsets {offsets}")
    return name, offsets[0], offsets[1], dtype, tuple(shape)


def bfloat16() -> np.dtype[Any]:
    """The dtype, which NumPy itself does not have."""
    try:
        import ml_dtypes  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise CheckpointError(
            "the file holds bfloat16 arrays, which need ml_dtypes: pip install ml_dtypes"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def _damaged(path: Path, size: int, reason: str) -> UnreadableError:
    return UnreadableError(
        f"{path} ({size} bytes) is truncated or corrupted ({reason}). Use an older one, or copy "
        "the file again."
    )
