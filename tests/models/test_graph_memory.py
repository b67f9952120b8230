"""A captured step that the memory is too small for, or that fails in the midst."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

from gpulayers import backend, random
from gpulayers.errors import BackendError, DeviceMemoryError
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Sequential
from gpulayers.models.resident import Resident
from tests.conftest import Backend

pytestmark = pytest.mark.emulated

SHAPE, CLASSES, LARGE = (6, 6, 2), 3, 256


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def network(optimizer: str = "Adam(lr=0.01)", pooled: bool = False) -> Any:
    """`pooled`: on tensor cores the gradient before the pooling takes room of its own."""
    random.seed(0)
    filters = 32 if pooled else 8
    last = [Conv2D(filters, (3, 3), pad=1, act_fn="ReLU"), Pool2D((2, 2), stride=2)] * pooled
    first = Conv2D(filters, (3, 3), pad=1, act_fn="ReLU")
    layers = [first, *last, Flatten(), FullyConnected(CLASSES)]
    net = Sequential(layers, optimizer, "small")
    net.forward(backend.xp.zeros((1, *SHAPE), "float32"), False)
    return net


def batch(n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = backend.xp.asarray(rng.standard_normal((n, *SHAPE)).astype(np.float32))
    return X, backend.xp.asarray(rng.integers(0, CLASSES, n))


def weights(net: Any, device: Backend) -> np.ndarray:
    return np.concatenate([device.asnumpy(a).ravel() for a in net.parameters.values()])


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_error_says_what_fits(emulated: Backend, pool: Any, precision: str) -> None:
    """The largest batch that it names fits, one that is a fifth larger does not; the steps after it
    are those of a run without it."""
    net, other = (network(pooled=precision == "tf32") for _ in range(2))
    plan, (X, labels) = net.compile((LARGE, *SHAPE), precision=precision), batch(LARGE)
    steps = [plan.step(X[:4], labels[:4]) for _ in range(2)]  # kernels, parameters in one array
    before = weights(net, emulated)
    pool.set_limit(size=pool.used_bytes() + (400 << 10 if precision == "fp32" else 1 << 20))
    with pytest.raises(
        DeviceMemoryError, match="small: not enough GPU memory for a step of 256"
    ) as e:
        plan.step(X, labels)
    assert isinstance(e.value, MemoryError)
    found = re.search(
        r"needs about (\S+) (KB|MB), (\S+) (KB|MB) are free; batches of up to (\d+) ", str(e.value)
    )
    assert found is not None, str(e.value)
    needed, free = (float(found[i]) * (1024 if found[i + 1] == "MB" else 1) for i in (1, 3))
    assert needed > free > 150
    most = int(found[5])
    np.testing.assert_array_equal(weights(net, emulated), before)
    with pytest.raises(DeviceMemoryError):
        plan.step(X[: int(1.2 * most) + 1], labels[: int(1.2 * most) + 1])
    steps += [plan.step(X[:most], labels[:most])]
    pool.set_limit(size=0)
    steps += [plan.step(X[:4], labels[:4])]
    calm = other.compile((LARGE, *SHAPE), precision=precision)
    wanted = [calm.step(X[:n], labels[:n]) for n in (4, 4, most, 4)]
    np.testing.assert_array_equal([float(v) for v in steps], [float(v) for v in wanted])


def test_not_even_one_example(emulated: Backend, pool: Any) -> None:
    plan, (X, labels) = network().compile((LARGE, *SHAPE)), batch(LARGE)
    plan.step(X[:4], labels[:4])
    pool.set_limit(size=pool.used_bytes() + 2048)
    with pytest.raises(DeviceMemoryError, match="not enough GPU memory"):
        plan.step(X[:64], labels[:64])


def test_a_run_from_the_device_too(emulated: Backend, pool: Any) -> None:
    net = network()
    plan, (X, labels) = net.compile((LARGE, *SHAPE)), batch(LARGE)
    resident = Resident(X, labels)
    plan.run(resident, 1, 4)
    resident.begin()
    pool.set_limit(size=pool.used_bytes() + (400 << 10))
    with pytest.raises(DeviceMemoryError, match=r"batches of up to \d+ examples fit"):
        plan.run(resident, 1)
    assert resident.left == LARGE
    pool.set_limit(size=0)
    assert plan.run(resident, 9) == 1


def test_a_capture_takes_what_the_pool_keeps(emulated: Backend, pool: Any) -> None:
    """The first capture fails for want of memory, the second one, after the pool gave back what it
    kept, does not."""
    graph = importlib.import_module("gpulayers.cuda.graph")
    kept = emulated.xp.empty(1 << 20, "uint8")
    del kept
    assert pool.free_bytes() >= 1 << 20
    x, tries = emulated.xp.zeros(4, "float32"), []

    def run() -> None:
        tries.append(pool.free_bytes())
        if pool.free_bytes():
            raise MemoryError("cudaErrorMemoryAllocation")
        emulated.xp.add(x, 1, out=x)

    captured = graph.Recorder().capture("a step", run)
    assert len(tries) == 2
    graph.launch(captured)
    assert emulated.asnumpy(x).tolist() == [1.0] * 4


@pytest.mark.parametrize("when", [0, 1])
def test_an_exception_counts_for_nothing(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """In the first launch or in the capture: the same steps afterwards, by the plan and without."""
    flat = importlib.import_module("gpulayers.cuda.flat")
    inner, net, other = flat.flat_update, network(), network()
    plan, (X, labels) = net.compile((4, *SHAPE)), batch(4)
    losses = [float(plan.step(X, labels)) for _ in range(when)]

    def broken(*args: Any) -> None:
        raise BackendError("no such luck")

    monkeypatch.setattr(flat, "flat_update", broken)
    with pytest.raises(BackendError, match="no such luck"):
        plan.step(X, labels)
    monkeypatch.setattr(flat, "flat_update", inner)
    assert not emulated.xp.cuda.get_current_stream().is_capturing()
    losses += [float(plan.step(X, labels)) for _ in range(3)]
    calm = other.compile((4, *SHAPE))
    assert losses == [float(calm.step(X, labels)) for _ in range(3 + when)]
    assert net[0].optimizer.cur_step == other[0].optimizer.cur_step == 3 + when
    net.forward(X)
