"""The kernel that is written for LeNet-5 compiles, spills nothing and fits any GPU's blocks."""

from __future__ import annotations

import os

import pytest

from gpulayers import models
from gpulayers.cuda import table
from gpulayers.cuda.mega_constants import NAME
from gpulayers.models.mega_layers import chain_of
from gpulayers.models.mega_source import write
from tests.support import nvrtc

pytestmark = [pytest.mark.static, pytest.mark.usefixtures("compiler")]

ARCHITECTURES = ("sm_90",)
if os.environ.get("GPULAYERS_TEST_CASES"):
    ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
#: of a block, on the smallest of GPUs since 2020 (sm_86, sm_120)
SHARED_BYTES = 99 << 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lenet(architecture: str) -> None:
    network = models.lenet(optimizer="SGD")
    chain = chain_of(network, (28, 28, 1))
    program = write((28, 28, 1), chain.stages, "unsigned char", True)
    assert program.shared_bytes <= SHARED_BYTES
    compiled = nvrtc.compile_source(program.source, [NAME], architecture, table.options("float32"))
    assert not compiled.log, compiled.log
    found = compiled.kernels[NAME]
    assert found.spill_bytes == found.stack_bytes == found.local_accesses == 0
    assert found.double_instructions == 0
    assert found.shared_bytes == 0, "all of it is dynamic"
