"""Steps that take their batches from a dataset on the device: the losses of those that are handed
their batches, and nothing crosses meanwhile."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import backend, random
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Pixels, Sequential
from gpulayers.models.resident import Resident
from gpulayers.ops import use_engine
from tests.conftest import Backend

pytestmark = pytest.mark.emulated

COUNT, BATCH, SHAPE, CLASSES = 13, 4, (7, 6, 2), 3
SGD = "SGD(lr=0.1, momentum=0.9)"


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def network(optimizer: str = SGD) -> Any:
    random.seed(0)
    conv = Conv2D(3, (3, 3), pad=1, act_fn="ReLU")
    layers = [conv, Pool2D((2, 2), stride=2), Flatten(), FullyConnected(CLASSES)]
    net = Sequential(layers, optimizer)
    net.pixels = Pixels((100.0, 120.0), (70.0, 50.0))
    net.forward(backend.xp.zeros((1, *SHAPE), "float32"), False)  # draws the parameters
    return net


def data(classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (COUNT, *SHAPE), np.uint8), rng.integers(0, classes, COUNT)


def resident_of(net: Any, **arguments: Any) -> Resident:
    return Resident(*data(), pixels=net.pixels, **arguments)


def epochs(net: Any, device: Backend, orders: list[np.ndarray]) -> tuple[list[float], list[int]]:
    """Losses and hits of the layers, batch by batch."""
    images, labels = data()
    loss, losses, hits = SoftmaxCrossEntropy(), [], []
    for order in orders:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            Y = net.forward(device.asarray(images[chosen]))
            losses.append(float(loss.forward(device.asarray(labels[chosen]), Y)))
            hits.append(int((device.asnumpy(Y).argmax(axis=1) == labels[chosen]).sum()))
            net.backward(loss.backward(), input_grad=False)
            net.update()
    return losses, hits


@pytest.mark.parametrize("optimizer", [SGD, "SGD(lr=0.1, clip_norm=0.5)"])
def test_losses_and_hits_are_those_of_the_layers(emulated: Backend, optimizer: str) -> None:
    """Two epochs in orders of their own, with a smaller batch at their ends."""
    rng = np.random.default_rng(2)
    orders = [rng.permutation(COUNT), rng.integers(0, COUNT, COUNT)]
    plain, net = network(optimizer), network(optimizer)
    wanted, hits = epochs(plain, emulated, orders)
    plan, resident = net.compile((BATCH, *SHAPE)), resident_of(net, slots=5)
    found, counted = [], []
    for order in orders:
        resident.begin(order)
        while resident.left:
            assert 1 <= plan.run(resident, 3) <= 3
            losses, right = resident.read()
            found += losses.tolist()
            counted += right.tolist()
    np.testing.assert_allclose(found, wanted, rtol=3e-5)
    assert counted == hits
    for name, array in net.parameters.items():
        np.testing.assert_allclose(
            emulated.asnumpy(array), emulated.asnumpy(plain.parameters[name]), atol=2e-5
        )


def test_a_step_is_one_launch_of_a_graph(emulated: Backend) -> None:
    net = network()
    plan, resident = net.compile((BATCH, *SHAPE)), resident_of(net)
    order = np.arange(12)
    resident.begin(order)
    assert plan.run(resident, 99) == 3
    resident.begin(order)
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h", "iterate", "alloc"):
        assert plan.run(resident, 3) == 3
    assert (events["graph_launch"], events["launch"]) == (3, 0)
    with emulated.count() as events:
        losses, _ = resident.read()
    assert len(losses) == 6
    assert events["d2h"] == 1
    with emulated.count() as events:
        resident.begin(order)
    assert events["h2d"] == 1, "the order, once an epoch"


def test_batches_may_be_handed_over_in_between(emulated: Backend) -> None:
    """One network, one optimizer: the two kinds of steps go on where the other stopped."""
    images, labels = data()
    order = np.arange(12)
    plain, net = network("Adam(lr=0.003)"), network("Adam(lr=0.003)")
    wanted, _ = epochs(plain, emulated, [order, order])
    plan, resident = net.compile((BATCH, *SHAPE)), resident_of(net)
    found = []
    for i in (0, 1, 2) * 2:
        if i == 1:
            X = emulated.asarray(images[4:8])
            found.append(float(plan.step(X, emulated.asarray(labels[4:8]))))
        else:
            resident.begin(start=4 * i)
            plan.run(resident, 1)
            found += resident.read()[0].tolist()
    np.testing.assert_allclose(found, wanted, rtol=3e-5)


def test_what_does_not_fit_is_refused(emulated: Backend) -> None:
    net = network()
    plan, resident = net.compile((BATCH, *SHAPE)), resident_of(net)
    before = emulated.asnumpy(net[0].parameters["W"])
    with pytest.raises(ShapeError, match=r"at most 4 examples a batch, got 5"):
        plan.run(resident, 1, 5)
    with pytest.raises(ParameterError, match="batch_size"):
        plan.run(resident, 1, 0)
    images, labels = data()
    with pytest.raises(ShapeError, match=r"examples of shape \(7, 6, 2\), got \(6, 6, 2\)"):
        plan.run(Resident(images[:, 1:], labels), 1)
    with pytest.raises(DTypeError, match="parameters are float32, the data was prepared for"):
        plan.run(resident_of(net, dtype="float64"), 1)
    with pytest.raises(ParameterError, match=r"labels must be in 0\.\.2, got 0\.\.7"):
        plan.run(Resident(*data(8)), 1)
    with use_engine("reference"), pytest.raises(BackendError, match="the engine is reference"):
        plan.run(resident, 1)
    other = net.compile((BATCH, *SHAPE), loss="squared_error")
    with pytest.raises(BackendError, match="the loss takes targets"):
        other.run(resident, 1)
    assert resident.left == COUNT
    np.testing.assert_array_equal(emulated.asnumpy(net[0].parameters["W"]), before)
