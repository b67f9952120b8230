"""The kernels of gpulayers that the tests meet, compiled once."""

from __future__ import annotations

import os

import pytest

from tests.support import nvrtc
from tests.support.cuda_on_cpu.toolchain import REQUIRE_VARIABLE


@pytest.fixture(scope="session")
def compiler() -> None:
    """NVRTC; without it the test is skipped, or fails under GPULAYERS_REQUIRE_EMULATOR=1."""
    reason = nvrtc.unavailable_reason()
    if reason and os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def compiled(compiler: None) -> dict[nvrtc.Job, nvrtc.Compiled]:
    """Each source for each architecture that is tested. Workers of pytest-xdist share the work."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        return nvrtc.compile_all(2)
    return nvrtc.compile_all(1, backwards=int(worker.removeprefix("gw")) % 2 == 1)
