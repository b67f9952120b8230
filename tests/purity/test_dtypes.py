"""float64 never appears by accident: every array a float32 training step makes or keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, models, random
from tests.conftest import Backend
from tests.rules.step import Step

OPTIMIZERS = [
    "SGD(lr=0.01, momentum=0.9)",
    "AdaGrad(lr=0.01)",
    "RMSProp(lr=0.001)",
    "Adam(lr=0.001)",
]
ALLOWED = {"float32", "uint8", "int32", "int64", "bool"}  # no wider float; argmax, labels, masks
WIDE = {"float64", "complex64", "complex128"}


def reachable_arrays(thing: Any, kind: type, path: str = "", seen: set[int] | None = None) -> Any:
    """(path, array) for every array that an object holds, however deep."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, kind):
        yield path, thing
        return
    if isinstance(thing, dict):
        parts: Iterator[tuple[Any, Any]] = iter(thing.items())
    elif isinstance(thing, (list, tuple, set)):
        parts = iter(enumerate(thing))
    elif type(thing).__module__.startswith("gpulayers"):
        slots = [n for c in type(thing).__mro__ for n in getattr(c, "__slots__", ())]
        held = {n: getattr(thing, n) for n in slots if hasattr(thing, n)}
        parts = iter({**held, **getattr(thing, "__dict__", {})}.items())
    else:
        return
    for name, part in parts:
        yield from reachable_arrays(part, kind, f"{path}.{name}", seen)


def wrong_arrays(thing: Any, backend: Backend) -> list[str]:
    return [
        f"{path}: {array.dtype}"
        for path, array in reachable_arrays(thing, backend.xp.ndarray)
        if array.dtype.name not in ALLOWED
    ]


def test_the_search_goes_deep(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(2)
    layer.forward(np.ones((1, 3), np.float32))
    assert wrong_arrays(layer, numpy_backend) == []
    paths = {path for path, _ in reachable_arrays(layer, np.ndarray)}
    assert any("W" in path for path in paths)
    assert any("Z" in path for path in paths)
    layer.optimizer.cache["planted"] = {"mean": [np.zeros(2)]}
    assert [w.rpartition(".")[2] for w in wrong_arrays(layer, numpy_backend)] == ["0: float64"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lenet_stays_float32(backend: Backend, optimizer: str) -> None:
    step = Step(backend, optimizer)
    step.run()
    with backend.count() as events:
        logits = step.network.forward(step.X)
        dX = step.network.backward(logits)
        assert (logits.dtype, dX.dtype) == (np.float32, np.float32)
        assert wrong_arrays(step.network, backend) == []  # with gradients and derived variables
        step.network.update()
        losses = step.run()
    assert losses.dtype == np.float32
    assert wrong_arrays(step.network, backend) == []
    if backend.observed:  # arrays that came and went
        made = {name.partition(":")[2] for name in events if name.startswith("alloc:")}
        assert not made & WIDE
        assert "float32" in made


def _small_of_everything() -> Any:
    """Layers that LeNet does not have."""
    return models.Sequential(
        [
            layers.ZeroPad2D((1, 0, 2, 0)),
            layers.Conv2D(4, (3, 3), pad="same", act_fn="Tanh"),
            layers.BatchNorm2D(),
            layers.GroupNorm(2),
            layers.Upsample2D(2),
            layers.LayerNorm2D(),
            layers.Pool2D((2, 2), stride=2, mode="average"),
            layers.Deconv2D(3, (2, 2), stride=2, act_fn="Sigmoid"),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.FullyConnected(6, act_fn="GELU"),
            layers.BatchNorm1D(),
            layers.LayerNorm1D(),
            layers.Softmax(),
        ],
        "Adam(lr=0.001)",
    )


def test_other_layers_stay_float32(backend: Backend) -> None:
    random.seed(1)
    network = _small_of_everything()
    values = np.random.default_rng(1).standard_normal((3, 6, 6, 2), np.float32)
    X = backend.asarray(values)
    for _ in range(2):
        with backend.count() as events:
            Y = network.forward(X)
            dX = network.backward(Y)
            assert (Y.dtype, dX.dtype) == (np.float32, np.float32)
            assert wrong_arrays(network, backend) == []
            network.update()
        assert wrong_arrays(network, backend) == []
    if backend.observed:
        made = {name.partition(":")[2] for name in events if name.startswith("alloc:")}
        assert not made & WIDE


@pytest.mark.parametrize("pool", [None, "sum", "mean"])
def test_layers_of_other_inputs_stay_float32(backend: Backend, pool: str | None) -> None:
    random.seed(1)
    table, add = layers.Embedding(3, 7, pool, optimizer="Adam(lr=0.001)"), layers.Add("Tanh")
    product, average = layers.Multiply("GELU"), layers.GlobalAvgPool2D()
    ids = backend.asarray(np.arange(12).reshape(3, 4) % 7)
    for _ in range(2):
        with backend.count() as events:
            A = table.forward(ids)
            B = product.forward([add.forward([A, A]), A, A])
            Y = average.forward(B[:, :, None])
            dB = average.backward(Y)[:, :, 0]
            dS, dA, _ = product.backward(dB)
            table.backward(dA + add.backward(dS)[0])
            for layer in (table, add, product, average):
                assert wrong_arrays(layer, backend) == []
                layer.update()
    if backend.observed:
        made = {name.partition(":")[2] for name in events if name.startswith("alloc:")}
        assert not made & WIDE
        assert "float32" in made


def test_a_double_inside_a_step_is_seen(emulated: Backend) -> None:
    """The rule above can fail."""
    step = Step(emulated, "SGD(lr=0.01)")
    with emulated.count() as events:
        step.X = (step.X * np.float64(1)).astype(np.float32)
        step.run()
    assert events["alloc:float64"] == 1
