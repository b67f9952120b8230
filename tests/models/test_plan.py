"""A planned step gives what the layers give one by one: losses, outputs, parameters, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import models, random, threads
from gpulayers.layers import (
    Conv2D,
    Flatten,
    FullyConnected,
)
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.models import plan as plan_module
from gpulayers.models.plan import CompiledNetwork
from gpulayers.ops.cpu import _pooled
from tests.models.planned import (
    IMAGE,
    NETWORKS,
    assert_alike,
    batches,
    by_example,
    fused,
    plain_step,
    twins,
)


@pytest.mark.parametrize("kind", NETWORKS)
def test_steps_equal_those_of_the_layers(backend: Any, kind: str) -> None:
    plain, planned = twins(NETWORKS[kind], backend)
    plan = planned.compile(batch_shape=(7, *IMAGE))
    loss = SoftmaxCrossEntropy()
    first = {k: backend.asnumpy(v).copy() for k, v in plain.parameters.items()}
    for i, (X, labels) in enumerate(batches(backend, 4, 7)):
        kept = backend.asnumpy(X).copy()
        random.seed(i)
        expected = plain_step(plain, loss, X, labels)
        random.seed(i)
        assert float(plan.step(X, labels)) == pytest.approx(expected, rel=2e-5)
        np.testing.assert_array_equal(backend.asnumpy(X), kept)
    assert_alike(backend, planned, plain, 2e-4 if kind == "mixed" else 2e-5)
    moved = [np.abs(backend.asnumpy(v) - first[k]).max() for k, v in planned.parameters.items()]
    assert min(moved) > 0  # every parameter learned, so the comparison was of something
    assert all(not np.any(backend.asnumpy(g)) for g in planned.gradients.values())


@pytest.fixture
def threads_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are cut however small they are."""
    monkeypatch.setattr(plan_module, "_WORTH_THREADS", 0.0)


def test_only_large_batches_are_cut(numpy_backend: Any) -> None:
    with threads.use_threads(2):
        small = by_example().compile(batch_shape=(64, *IMAGE))
        assert small._parts(64) == [slice(0, 64)]
        layers = [Conv2D(64, (3, 3), act_fn="ReLU"), Conv2D(64, (3, 3)), Flatten()]
        large = Sequential([*layers, FullyConnected(4)]).compile(batch_shape=(64, 32, 32, 3))
        assert large._parts(64) == [slice(0, 32), slice(32, 64)]
        assert large._parts(8) == [slice(0, 8)] or large._work * 8 >= plan_module._WORTH_THREADS


@pytest.mark.usefixtures("threads_pay")
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_cut_batches_give_the_same_and_repeat_exactly(numpy_backend: Any, count: int) -> None:
    losses: list[list[float]] = []
    for _ in range(2):
        plain, planned = twins(by_example, numpy_backend)
        with threads.use_threads(count):
            plan = planned.compile(batch_shape=(33, *IMAGE))
            assert len(plan._parts(33)) == count
            values = [plan.step(X, labels) for X, labels in batches(numpy_backend, 3, 33)]
        loss = SoftmaxCrossEntropy()
        for value, (X, labels) in zip(values, batches(numpy_backend, 3, 33), strict=True):
            assert value == pytest.approx(plain_step(plain, loss, X, labels), rel=1e-5)
        assert_alike(numpy_backend, planned, plain, 2e-5)
        losses.append([float(v) for v in values])
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("threads_pay")
def test_outputs_are_those_of_the_whole_batch_in_order(backend: Any) -> None:
    plain, planned = twins(by_example, backend)
    plan = planned.compile(batch_shape=(33, *IMAGE))
    ((X, labels),) = batches(backend, 1, 33)
    with threads.use_threads(3):
        plan.step(X, labels)
    expected = backend.asnumpy(plain.forward(X, False))
    np.testing.assert_allclose(backend.asnumpy(plan.outputs), expected, rtol=1e-4, atol=1e-5)


def test_smaller_batches_and_an_empty_one(backend: Any) -> None:
    plain, planned = twins(by_example, backend)
    plan = planned.compile(batch_shape=(8, *IMAGE))
    loss = SoftmaxCrossEntropy()
    for n in (8, 3, 1, 8):
        ((X, labels),) = batches(backend, 1, n)
        assert float(plan.step(X, labels)) == pytest.approx(plain_step(plain, loss, X, labels))
    assert_alike(backend, planned, plain, 2e-5)


def test_float64_agrees_to_rounding(backend: Any) -> None:
    pair = []
    for _ in range(2):
        random.seed(1)
        network = fused()
        from gpulayers.backend import default_dtype, set_default_dtype

        former = default_dtype()
        set_default_dtype(np.float64)
        try:
            network.forward(backend.asarray(np.zeros((1, *IMAGE))), False)
        finally:
            set_default_dtype(former)
        pair.append(network)
    plain, planned = pair
    plan = planned.compile(batch_shape=(5, *IMAGE), precision="fp64")
    for X, labels in batches(backend, 3, 5, np.float64):
        expected = plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        assert float(plan.step(X, labels)) == pytest.approx(expected, rel=1e-12)
    assert_alike(backend, planned, plain, 1e-11)


def test_bytes_go_through_the_networks_pixels(backend: Any) -> None:
    plain, planned = twins(by_example, backend)
    X = backend.asarray(np.random.default_rng(0).integers(0, 256, (6, *IMAGE)).astype(np.uint8))
    labels = backend.asarray(np.array([0, 1, 2, 3, 0, 1]))
    value = planned.compile(batch_shape=(6, *IMAGE)).step(X, labels)
    assert float(value) == pytest.approx(plain_step(plain, SoftmaxCrossEntropy(), X, labels))


class OwnReLU:
    """A user's activation: no kernel, so nothing may be fused with it."""

    kernel = None

    def fn(self, z: Any) -> Any:
        return 2 * z

    def grad(self, x: Any) -> Any:
        return 0 * x + 2


def test_other_losses_schedules_and_activations(backend: Any) -> None:
    from gpulayers.activations import ActivationBase, ReLU

    class Own(OwnReLU, ActivationBase):
        pass

    class Leaning(ReLU):
        def fn(self, z: Any) -> Any:
            return z * (z > 0) + 0.1 * z

        def grad(self, x: Any) -> Any:
            return (x > 0).astype(x.dtype) + x.dtype.type(0.1)

    def make() -> Sequential:
        optimizer = "SGD(lr=0.05, lr_scheduler=KingScheduler(initial_lr=0.05))"
        layers = [
            Conv2D(3, (3, 3), act_fn=Own()),
            Conv2D(3, (3, 3), act_fn=Leaning()),
            Flatten(),
            FullyConnected(4),
        ]
        return Sequential(layers, optimizer)

    plain, planned = twins(make, backend)
    smooth = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=[1, 2, 1, 0.5])
    plan = planned.compile(batch_shape=(6, *IMAGE), loss=smooth)
    for X, labels in batches(backend, 3, 6):
        other = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=[1, 2, 1, 0.5])
        value = plan.gradients(X, labels)
        plan.update(float(value))
        assert float(value) == pytest.approx(plain_step(plain, other, X, labels), rel=1e-5)
    assert_alike(backend, planned, plain, 2e-5)


def test_sum_of_the_losses(backend: Any) -> None:
    plain, planned = twins(by_example, backend)
    plan = planned.compile(batch_shape=(6, *IMAGE), loss=SoftmaxCrossEntropy("sum"))
    ((X, labels),) = batches(backend, 1, 6)
    expected = plain_step(plain, SoftmaxCrossEntropy("sum"), X, labels)
    assert float(plan.step(X, labels)) == pytest.approx(expected, rel=1e-5)
    assert_alike(backend, planned, plain, 2e-5)


def test_compile_takes_an_optimizer_and_names_what_is_fused(backend: Any) -> None:
    network = fused()
    plan = network.compile(batch_shape=[7, *IMAGE], optimizer="AdaGrad(lr=0.5)")
    assert isinstance(plan, CompiledNetwork) and "Sequential" in repr(plan)
    assert type(network.layers[0].optimizer).__name__ == "AdaGrad"
    lines = plan.describe().splitlines()[1:]
    assert lines[:3] == [
        "Conv2D + ReLU + max pooling",
        "Conv2D + ReLU + max pooling",
        "Conv2D",
    ]
    assert lines.count("FullyConnected + ReLU") == 2


def test_models_of_the_zoo_can_be_planned(backend: Any) -> None:
    if backend.name != "numpy":
        pytest.skip("too slow on the emulator; the layers are covered above")
    for name in models.MODELS:
        random.seed(0)
        network = models.build(name, 4, (16, 16, 3), "Adam(lr=0.002)")
        plan = network.compile(batch_shape=(8, 16, 16, 3))
        rng = np.random.default_rng(0)
        X = rng.standard_normal((8, 16, 16, 3)).astype(np.float32)
        labels = rng.integers(0, 4, 8)
        losses = [float(plan.step(X, labels)) for _ in range(12)]
        assert losses[-1] < 0.7 * losses[0], (name, losses)


def test_methods_a_user_put_in_are_called(numpy_backend: Any) -> None:
    plain, planned = twins(fused, numpy_backend)
    calls: list[str] = []
    for network in (plain, planned):
        for i, name in ((0, "forward"), (4, "forward"), (9, "backward"), (11, "update")):
            method = getattr(network.layers[i], name)

            def counted(*args: Any, _method: Any = method, _i: int = i, **kwargs: Any) -> Any:
                calls.append(f"{_i}")
                return _method(*args, **kwargs)

            setattr(network.layers[i], name, counted)
    ((X, labels),) = batches(numpy_backend, 1, 7)
    plain_step(plain, SoftmaxCrossEntropy(), X, labels)
    expected, calls[:] = sorted(calls), []
    plan = planned.compile(batch_shape=(7, *IMAGE))
    calls.clear()  # compile runs one example forward
    plan.step(X, labels)
    assert sorted(calls) == expected == ["0", "11", "4", "9"]
    assert_alike(numpy_backend, planned, plain, 2e-5)


def test_pooled_convolutions_with_what_is_not_finite(numpy_backend: Any) -> None:
    """-inf in a pixel: ReLU makes 0 of it, so the loss is finite, and NaN of its gradient."""
    plain, planned = twins(by_example, numpy_backend)
    for network in (plain, planned):
        W = network.layers[0].parameters["W"]
        np.abs(W, out=W)
    ((X, labels),) = batches(numpy_backend, 1, 6)
    X[2, 5, 4, 1] = -np.inf
    plan = planned.compile(batch_shape=X.shape)
    loss = SoftmaxCrossEntropy()
    with np.errstate(invalid="ignore"):
        expected = loss.forward(labels, plain.forward(X))
        plain.backward(loss.backward(), input_grad=False)
        assert plan.gradients(X, labels) == pytest.approx(float(expected), rel=1e-5)
    found = {a.size: a for a in plan.gradient_arrays()}
    assert np.isfinite(float(expected)) and np.isnan(found[90]).any()
    for name, gradient in plain.gradients.items():
        np.testing.assert_allclose(
            found[gradient.size].reshape(gradient.shape), gradient, 1e-4, 1e-5, err_msg=name
        )


def test_pooled_convolutions_whose_gradient_is_not_finite(
    numpy_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan then does all over again, one operation after the other."""
    calls: list[bool] = []

    def gives_up(self: Any, dY: Any, inputs: bool) -> None:
        calls.append(inputs)

    monkeypatch.setattr(_pooled.PooledConvolutions, "backward", gives_up)
    plain, planned = twins(by_example, numpy_backend)
    ((X, labels),) = batches(numpy_backend, 1, 6)
    expected = plain_step(plain, SoftmaxCrossEntropy(), X, labels)
    value = planned.compile(batch_shape=X.shape).step(X, labels)
    assert float(value) == pytest.approx(expected, rel=1e-5) and calls == [False]
    assert_alike(numpy_backend, planned, plain, 2e-5)
