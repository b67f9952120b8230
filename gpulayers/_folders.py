"""Where a user's files that can be made anew are kept, and whether something is a folder."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

__all__ = ["cache_dir", "is_folder"]


def cache_dir() -> Path:
    """Return gpulayers' folder in the user's cache folder, by the system's custom."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "gpulayers"


def is_folder(path: Path) -> bool | None:
    """Return whether a folder is there; False for a file, None for nothing; an OSError where the
    system does not tell, which `Path.is_dir` and `Path.exists` keep to themselves from Python 3.14
    on."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
