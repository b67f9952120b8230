"""``gpulayers info``: what computes here, and why."""

from __future__ import annotations

from argparse import Namespace

from gpulayers import backend

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print the report; 0."""
    print(backend.describe())
    return 0
