"""Steps noted down as kernel calls equal those node by node, or are found out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import random, threads
from gpulayers.layers import Conv2D, Dropout, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Sequential
from gpulayers.models.plan import CompiledNetwork
from gpulayers.ops import workspace
from gpulayers.ops._kernels import use_engine
from gpulayers.ops.compiled import Compiled
from tests.support.workspaces import needs_workspaces

pytestmark = [pytest.mark.compiled, needs_workspaces]

IMAGE = (12, 10, 2)


@pytest.fixture(autouse=True)
def compiled_engine() -> Any:
    with use_engine("compiled"):
        yield


def images() -> Sequential:
    """Kernels of all kinds: Winograd's, direct, pooled or not, dense layers large and small."""
    return Sequential(
        [
            Conv2D(9, (3, 3), pad=1, act_fn="ReLU"),
            Conv2D(8, (3, 3), pad=1),
            Activation("ReLU"),
            Pool2D((2, 2), stride=2),
            Conv2D(5, (2, 2)),
            Pool2D((3, 3), stride=1, pad=1),
            Conv2D(7, (1, 1), act_fn="ReLU"),
            Flatten(),
            FullyConnected(40, act_fn="ReLU"),
            FullyConnected(4),
        ],
        "Adam(lr=0.01)",
    )


def rows() -> Sequential:
    return Sequential([Flatten(), FullyConnected(3, act_fn="ReLU"), FullyConnected(4)], "SGD(0.1)")


def plan_of(make: Callable[[], Sequential], dtype: Any = np.float32) -> CompiledNetwork:
    from gpulayers import backend

    random.seed(5)
    before = backend.default_dtype()
    backend.set_default_dtype(dtype)
    try:
        network = make()
        return network.compile(batch_shape=(6, *IMAGE))
    finally:
        backend.set_default_dtype(before)


def batch(k: int, n: int = 6, dtype: Any = np.float32) -> tuple[Any, Any]:
    rng = np.random.default_rng(k)
    return rng.standard_normal((n, *IMAGE)).astype(dtype), rng.integers(0, 4, n)


def step_of(plan: CompiledNetwork, n: int = 6) -> Any:
    return plan._recordings._steps.get(n)


def is_recorded(plan: CompiledNetwork, n: int = 6) -> bool:
    step = step_of(plan, n)
    return step is not None and step.usable


def in_the_ordinary_way(plan: CompiledNetwork) -> CompiledNetwork:
    plan._recordings._possible = False
    return plan


def assert_same(ours: CompiledNetwork, theirs: CompiledNetwork) -> None:
    for (name, a), b in zip(
        ours.network.parameters.items(), theirs.network.parameters.values(), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=name)


def calls_of(plan: CompiledNetwork, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step that is run as calls."""
    step, ran = step_of(plan), []
    run = step.run
    monkeypatch.setattr(step, "run", lambda *a: ran.append(1) or run(*a))
    return ran


@pytest.mark.parametrize("make", [images, rows])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_equal_those_node_by_node(make: Any, dtype: Any) -> None:
    ours, theirs = plan_of(make, dtype), in_the_ordinary_way(plan_of(make, dtype))
    for k in range(5):
        X, labels = batch(k, dtype=dtype)
        kept = X.copy()
        if k == 3:
            labels = labels.astype(np.int16)[::-1][::-1]
        if k == 4:  # read-only, and not where NumPy would put it
            X = np.frombuffer(X.tobytes(), dtype=dtype).reshape(X.shape)
        assert ours.step(X, labels) == pytest.approx(theirs.step(X, labels), rel=1e-6)
        np.testing.assert_allclose(ours.outputs, theirs.outputs, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(X, kept)
    assert is_recorded(ours)
    for (name, a), b in zip(
        ours.network.parameters.items(), theirs.network.parameters.values(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_gradients_repeat_to_the_bit() -> None:
    plan = plan_of(images)
    (X, labels), found = batch(0), []
    for _ in range(4):
        plan.gradients(X, labels)
        found.append([grad.tobytes() for grad in plan.gradient_arrays()])
    assert is_recorded(plan)
    assert found[1] == found[2] == found[3]


def test_other_sizes_have_steps_of_their_own() -> None:
    ours, theirs = plan_of(images), in_the_ordinary_way(plan_of(images))
    for k, n in enumerate([6, 6, 2, 6, 2, 5, 5, 0, 6, 2, 1]):
        value = ours.step(*batch(k, n))
        assert value == pytest.approx(theirs.step(*batch(k, n)), rel=1e-5)
    assert is_recorded(ours, 2)
    assert is_recorded(ours, 1)
    assert len(ours._recordings._steps) == 2


@pytest.mark.parametrize("make", [images, rows])
def test_a_new_plan_goes_on_with_the_same_bits(make: Any) -> None:
    """What a resumed run does: its first step must not be computed in another way."""
    ours = plan_of(make)
    for k in range(3):
        ours.step(*batch(k))
    theirs = copy.deepcopy(ours.network).compile(batch_shape=(6, *IMAGE))
    for k in range(3, 6):
        for n in (6, 4):
            assert ours.step(*batch(k, n)) == theirs.step(*batch(k, n))
            assert_same(ours, theirs)


def test_what_was_given_away_is_not_written_over() -> None:
    plan = plan_of(rows)
    for k in range(3):
        plan.step(*batch(k))
    plan.gradients(*batch(3))
    outputs, grads = plan.outputs, plan.gradient_arrays()
    kept = [array.copy() for array in (outputs, *grads)]
    plan.update()
    plan.step(*batch(4))
    plan.step(*batch(5))
    for array, before in zip((outputs, *grads), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_gradients_looked_at_and_let_go_leave_it_recorded(monkeypatch: Any) -> None:
    plan, clipped = plan_of(rows), in_the_ordinary_way(plan_of(rows))
    for k in range(2):
        plan.step(*batch(k))
        clipped.step(*batch(k))
    ran = calls_of(plan, monkeypatch)
    for k in range(3):
        for each in (plan, clipped):
            each.gradients(*batch(k))
            for grad in each.gradient_arrays():
                grad *= 0.5
            each.update()
            del grad
    assert len(ran) == 3
    for a, b in zip(
        plan.network.parameters.values(), clipped.network.parameters.values(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def freeze(plan: CompiledNetwork) -> None:
    plan.network[0].freeze()


def replace_weights(plan: CompiledNetwork) -> None:
    layer = plan.network[8]
    layer.parameters["W"] = layer.parameters["W"] * 0.5


def other_optimizer(plan: CompiledNetwork) -> None:
    plan.network.set_optimizer("SGD(lr=0.5, clip_norm=0.1)")


@pytest.mark.parametrize("change", [freeze, replace_weights, other_optimizer])
def test_changes_of_the_network_are_seen(change: Any) -> None:
    ours, theirs = plan_of(images), in_the_ordinary_way(plan_of(images))
    for k in range(8):
        if k == 3:
            assert is_recorded(ours)
            change(ours)
            change(theirs)
        assert ours.step(*batch(k)) == pytest.approx(theirs.step(*batch(k)), rel=1e-4)
    for (name, a), b in zip(
        ours.network.parameters.items(), theirs.network.parameters.values(), strict=True
    ):
        # Adam makes a whole step of a gradient that is nearly nothing
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=name)


def test_threads_and_engines_may_change() -> None:
    ours, theirs = plan_of(images), in_the_ordinary_way(plan_of(images))
    for k, (engine, count) in enumerate(
        [("compiled", 2), ("compiled", 2), ("numpy", 2), ("compiled", 1), ("compiled", 3)]
    ):
        with use_engine(engine), threads.use_threads(count):
            assert ours.step(*batch(k)) == pytest.approx(theirs.step(*batch(k)), rel=1e-4)


@pytest.mark.parametrize("which", ["X", "W"])
def test_numbers_that_are_not_finite(which: str) -> None:
    """Winograd's kernels give up on them, and the input gradient on such weights."""
    ours, theirs = plan_of(images), in_the_ordinary_way(plan_of(images))
    for k in range(3):
        ours.step(*batch(k))
        theirs.step(*batch(k))
    for k in range(2):
        X, labels = batch(k)
        if which == "X":
            X[1, 3, 3, 0] = np.inf
        for plan in (ours, theirs):
            if which == "W":
                plan.network[1].parameters["W"][0, 0, 0, 0] = np.inf
            with np.errstate(all="ignore"):
                plan.gradients(X, labels)
        for a, b in zip(ours.gradient_arrays(), theirs.gradient_arrays(), strict=True):
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fresh", [True, False])
def test_what_numpy_computes_in_between_is_found_out(
    fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that no kernel gave would be that of another batch, in place or not."""

    def relu_backward(self: Any, dY: Any, Y: Any) -> Any:
        out = workspace.empty(dY.shape, dY.dtype) if fresh else dY
        return np.multiply(dY, Y > 0, out=out)

    monkeypatch.setattr(Compiled, "relu_backward", relu_backward)
    ours, theirs = plan_of(rows), in_the_ordinary_way(plan_of(rows))
    for k in range(4):
        assert ours.step(*batch(k)) == pytest.approx(theirs.step(*batch(k)), rel=1e-5)
    assert step_of(ours) is not None and not is_recorded(ours)


def test_arrays_from_elsewhere_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would keep them alive."""
    kernel = Compiled.relu_backward
    monkeypatch.setattr(Compiled, "relu_backward", lambda s, dY, Y: kernel(s, dY.copy(), Y))
    plan = plan_of(rows)
    for k in range(3):
        plan.step(*batch(k))
    assert step_of(plan) is not None and not is_recorded(plan)


def test_networks_with_other_layers_take_the_ordinary_way() -> None:
    plan = plan_of(lambda: Sequential([Flatten(), Dropout(0.5), FullyConnected(4)], "SGD(0.1)"))
    for k in range(3):
        plan.step(*batch(k))
    assert not plan._recordings._steps


def test_a_copy_of_a_plan_has_no_addresses() -> None:
    plan = plan_of(rows)
    for k in range(3):
        plan.step(*batch(k))
    twin = copy.deepcopy(plan)
    assert not twin._recordings._steps
    for k in range(3):
        assert twin.step(*batch(k)) == plan.step(*batch(k))
    assert_same(twin, plan)
