"""numpy-ml computes in float64, so these tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpulayers import random
from tests.layers.harness import default_dtype


@pytest.fixture(autouse=True)
def float64_and_a_seed() -> Iterator[None]:
    random.seed(0)
    with default_dtype("float64"):
        yield
