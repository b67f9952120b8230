"""A planned step on a GPU that is not captured, and fails on its way: as one that is."""

from __future__ import annotations

import gc
import re
from typing import Any

import numpy as np
import pytest

from gpulayers import backend, random
from gpulayers.errors import DeviceMemoryError, ParameterError
from gpulayers.layers import BatchNorm2D, Conv2D, Flatten, FullyConnected
from gpulayers.models import Activation, Sequential, plan_nodes
from gpulayers.wrappers import Dropout as DropoutWrapper
from tests.conftest import Backend, switched_to
from tests.models.graph_run import BATCH, CLASSES, SGD, SHAPE, Run, same
from tests.models.test_graph_failures import not_specialised, refusing, small
from tests.support.fake_cupy.memory import OutOfMemoryError

pytestmark = pytest.mark.emulated
__all__ = ["not_specialised"]  # fixtures


class Own(Flatten):
    """Of which the plan does not know whether it can be captured."""

    def forward(self, X: Any, retain_derived: bool = True) -> Any:
        return super().forward(X, retain_derived)


def by_layers() -> list[Any]:
    return [
        *(Conv2D(8, (3, 3), pad=1), BatchNorm2D(momentum=0.5), Activation("ReLU"), Own()),
        *(DropoutWrapper(FullyConnected(7), 0.5), FullyConnected(CLASSES)),
    ]


def test_memory_for_a_step_that_is_not_captured(emulated: Backend, pool: Any) -> None:
    failing, calm = Run(emulated, by_layers, SGD), Run(emulated, by_layers, SGD)
    X = emulated.asarray(np.random.default_rng(0).standard_normal((256, *SHAPE)).astype("f4"))
    labels = emulated.asarray(np.zeros(256, np.int64))
    most, found = 0, []
    for run in (failing, calm):
        plan = run.network.compile((256, *SHAPE))
        random.seed(3)
        losses = [float(plan.step(X[:4], labels[:4]))]
        if run is failing:
            before, state = run.parameters(), random.get_state()
            gc.collect()
            pool.set_limit(size=pool.used_bytes() + (500 << 10))
            with pytest.raises(DeviceMemoryError, match="GPU memory for a step of 256") as e:
                plan.step(X, labels)
            match = re.search(
                r"about (\S+) MB, (\S+) KB are free; batches of up to (\d+) ", str(e.value)
            )
            assert match is not None, str(e.value)
            assert float(match[1]) * 1024 > float(match[2])
            most = int(match[3])
            assert random.get_state() == state
            for name, array in run.parameters().items():
                np.testing.assert_array_equal(array, before[name], err_msg=name)
            over = int(1.2 * most) + 1
            with pytest.raises(DeviceMemoryError):
                plan.step(X[:over], labels[:over])
        losses.append(float(plan.step(X[:most], labels[:most])))
        pool.set_limit(size=0)
        losses.append(float(plan.step(X[:4], labels[:4])))
        found.append(losses)
    assert found[0] == found[1]
    same(failing, calm, 0.0)


@pytest.mark.parametrize("engine", ["auto", "mega"])
def test_memory_for_the_halves_of_a_step(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The second one needs some for the state of an optimizer."""
    run = Run(emulated, small if engine == "mega" else by_layers, SGD).compile(engine=engine)
    full, last = refusing(OutOfMemoryError(1 << 20, 0)), run.network.layers[-1]
    with monkeypatch.context() as patch:
        patch.setattr(plan_nodes.DenseNode, "forward", full)
        with pytest.raises(DeviceMemoryError, match=r"a step of 5 examples, \S+ GB are free"):
            run.plan.gradients(run.X, run.labels)
    run.plan.gradients(run.X, run.labels)
    monkeypatch.setattr(last.optimizer, "update_planned", full)
    with pytest.raises(DeviceMemoryError, match="a step of 5 examples: it needs about"):
        run.plan.update()


@pytest.mark.parametrize("place", ["numpy", "emulated"])
def test_a_part_with_methods_of_its_own_forgets_the_batch_that_failed(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def network() -> Any:
        random.seed(0)
        layers = [DropoutWrapper(FullyConnected(4), 0.5), FullyConnected(CLASSES)]
        return Sequential(layers, SGD)

    with switched_to("numpy" if place == "numpy" else backend.current_backend()):
        X = backend.xp.asarray(np.random.default_rng(0).standard_normal((5, 6)).astype("f4"))
        labels = backend.xp.asarray(np.array([0, 1, 2, 1, 0]))
        found = []
        for fails in (True, False):
            net = network()
            plan = net.compile((5, 6))
            refused = refusing(RuntimeError("refused"))
            random.seed(1)
            if fails:
                with monkeypatch.context() as patch:
                    patch.setattr(plan_nodes.DenseNode, "backward", refused)
                    with pytest.raises(RuntimeError, match="refused"):
                        plan.step(X, labels)
                random.seed(1)
            found.append([float(plan.step(X, labels)) for _ in range(2)])
        assert found[0] == found[1]


def test_no_gradients_to_update_by(emulated: Backend) -> None:
    for engine in ("auto", "mega"):
        run = Run(emulated, small, SGD)
        plan = run.network.compile((BATCH, *SHAPE), engine=engine)
        with pytest.raises(ParameterError, match=r"no gradients to update by; call gradients\("):
            plan.update()
