"""Engine "mega" follows what is changed between its steps, and what fails counts for nothing."""

from __future__ import annotations

import gc
import importlib
import re
from typing import Any

import numpy as np
import pytest

from gpulayers import backend, random
from gpulayers.errors import BackendError, DeviceMemoryError, ParameterError
from gpulayers.layers import FullyConnected
from gpulayers.models import Sequential
from gpulayers.models.resident import Resident
from tests.conftest import Backend
from tests.models.test_mega import CLASSES, SGD, SHAPE, Run, checked, dense, dropped, normalized
from tests.support import fake_cupy
from tests.support.fake_cupy.kernels import CUDADriverError

pytestmark = pytest.mark.emulated
__all__ = ["checked"]  # the fixture that runs kernels under the checker

# whose first steps do not make much of rounding
ADAM = "Adam(lr=0.01, eps=0.001)"


def both(run: Run, steps: int = 1) -> None:
    """Steps of the plan and of the layers, whose losses are the same."""
    for _ in range(steps):
        want = run.gold.step(run.X, run.labels)
        assert run.step(5) == pytest.approx(want, rel=2e-5, abs=1e-6)


def counts(run: Run) -> list[Any]:
    learned = [la for _, la in run.network.walk() if la.trainable and la.gradients]
    caches = [entry for la in learned for entry in la.optimizer.cache.values()]
    steps = [entry["t"] for entry in caches if isinstance(entry, dict)]
    return [*(la.optimizer.cur_step for la in learned), *steps]


def test_an_unfrozen_layer_with_another_rule(emulated: Backend) -> None:
    """After the error, and equal rules, it trains; till then the error comes again."""
    run = Run(emulated, dense)
    networks = run.network, run.gold.network
    for network in networks:
        network[1].freeze()
    both(run)
    for network in networks:
        network[1].unfreeze()
    run.network[1].optimizer.set_params({"momentum": 0.5})
    before = run.parameters()
    for _ in range(2):
        with pytest.raises(ParameterError, match="another one than the first layer's"):
            run.step(5)
    run.network[1].optimizer.set_params({"momentum": 0.9})
    both(run, 2)
    run.agrees()
    assert (run.parameters()["1.W"] != before["1.W"]).any()


@pytest.mark.parametrize("first", [SGD, "AdaGrad(lr=0.01, eps=0.001)"])
def test_another_optimizer(emulated: Backend, first: str) -> None:
    run = Run(emulated, dense, first)
    both(run, 2)
    for optimizer in (ADAM, SGD):
        for network in (run.network, run.gold.network):
            network.set_optimizer(optimizer)
        both(run, 2)
        run.agrees(2e-4)
    run.network.set_optimizer(ADAM)
    run.step(5)
    X, labels = emulated.asarray(run.X), emulated.asarray(run.labels)
    run.plan.gradients(X, labels)
    run.network.forward(X)
    run.network.backward(emulated.asarray(np.ones((5, CLASSES), np.float32)))
    run.network.update()


def test_another_momentum_and_another_array(emulated: Backend) -> None:
    run = Run(emulated, dense)
    both(run, 2)
    for network in (run.network, run.gold.network):
        network[1].optimizer.set_params({"momentum": 0.5})
        network[2].optimizer.set_params({"momentum": 0.5})
        network[2].parameters["W"] = network[2].parameters["W"] * 2
    both(run, 2)
    run.agrees()


def test_rules_that_only_compute_alike(emulated: Backend) -> None:
    """Adam and AdamW without weight decay do the same, but each layer keeps its own state."""
    run = Run(emulated, dense, ADAM)
    both(run)
    other = Sequential([FullyConnected(2)], "AdamW(lr=0.01, eps=0.001, weight_decay=0)")
    run.network[1].optimizer = other[0].optimizer
    with pytest.raises(ParameterError, match="another one than the first layer's"):
        run.step(5)


@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_a_launch_that_is_refused_counts_for_nothing(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """The driver's error is told by name; the next steps are those that would have been."""
    run = Run(emulated, dropped, optimizer)
    both(run)
    resident = Resident(run.X, run.labels)
    kernel, known = run.plan._kernels["float32"], counts(run)
    state = random.get_state()

    def refused(*_: Any, **__: Any) -> None:
        raise CUDADriverError(720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_kernel", refused)
        for call in (lambda: run.step(5), lambda: run.plan.run(resident, 9, 2)):
            with pytest.raises(
                BackendError, match=r"train_steps could not be launched on device 0.*TOO_LARGE"
            ):
                call()
    assert counts(run) == known
    assert random.get_state() == state
    assert (resident.left, resident.unread) == (5, 0)
    both(run, 2)
    run.agrees(2e-4)


def test_learning_rates_that_do_not_arrive(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(emulated, dense, ADAM)
    both(run)
    known = counts(run)
    for network in (run.network, run.gold.network):
        for layer in network.layers[1:]:
            layer.optimizer.set_params({"lr": 0.02})
    X, labels = emulated.asarray(run.X), emulated.asarray(run.labels)

    def full(*_: Any, **__: Any) -> Any:
        raise fake_cupy.memory.OutOfMemoryError(512, 512)

    with monkeypatch.context() as patch:
        patch.setattr(backend.module("cupy"), "asarray", full)
        with pytest.raises(DeviceMemoryError, match="not enough GPU memory for a step of 5"):
            run.plan.step(X, labels)
    assert counts(run) == known
    both(run)


def test_too_little_memory(emulated: Backend, pool: Any) -> None:
    """What the blocks leave for one another: the error says which batches fit, and they do."""
    run = Run(emulated, normalized, ADAM)
    batch, start = 4096, run.parameters()
    plan = run.network.compile((batch, *SHAPE), engine="mega")
    X, labels = emulated.asarray(run.X), emulated.asarray(run.labels)
    limit = pool.used_bytes() + (400 << 10)
    pool.set_limit(size=limit)
    with pytest.raises(DeviceMemoryError, match="enough GPU memory for a step of 4096") as e:
        plan.step(X, labels)
    found = re.search(r"about (\S+) MB, (\S+) KB are free; batches of up to (\d+) ", str(e.value))
    assert found is not None, str(e.value)
    assert float(found[1]) * 1024 > float(found[2])
    for name, array in run.parameters().items():
        np.testing.assert_array_equal(array, start[name])
    assert not any(counts(run))
    pool.set_limit(size=0)
    most = int(found[3])
    fits, larger = (
        run.network.compile((n, *SHAPE), engine="mega") for n in (most, int(1.2 * most))
    )
    pool.set_limit(size=pool.used_bytes() + (400 << 10) + 4096)
    with pytest.raises(DeviceMemoryError):
        larger.step(X, labels)
    want = run.gold.step(run.X, run.labels)
    assert float(fits.step(X, labels)) == pytest.approx(want, rel=2e-5)


def test_too_little_memory_to_compile(emulated: Backend, pool: Any) -> None:
    run = Run(emulated, dense)
    importlib.import_module("gpulayers.cuda.mega")
    gc.collect()
    pool.set_limit(size=pool.used_bytes() + 2048)
    with pytest.raises(DeviceMemoryError, match=r"needs about \S+ KB, 2.0 KB are free; not even"):
        run.network.compile((5, *SHAPE), engine="mega")
    pool.set_limit(size=0)
    both(run, 2)
    run.agrees()
