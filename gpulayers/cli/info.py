"""``gpulayers info``: what computes here, and why."""

from __future__ import annotations

from argparse import Namespace

from gpulayers import backend
from gpulayers.ops import compiled
from gpulayers.threads import thread_count

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print the report; 0."""
    print(backend.describe())
    print(f"threads:    {thread_count()}")
    print(f"c kernels:  {compiled.report()}")
    return 0
