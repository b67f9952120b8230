"""The backend that the CUDA engine runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Backend, switched_to


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cupy", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with switched_to(request.param) as chosen:
        yield chosen
