"""Recurrent layers in the captured step: the layers' losses, in few launches."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.layers import GRU, LSTM, RNN, Flatten, FullyConnected
from gpulayers.models import Sequential
from tests.conftest import Backend
from tests.layers.harness import default_dtype
from tests.models.graph_run import BATCH, SGD, Run, same
from tests.rules.step import BUDGET
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated

SHAPE, CLASSES = (3, 6), 4  # features, steps in time
LAST: dict[str, Any] = {"return_sequences": False}
Layers = Callable[[], list[Any]]

#: layers, and the launches of a step: prepare, product, steps; dense, loss twice; dense, steps,
#: gradients back; update
NETWORKS: dict[str, tuple[Layers, int]] = {
    "rnn": (lambda: [RNN(7, **LAST), FullyConnected(CLASSES)], 10),
    "lstm": (lambda: [LSTM(6, **LAST), FullyConnected(CLASSES)], 10),
    "gru": (lambda: [GRU(6, **LAST), FullyConnected(CLASSES)], 10),
    "all outputs": (lambda: [LSTM(4, truncate=4), Flatten(), FullyConnected(CLASSES)], 12),
    # five more: product, steps; steps, gradients, the input's gradient; time stays in front
    "two": (lambda: [GRU(5), RNN(4, "ReLU", **LAST), FullyConnected(CLASSES)], 15),
    "three": (lambda: [RNN(3), LSTM(5), GRU(4), Flatten(), FullyConnected(CLASSES)], 24),
}


def run_of(
    backend: Backend, layers: Layers, optimizer: str = SGD, shape: tuple[int, ...] = SHAPE
) -> Run:
    return Run(backend, layers, optimizer, shape, CLASSES)


def pair(backend: Backend, layers: Layers, optimizer: str = SGD) -> tuple[Run, Run]:
    return run_of(backend, layers, optimizer), run_of(backend, layers, optimizer).compile()


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_launches(emulated: Backend, name: str) -> None:
    layers, launches = NETWORKS[name]
    plain, planned = pair(emulated, layers)
    sizes = (BATCH, BATCH, 2, BATCH, 2)
    got = [planned.step()]
    with fake_cupy.count() as captured:
        got += [planned.step()]
    got += [planned.step(n) for n in sizes[2:]]
    np.testing.assert_allclose(got, [plain.step(n) for n in sizes], rtol=2e-5)
    same(planned, plain)
    with fake_cupy.count() as events, fake_cupy.forbid("sync", "h2d", "d2h", "iterate"):
        planned.plan.step(planned.X, planned.labels)
    assert events["graph_launch"] == 1
    graph = next(iter(planned.plan._programs.values())).graphs[True]
    assert graph._recording.launches == launches
    # but for the copies to time's front or back, they are all our own kernels
    kernels = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    assert launches - kernels == {"all outputs": 2, "three": 2}.get(name, 0)
    assert "captured as one CUDA graph" in planned.plan.describe()


def test_adam_and_halves_of_a_step(emulated: Backend) -> None:
    plain, planned = pair(emulated, NETWORKS["gru"][0], "Adam(lr=0.003)")
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain, 2e-4)
    planned.plan.gradients(planned.X, planned.labels)
    plain.loss.forward(plain.labels, plain.network.forward(plain.X))
    plain.network.backward(plain.loss.backward(), input_grad=False)
    places = planned.plan._places
    gradients = {
        (id(layer), name): grad
        for (layer, name), grad in zip(places, planned.plan.gradient_arrays(), strict=True)
    }
    for ours, theirs in zip(planned.network.layers, plain.network.layers, strict=True):
        for name, want in theirs.gradients.items():
            got = gradients[id(ours), name]
            np.testing.assert_allclose(got.get(), want.get(), atol=1e-6, rtol=1e-4)


def test_half_precision(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and arrays of float16, gradients and master weights of float32."""
    wide = run_of(emulated, NETWORKS["lstm"][0])
    with default_dtype("float16"):
        run = run_of(emulated, NETWORKS["lstm"][0])
    run.X = run.X.astype("float16")
    run.compile()
    got, want = [run.step() for _ in range(3)], [wide.step() for _ in range(3)]
    np.testing.assert_allclose(got, want, rtol=2e-3)
    same(run, wide, 2e-3)
    assert {p.dtype.name for p in run.network.parameters.values()} == {"float16"}
    assert "captured as one CUDA graph" in run.plan.describe()
    # and step by step
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.sequence"), "_MOST_STREAMED", -1)
    np.testing.assert_allclose(run.compile().step(), wide.step(), rtol=2e-3)


def test_gradients_by_tensor_cores(emulated: Backend) -> None:
    """Those of the weights, in TF32, for sizes that come in runs of 16 bytes."""
    plain, planned = (
        run_of(emulated, lambda: [GRU(8, **LAST), FullyConnected(CLASSES)], shape=(4, 6))
        for _ in range(2)
    )
    planned.compile(precision="tf32")
    planned.step()
    with fake_cupy.count() as captured:
        planned.step()
    assert captured["kernel:sequence_weight_grad<float, float, Tensor>"] == 1
    for _ in range(2):
        plain.step()
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=1e-3)
    same(planned, plain, 1e-3)


def test_frozen(emulated: Backend) -> None:
    plain, planned = pair(emulated, NETWORKS["two"][0])
    for run in (plain, planned):
        run.step()
        run.network[1].freeze()
    planned.step()
    planned.step()
    for _ in range(2):  # layers that are frozen must not be asked to update
        plain.loss.forward(plain.labels, plain.network.forward(plain.X))
        plain.network.backward(plain.loss.backward(), input_grad=False)
        plain.network.update()
    same(planned, plain)


@pytest.mark.parametrize("name", ["gru", "two"])
def test_in_groups_of_blocks(emulated: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for weights that one block has no room for: a memset each way more."""
    module = importlib.import_module("gpulayers.cuda.sequence")
    monkeypatch.setattr(module, "_MOST_BESIDE_GROUPS", -1)
    monkeypatch.setitem(fake_cupy.cuda.ATTRIBUTES, "MultiProcessorCount", 3)
    layers, launches = NETWORKS[name]
    plain, planned = pair(emulated, layers)
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain)
    graph = next(iter(planned.plan._programs.values())).graphs[True]
    assert graph._recording.launches == launches + (4 if name == "two" else 2)
    said = planned.plan.describe()
    assert "\nGRU: ahead in one launch of 1 groups of 3 blocks, back in one launch of 1" in said
    said = planned.compile(precision="tf32").plan.describe()
    assert said.count("blocks, by tensor cores") == (4 if name == "two" else 2)


@pytest.mark.parametrize("name", ["lstm", "two"])
def test_step_by_step(emulated: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are too many, and activations without a kernel, are captured all the same."""
    layers = NETWORKS[name][0]
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.sequence"), "_MOST_STREAMED", -1)
    plain, planned = pair(emulated, layers)
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain)
    graph = next(iter(planned.plan._programs.values())).graphs[True]
    assert graph._recording.launches > 2 * 2 * SHAPE[1]
    assert ": ahead step by step: it would read too much" in planned.plan.describe()


def test_other_activations(emulated: Backend) -> None:
    plain, planned = pair(
        emulated, lambda: [LSTM(4, act_fn="ReLU", **LAST), FullyConnected(CLASSES)]
    )
    for _ in range(3):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain)


def test_a_layer_with_methods_of_its_own_is_called(emulated: Backend) -> None:
    run = run_of(emulated, NETWORKS["lstm"][0])
    layer = run.network[0]
    forward, calls = layer.forward, []
    layer.forward = lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
    run.compile().step()
    assert calls
    assert "one by one: LSTM does not treat each" in run.plan.describe()


@pytest.mark.parametrize(("hidden", "n_ex"), [(128, 32), (512, 32), (512, 256)])
def test_a_classifier_of_usual_size(
    emulated: Backend, hidden: int, n_ex: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launches and bytes of its arrays; only one block of each kernel is computed, and none of
    those that wait for one another."""
    random.seed(0)
    network: Any = Sequential([LSTM(hidden, **LAST), FullyConnected(10)], SGD)
    X = emulated.asarray(np.zeros((n_ex, 28, 8), np.float32))
    labels = emulated.asarray(np.zeros(n_ex, np.int64))
    monkeypatch.setattr(fake_cupy.state, "launch_options", {"only_blocks": 1})
    plan = network.compile(X.shape)
    plan.step(X, labels)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    nodes = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    found = {"nodes": nodes, "kernel_bytes": captured["kernel_bytes"]}
    assert found == BUDGET["graph"][f"lstm {hidden} b{n_ex}"]
    assert nodes <= 11
