"""Networks with modules and wrapped layers are saved and go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, modules, random
from gpulayers.models import Sequential
from gpulayers.training import load, save
from gpulayers.wrappers import Dropout
from tests.layers.harness import values
from tests.support.compare import assert_same_bits

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "wrapped": (lambda: Dropout(Dropout(layers.FullyConnected(4), 0.2), 0.1), (6, 3)),
    "identity": (
        lambda: modules.SkipConnectionIdentityModule(3, (3, 2), 3, act_fn="SELU", stride2=2),
        (2, 4, 4, 2),
    ),
    "conv": (
        lambda: modules.SkipConnectionConvModule(3, 2, 3, 3, 3, "same", (1, 0, 2, 1)),
        (2, 5, 5, 1),
    ),
    "bidirectional": (
        lambda: modules.BidirectionalLSTM(2, "ELU(alpha=0.5)", merge_mode="sum"),
        (3, 2, 4),
    ),
}


def step(net: Sequential, X: np.ndarray) -> np.ndarray:
    random.seed(4)
    Y = net.forward(X)
    net.backward(Y - 1, input_grad=False)
    net.update()
    return Y


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_saved_network_goes_on(
    kind: str, frozen: bool, tmp_path: Path, numpy_backend: Any
) -> None:
    make, shape = NETWORKS[kind]
    net = Sequential(
        [make(), layers.Flatten(), layers.FullyConnected(1)], optimizer="Adam(lr=0.05)"
    )
    X = values(shape, 1, "float32").astype("float32")
    for _ in range(2):
        step(net, X)
    if frozen:
        net[0].freeze()
    again = load(save(tmp_path / "net", net), device="numpy")
    assert repr(again[0]) == repr(net[0])
    assert again[0].trainable is not frozen
    assert again.parameters.keys() == net.parameters.keys()
    for _ in range(2):
        assert_same_bits(step(again, X), step(net, X))
    for name, array in net.parameters.items():
        assert_same_bits(again.parameters[name], array)


def test_an_untrained_module_can_be_saved(tmp_path: Path, numpy_backend: Any) -> None:
    net = Sequential([modules.SkipConnectionIdentityModule(3, 3, 3), layers.Flatten()])
    again = load(save(tmp_path / "net", net), device="numpy")
    assert repr(again[0]) == repr(net[0])
    assert again.forward(np.ones((2, 4, 4, 1), np.float32)).shape == (2, 16)
