"""How far a gradient goes back through the nodes of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected
from gpulayers.models import Activation, Residual, Sequential
from gpulayers.models.plan_node import Node, backward_through
from gpulayers.models.plan_nodes import nodes_of
from gpulayers.wrappers import Dropout as DropoutWrapper


def frozen(layer: Any) -> Any:
    layer.freeze()
    return layer


def dense() -> FullyConnected:
    return FullyConnected(3)


def conv() -> Conv2D:
    return Conv2D(3, (1, 1))


#: layers, and of each node how it is called: with the input's gradient, without, or not at all
CHAINS: dict[str, tuple[Any, list[bool | None]]] = {
    "flatten first": (lambda: [Flatten(), dense(), dense()], [None, False, True]),
    "dropout first": (lambda: [Dropout(0.5), Flatten(), dense()], [None, None, False]),
    "a frozen beginning": (
        lambda: [frozen(Conv2D(2, (2, 2))), Activation("Tanh"), Flatten(), dense(), dense()],
        [None, None, None, False, True],
    ),
    "frozen in between": (
        lambda: [conv(), frozen(BatchNorm2D()), Flatten(), dense()],
        [False, True, True, True],
    ),
    "a residual block": (
        lambda: [Activation("Tanh"), Residual([conv()]), Flatten(), dense()],
        [None, False, True, True],
    ),
    "a wrapper, of which nobody knows": (
        lambda: [DropoutWrapper(Flatten(), 0.1), dense()],
        [False, True],
    ),
    "nothing learns": (lambda: [Flatten(), frozen(dense())], [None, None]),
}


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_nobody_works_out_what_nobody_wants(
    name: str, inputs: bool, numpy_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = CHAINS[name]
    network = Sequential(make())
    X = Y = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    network.forward(X, retain_derived=False)  # which makes the parameters
    nodes: list[Node] = list(nodes_of(network.layers))
    called: list[bool | None] = [None] * len(nodes)
    for i, node in enumerate(nodes):
        real = node.backward

        def backward(dY: Any, wanted: bool, i: int = i, real: Any = real) -> Any:
            called[i] = wanted
            return real(dY, wanted)

        monkeypatch.setattr(node, "backward", backward)
    for node in nodes:
        Y = node.forward(Y)
    dX = backward_through(nodes, np.ones_like(Y), inputs)
    assert called == ([True] * len(nodes) if inputs else expected)
    assert (dX is None) == (not inputs)
    if dX is not None:
        assert dX.shape == X.shape
