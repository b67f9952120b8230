"""The array library in use: ``from backend import xp``; run ``python backend.py`` for a report.

A shim for work inside the checkout; the library itself lives in `gpulayers.backend`.
"""

from typing import Any

from gpulayers import backend as _backend
from gpulayers.backend import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(_backend, name)


if __name__ == "__main__":
    print(_backend.describe())
