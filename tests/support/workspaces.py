"""What tests of memory that is used again need."""

from __future__ import annotations

import pytest

from gpulayers.ops import workspace

__all__ = ["needs_workspaces"]

needs_workspaces = pytest.mark.skipif(
    not workspace.trusted,
    reason="without Python's lock reference counts do not tell which memory is free",
)
