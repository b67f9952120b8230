"""Fixtures of several files of this folder."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Backend


@pytest.fixture
def pool(emulated: Backend) -> Iterator[Any]:
    """CuPy's pool; a limit that a test sets ends with it."""
    gc.collect()
    found = emulated.xp.get_default_memory_pool()
    yield found
    found.set_limit(size=0)
