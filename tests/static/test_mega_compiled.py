"""The kernels written for LeNet-5, as it is and with more layers, compile, spill nothing and fit
any GPU's blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from gpulayers import models
from gpulayers.cuda import table
from gpulayers.cuda.mega_constants import NAME
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
)
from gpulayers.models import Activation, Sequential
from gpulayers.models.mega_layers import chain_of
from gpulayers.models.mega_source import write
from tests.support import nvrtc

pytestmark = [pytest.mark.static, pytest.mark.usefixtures("compiler")]

ARCHITECTURES = ("sm_90",)
if os.environ.get("GPULAYERS_TEST_CASES"):
    ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
#: of a block, on the smallest of GPUs since 2020 (sm_86, sm_120)
SHARED_BYTES = 99 << 10
#: on those of data centres: batch normalisation keeps all pixels, the pooling only a quarter
SHARED_BYTES_NORMALIZED = 163 << 10


def plain() -> list[Any]:
    return models.lenet(optimizer="SGD").layers


def dropped() -> list[Any]:
    """Behind each pooling and in front of the last layer."""
    layers: list[Any] = []
    for layer in plain():
        layers += [layer, Dropout(0.2)] if isinstance(layer, Pool2D) else [layer]
    return [*layers[:-1], Dropout(0.5), layers[-1]]


def normalized() -> list[Any]:
    """Behind each convolution and dense layer but the last, and dropout."""
    layers: list[Any] = [Conv2D(6, (5, 5), pad=2), BatchNorm2D(), Activation("ReLU"), Pool2D(2, 2)]
    layers += [Conv2D(16, (5, 5)), BatchNorm2D(), Activation("ReLU"), Pool2D(2, 2), Flatten()]
    layers += [FullyConnected(120), BatchNorm1D(), Activation("ReLU"), Dropout(0.5)]
    layers += [FullyConnected(84), BatchNorm1D(), Activation("ReLU"), FullyConnected(10)]
    return layers


NETWORKS = (
    [plain, dropped, normalized] if os.environ.get("GPULAYERS_TEST_CASES") else [plain, normalized]
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", NETWORKS)
def test_lenet(layers: Callable[[], list[Any]], architecture: str) -> None:
    chain = chain_of(Sequential(layers(), "SGD"), (28, 28, 1))
    program = write((28, 28, 1), chain.stages, "unsigned char", True)
    most = SHARED_BYTES_NORMALIZED if layers is normalized else SHARED_BYTES
    assert program.shared_bytes <= most
    compiled = nvrtc.compile_source(program.source, [NAME], architecture, table.options("float32"))
    assert not compiled.log, compiled.log
    found = compiled.kernels[NAME]
    assert found.spill_bytes == found.stack_bytes == found.local_accesses == 0
    assert found.double_instructions == 0
    assert found.shared_bytes == 0, "all of it is dynamic"
