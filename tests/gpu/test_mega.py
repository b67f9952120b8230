"""Engine "mega" with LeNet: on a device, and with every case on the stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import models, random
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
)
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Activation, Sequential
from gpulayers.models.resident import Resident
from tests.conftest import CASES, Backend, switched_to

EMULATED = [pytest.param("emulated", marks=pytest.mark.emulated)] if os.environ.get(CASES) else []


@pytest.fixture(params=[*EMULATED, pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with switched_to(request.param) as chosen:
        yield chosen


def normalized(optimizer: str) -> Any:
    """LeNet with batch normalisation and dropout."""
    layers: list[Any] = [Conv2D(6, (5, 5), pad=2), BatchNorm2D(), Activation("ReLU"), Pool2D(2, 2)]
    layers += [Conv2D(16, (5, 5)), BatchNorm2D(), Activation("ReLU"), Pool2D(2, 2), Flatten()]
    layers += [FullyConnected(120), BatchNorm1D(), Activation("ReLU"), Dropout(0.5)]
    return Sequential([*layers, FullyConnected(10)], optimizer)


def trained(
    device: Backend, optimizer: str, batch: int, steps: int, make: Any = models.lenet
) -> tuple[Any, ...]:
    """Losses, hits and parameters of LeNet after some steps in one launch, and those of the layers
    one by one, on the host in float32."""
    rng = np.random.default_rng(0)
    count = batch * steps - batch // 3
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, count)
    order = rng.permutation(count)
    random.seed(0)
    network: Any = make(optimizer=optimizer)
    network.forward(device.asarray(images[:1]), False)
    start = {k: device.asnumpy(v).copy() for k, v in network.parameters.items()}
    plan: Any = network.compile((batch, 28, 28, 1), engine="mega")
    resident = Resident(images, labels, network.pixels)
    resident.begin(order)
    drawn = random.get_state()
    assert plan.run(resident, steps) == steps
    got = *resident.read(), {k: device.asnumpy(v) for k, v in network.parameters.items()}
    with switched_to("numpy"):
        gold: Any = make(optimizer=optimizer)
        gold.forward(images[:1], False)
        random.set_state(drawn)
        for name, array in gold.parameters.items():
            array[...] = start[name]
        loss, losses, hits = SoftmaxCrossEntropy(), [], []
        for first in range(0, count, batch):
            chosen = order[first : first + batch]
            logits = gold.forward(images[chosen])
            losses.append(float(loss.forward(labels[chosen], logits)))
            hits.append((logits.argmax(1) == labels[chosen]).sum())
            gold.backward(loss.backward(), input_grad=False)
            gold.update()
    return (*got, losses, hits, gold.parameters)


@pytest.mark.parametrize("optimizer", ["SGD(lr=0.05, momentum=0.9)", "Adam(lr=0.001)"])
@pytest.mark.parametrize("batch", [64, 300])
def test_lenet(device: Backend, optimizer: str, batch: int) -> None:
    """A batch that does not fill the device, and one of which blocks take several examples."""
    if device.name == "emulated":
        batch //= 16
    losses, hits, parameters, *gold = trained(device, optimizer, batch, 4)
    np.testing.assert_allclose(losses, gold[0], rtol=1e-4)
    assert np.abs(hits - gold[1]).max() <= 1, "a tie by rounding aside"
    for name, array in gold[2].items():
        np.testing.assert_allclose(parameters[name], array, atol=2e-4, err_msg=name)


def test_lenet_with_more_layers(device: Backend) -> None:
    batch = 4 if device.name == "emulated" else 300
    losses, _, parameters, *gold = trained(device, "SGD(lr=0.02)", batch, 4, normalized)
    np.testing.assert_allclose(losses, gold[0], rtol=1e-3)
    for name, array in gold[2].items():
        np.testing.assert_allclose(parameters[name], array, atol=1e-3, err_msg=name)


def test_always_the_same_bits(device: Backend) -> None:
    batch = 4 if device.name == "emulated" else 300
    one, other = (trained(device, "SGD(lr=0.05)", batch, 3) for _ in range(2))
    for name, array in one[2].items():
        np.testing.assert_array_equal(array, other[2][name], err_msg=name)
