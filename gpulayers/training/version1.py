"""Reading the checkpoints of gpulayers 0.1: ``.npz`` files with a JSON header."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers.training.safetensors import UnreadableError

__all__ = ["looks_like_npz", "read_npz"]

_HEADER = "header.json"


def looks_like_npz(path: Path) -> bool:
    """Whether the file begins as a zip archive does."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def read_npz(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file of format version 1; all is read and checked (zip has CRCs).

    Raises
    ------
    UnreadableError
        If it is truncated, corrupted or another kind of ``.npz`` file.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as raw:  # np.load leaves a broken file it opened itself open
            file = np.load(raw, allow_pickle=False)
            if _HEADER not in file.files:
                raise UnreadableError(
                    f"{path} is no gpulayers checkpoint: an .npz file without a gpulayers header "
                    f"(it holds {', '.join(file.files[:5]) or 'nothing'})"
                )
            for name in file.files:
                arrays[name] = file[name]
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except UnreadableError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise UnreadableError(
            f"the checkpoint {path} ({path.stat().st_size} bytes) is truncated or corrupted "
            f"({error}). Use an older checkpoint, or copy the file again."
        ) from error
    return header, arrays
