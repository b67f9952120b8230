"""A planned step that fails on its way: it counts for nobody, the next one does all its work."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import random, set_default_dtype
from gpulayers.errors import BackendError, DeviceMemoryError, ParameterError, ShapeError
from gpulayers.layers import BatchNorm1D, BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected
from gpulayers.models import Activation, Sequential, graph_plan
from gpulayers.models.resident import Resident
from gpulayers.training import Trainer
from gpulayers.training.data import Dataset, Split
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SGD, SHAPE, Run, pair, same
from tests.support.fake_cupy.memory import OutOfMemoryError

pytestmark = pytest.mark.emulated
ADAM = "Adam(lr=0.003, eps=0.001)"


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def small() -> list[Any]:
    return [Conv2D(3, (3, 3), pad=1, act_fn="ReLU"), Flatten(), FullyConnected(CLASSES)]


def wide() -> list[Any]:
    return [Flatten(), FullyConnected(60, act_fn="ReLU"), FullyConnected(CLASSES)]


def normalized() -> list[Any]:
    """What a step changes on its way forward: running statistics, random numbers."""
    return [
        *(Conv2D(3, (3, 3), pad=1), BatchNorm2D(momentum=0.5), Activation("ReLU"), Flatten()),
        *(FullyConnected(7), BatchNorm1D(momentum=0.5), Activation("ReLU"), Dropout(0.3)),
        FullyConnected(CLASSES),
    ]


def refusing(error: Exception) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise error

    return refused


def twins(device: Backend, layers: Any, optimizer: str) -> tuple[Run, Run]:
    """Two of a kind, both planned: one will fail, the other will not."""
    return Run(device, layers, optimizer).compile(), Run(device, layers, optimizer).compile()


def counts(run: Run) -> list[Any]:
    learned = [la for _, la in run.network.walk() if la.trainable and la.gradients]
    caches = [entry for la in learned for entry in la.optimizer.cache.values()]
    steps = [entry["t"] for entry in caches if isinstance(entry, dict)]
    return [*(la.optimizer.cur_step for la in learned), *steps]


# ------------------------------------------------------------------------------------- the build


@pytest.mark.parametrize("when", ["first", "frozen"])
def test_a_build_that_fails_is_made_anew(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The step after the error trains."""
    plain, planned = pair(emulated, small, ADAM)
    if when == "frozen":
        planned.step()
        plain.step()
        planned.network[0].freeze()
    with monkeypatch.context() as patch:
        patch.setattr(graph_plan, "FlatUpdate", refusing(OutOfMemoryError(1 << 20, 0)))
        for _ in range(2):
            with pytest.raises(DeviceMemoryError, match="a step of 5 examples"):
                planned.step()
        with pytest.raises(DeviceMemoryError):
            planned.plan.run(Resident(planned.X, planned.labels), 1)
        with pytest.raises(ParameterError, match="no gradients to update by"):
            planned.plan.update()
    if when == "frozen":
        planned.network[0].unfreeze()
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain, 2e-4)


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_a_state_of_another_shape(emulated: Backend, optimizer: str) -> None:
    """Of an optimizer; each step says so, until it is mended."""
    plain, planned = pair(emulated, small, optimizer)
    wrong = emulated.asarray(np.zeros(2, np.float32))
    cache = planned.network[2].optimizer.cache
    cache["W"] = {"t": 0, "mean": wrong, "var": wrong} if optimizer == ADAM else wrong
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"optimizer of .*'W': the plan was made for shape"):
            planned.step()
    del cache["W"]
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain, 2e-4)


def test_a_master_of_another_shape_is_not_forgotten(emulated: Backend) -> None:
    pytest.importorskip("ml_dtypes")
    set_default_dtype("bfloat16")
    try:
        run = Run(emulated, small, SGD)
        run.X = run.X.astype(run.network.dtype)
        run.compile()
    finally:
        set_default_dtype("float32")
    wrong = emulated.asarray(np.zeros(2, np.float32))
    good = emulated.asarray(np.zeros(run.network[2].parameters["W"].shape, np.float32))
    run.network[2].optimizer.cache["W"] = {"state": good, "master": wrong}
    for _ in range(2):
        with pytest.raises(ShapeError, match="the plan was made for shape"):
            run.step()


def test_memory_for_the_parameters_too_little(emulated: Backend, pool: Any) -> None:
    """What the error says fits does, and a fifth more does not."""
    run = Run(emulated, wide, ADAM)
    plan = run.network.compile((512, *SHAPE))
    X = emulated.asarray(np.ones((512, *SHAPE), np.float32))
    labels = emulated.asarray(np.zeros(512, np.int64))
    for room in (2, 60):
        pool.set_limit(size=pool.used_bytes() + (room << 10))
        with pytest.raises(DeviceMemoryError, match="KB are free; not even one example fits") as e:
            plan.step(X, labels)
        assert ("it needs about" in str(e.value)) == (room > 2)
    pool.set_limit(size=pool.used_bytes() + 500_000)
    with pytest.raises(DeviceMemoryError) as e:
        plan.step(X, labels)
    found = re.search(r"about (\S+) KB, (\S+) KB are free; batches of up to (\d+) ", str(e.value))
    assert found is not None, str(e.value)
    assert float(found[1]) > float(found[2])
    plan.step(X[: int(found[3])], labels[: int(found[3])])
    with pytest.raises(DeviceMemoryError):
        plan.step(X[: int(1.2 * int(found[3]))], labels[: int(1.2 * int(found[3]))])


# -------------------------------------------------------------------------------- steps that fail


@pytest.mark.parametrize("error", [BackendError("no such kernel"), OutOfMemoryError(1 << 20, 0)])
@pytest.mark.parametrize("there", [0, 2])
def test_a_first_step_that_fails_leaves_the_dataset_where_it_was(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, error: Exception, there: int
) -> None:
    """Behind the launch that records the loss, of a size that is new: the same batches, losses and
    statistics afterwards as without the error. `there`: steps before it."""
    failing, calm = twins(emulated, normalized, ADAM)
    found = []
    for run in (failing, calm):
        random.seed(3)
        resident = Resident(run.X, run.labels)
        resident.begin(np.array([4, 2, 0, 1, 3]))
        assert run.plan.run(resident, there, 1) == there
        if run is failing:
            before, state = run.parameters(), random.get_state()
            with monkeypatch.context() as patch:
                patch.setattr(graph_plan, "backward_into", refusing(error))
                with pytest.raises(BackendError, match=r"no such kernel|not enough GPU memory"):
                    run.plan.run(resident, 1, 2)
            assert resident.left == 5 - there
            assert emulated.asnumpy(resident.position) == [there]
            assert emulated.asnumpy(resident.done) == [there]
            assert random.get_state() == state
            for name, array in run.parameters().items():
                np.testing.assert_array_equal(array, before[name], err_msg=name)
        while resident.left:
            run.plan.run(resident, 9, 2)
        found.append([*resident.read(), random.get_state(), counts(run)])
    for got, want in zip(*found, strict=True):
        np.testing.assert_equal(got, want)
    same(failing, calm, 0.0)


def test_an_epoch_begins_with_the_counters_of_the_host(emulated: Backend) -> None:
    run = Run(emulated, small, SGD).compile()
    resident = Resident(run.X, run.labels)
    run.plan.run(resident, 1, 2)
    resident.done.fill(7)
    resident.begin()
    run.plan.run(resident, 1, 2)
    assert emulated.asnumpy(resident.done) == [2]
    assert resident.read()[0].all()


def test_the_layers_go_on_from_there(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer whose plan fails in its first step: the figures and statistics of one without."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, *SHAPE), np.uint8), rng.integers(0, CLASSES, n))

    data = Dataset("noise", split(4 * BATCH), split(BATCH), ("a", "b", "c"))
    results = []
    for fails in (False, True):
        run = Run(emulated, normalized, SGD)
        settings: Any = {"epochs": 1, "progress": False, "seed": 1}
        settings["compile"] = None if fails else False
        with monkeypatch.context() as patch:
            if fails:
                broken = refusing(BackendError("no such kernel"))
                patch.setattr(graph_plan, "backward_into", broken)
            history = Trainer(run.network, data, BATCH, device="gpu", **settings).fit()
        results.append((history[0].train_loss, run.parameters()))
    (want, theirs), (got, ours) = results
    assert got == pytest.approx(want, rel=1e-5)
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-5, err_msg=name)


def test_an_update_that_fails_after_the_step(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that differ: the update is no part of the graph, and its batch is not used up."""
    run = Run(emulated, small, SGD).compile()
    run.network[0].optimizer.set_params({"momentum": 0.5})
    resident = Resident(run.X, run.labels)
    run.plan.run(resident, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(run.plan, "_update_one_by_one", refusing(BackendError("refused")))
        with pytest.raises(BackendError, match="refused"):
            run.plan.run(resident, 1, 2)
    assert emulated.asnumpy(resident.position) == [2]
    assert run.plan.run(resident, 9, 2) == 2
    assert np.isfinite(resident.read()[0]).all()


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_a_graph_that_is_not_launched(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    failing, calm = twins(emulated, normalized, optimizer)
    graph, found = importlib.import_module("gpulayers.cuda.graph"), []
    for run in (failing, calm):
        random.seed(3)
        losses = [run.step() for _ in range(3)]
        if run is failing:
            known = counts(run)
            with monkeypatch.context() as patch:
                patch.setattr(graph, "launch", refusing(RuntimeError("refused")))
                with pytest.raises(RuntimeError, match="refused"):
                    run.step()
            assert counts(run) == known
        found.append([*losses, *(run.step() for _ in range(2)), counts(run)])
    assert found[0] == found[1]
    same(failing, calm, 0.0)


def test_a_second_half_that_fails(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, calm = twins(emulated, small, ADAM)
    flat = importlib.import_module("gpulayers.cuda.flat")
    for run in (failing, calm):
        for _ in range(2):
            run.plan.gradients(run.X, run.labels)
            if run is failing:
                known = counts(run)
                with monkeypatch.context() as patch:
                    patch.setattr(flat, "flat_update", refusing(BackendError("refused")))
                    with pytest.raises(BackendError, match="refused"):
                        run.plan.update()
                assert counts(run) == known
            run.plan.update()
    assert counts(failing) == counts(calm)
    same(failing, calm, 0.0)


def test_a_schedule_that_fails(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last layer, when those of the others have been asked."""
    failing, calm = twins(emulated, small, ADAM)
    for run in (failing, calm):
        for _ in range(3):
            run.step()
        if run is failing:
            known, optimizer = counts(run), run.network[2].optimizer
            with monkeypatch.context() as patch:
                patch.setattr(optimizer, "lr_scheduler", refusing(ValueError("no rate")))
                with pytest.raises(ValueError, match="no rate"):
                    run.step()
            assert counts(run) == known
        run.step()
    same(failing, calm, 0.0)


def test_rules_that_only_compute_alike(emulated: Backend) -> None:
    """Adam and AdamW without weight decay: each layer keeps its own state."""
    plain, planned = pair(emulated, small, ADAM)
    for run in (plain, planned):
        run.network[2].optimizer = Sequential(
            [FullyConnected(2)], "AdamW(lr=0.003, eps=0.001, weight_decay=0)"
        )[0].optimizer
        for _ in range(3):
            run.step()
    same(planned, plain, 2e-4)
