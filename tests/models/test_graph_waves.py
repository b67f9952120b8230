"""Convolutions along time and their gates: the layer, and a stack of them in the captured step."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers import models, random
from gpulayers.errors import ShapeError
from gpulayers.layers import Conv1D, Flatten, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Activation, GatedActivation, Residual, Sequential
from tests.conftest import Backend
from tests.rules.step import BUDGET
from tests.support import fake_cupy
from tests.support.compare import assert_close

SGD = "SGD(lr=0.1, momentum=0.9)"


def waves(width: int, depth: int, classes: int) -> Any:
    """A stack as in WaveNet's figure 4, on sequences of one channel."""
    blocks = [
        Residual(
            [
                Conv1D(2 * width, 2, "causal", dilation=2**i - 1),
                GatedActivation(),
                Conv1D(width, 1),
            ]
        )
        for i in range(depth)
    ]
    head = [Activation("ReLU"), Conv1D(width, 1, act_fn="ReLU"), Flatten(), FullyConnected(classes)]
    return Sequential([Conv1D(width, 1), *blocks, *head], SGD)


def steps(backend: Backend, planned: bool) -> tuple[list[float], Any, Any]:
    """Losses of five steps, the network, its plan."""
    random.seed(0)
    network, loss = waves(4, 3, 3), SoftmaxCrossEntropy()
    rng = np.random.default_rng(0)
    X = backend.asarray(rng.standard_normal((5, 13, 1)).astype(np.float32))
    labels = backend.asarray(rng.integers(0, 3, 5))
    network.forward(X[:1], retain_derived=False)
    plan = network.compile(X.shape) if planned else None
    losses = []
    for n in (5, 5, 2, 5, 2):
        if plan is not None:
            losses.append(float(plan.step(X[:n], labels[:n])))
            continue
        losses.append(float(loss.forward(labels[:n], network.forward(X[:n]))))
        network.backward(loss.backward(), input_grad=False)
        network.update()
    return losses, network, plan


@pytest.mark.emulated
def test_losses_are_those_of_the_layers(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)
    want, plain, _ = steps(emulated, False)
    got, network, plan = steps(emulated, True)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(
            network.parameters[name].get(), array.get(), atol=1e-5, err_msg=name
        )
    assert "captured as one CUDA graph" in plan.describe()


@pytest.mark.emulated
def test_launches_of_a_stack(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """As benchmarks/gpu.py times it. A block: convolution, gate, convolution, and the same back,
    with the sum of the gradients; that of the outputs is no kernel of ours."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)
    monkeypatch.setattr(fake_cupy.state, "launch_options", {"only_blocks": 1})
    network = waves(32, 10, 10)
    X = emulated.asarray(np.zeros((16, 1024, 1), np.float32))
    labels = emulated.asarray(np.zeros(16, np.int64))
    plan = network.compile(X.shape)
    plan.step(X, labels)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    kernels = {e.split(":")[1]: n for e, n in captured.items() if e.startswith("kernel:")}
    nodes = plan._last.graphs[True]._recording.launches
    found = {"nodes": nodes, "kernels": sum(kernels.values())}
    assert {**found, "kernel_bytes": captured["kernel_bytes"]} == BUDGET["graph"]["wavenet b16"]
    for way in ("forward", "backward"):
        assert kernels[f"gate_{way}<float, float, int>"] == 10


def test_the_layer(numpy_backend: Backend) -> None:
    """Against differences in float64; halves of another size than one, and no gate for one."""
    rng = np.random.default_rng(0)
    X, dY = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 3, 4))
    layer = GatedActivation()
    assert_close(layer.forward(X), np.tanh(X[..., :4]) / (1 + np.exp(-X[..., 4:])))
    dX, want = layer.backward(dY), np.empty_like(X)
    for i in np.ndindex(*X.shape):
        step = np.zeros_like(X)
        step[i] = 1e-6
        up, down = (models.GatedActivation().forward(x) for x in (X + step, X - step))
        want[i] = ((up - down) * dY).sum() / 2e-6
    np.testing.assert_allclose(dX, want, atol=1e-8)
    with pytest.raises(ShapeError, match="expected an even number of channels"):
        layer.forward(X[..., :3])
