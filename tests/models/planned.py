"""Networks to be planned, and twins of them whose layers compute one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import random
from gpulayers.layers import (
    BatchNorm2D,
    Conv2D,
    Deconv2D,
    Dropout,
    Flatten,
    FullyConnected,
    GlobalAvgPool2D,
    LayerNorm2D,
    Pool2D,
)
from gpulayers.models import Activation, Residual, Sequential
from gpulayers.wrappers import Dropout as DropoutWrapper

IMAGE = (12, 10, 2)


def fused() -> Sequential:
    """Every pair that is computed in one pass, and their near misses."""
    return Sequential(
        [
            Conv2D(5, (3, 3), pad=1, act_fn="ReLU"),
            Pool2D((2, 2), stride=2),
            Conv2D(4, (3, 3), pad="same"),
            Activation("ReLU"),
            Pool2D((3, 3), stride=1, pad=1),
            Conv2D(6, (2, 2), stride=2),
            Pool2D((2, 2), stride=1, mode="average"),
            Conv2D(3, (1, 1), act_fn="Tanh"),
            Flatten(),
            FullyConnected(9, act_fn="ReLU"),
            FullyConnected(7),
            Activation("ReLU"),
            FullyConnected(8, act_fn="Sigmoid"),
            FullyConnected(4),
        ],
        "SGD(lr=0.05, momentum=0.9)",
    )


def mixed() -> Sequential:
    """Layers without a pass of their own, groups, statistics of the batch, random masks."""
    return Sequential(
        [
            Residual([Conv2D(2, (3, 3), pad=1, act_fn="ReLU"), LayerNorm2D()]),
            Sequential([Deconv2D(3, (2, 2), stride=2), BatchNorm2D(), Activation("ReLU")]),
            Residual([Conv2D(4, (1, 1))], shortcut=[Conv2D(4, (3, 3), pad=1)]),
            Dropout(0.3),
            GlobalAvgPool2D(),
            DropoutWrapper(FullyConnected(6, act_fn="ReLU"), 0.2),
            FullyConnected(4),
        ],
        # not Adam: it would make steps of the rounding in a bias before batch normalisation
        "SGD(lr=0.05, momentum=0.5)",
    )


def by_example() -> Sequential:
    """A network whose batches may be cut."""
    return Sequential(
        [Conv2D(5, (3, 3), act_fn="ReLU"), Pool2D((2, 2), stride=2), Flatten(), FullyConnected(4)],
        "Adam(lr=0.01)",
    )


NETWORKS = {"fused": fused, "mixed": mixed, "by_example": by_example}


def batches(backend: Any, count: int, n: int, dtype: Any = np.float32) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    return [
        (
            backend.asarray(rng.standard_normal((n, *IMAGE)).astype(dtype)),
            backend.asarray(rng.integers(0, 4, n)),
        )
        for _ in range(count)
    ]


def plain_step(network: Sequential, loss: Any, X: Any, labels: Any) -> float:
    value = loss.forward(labels, network.forward(X))
    network.backward(loss.backward(), input_grad=False)
    network.update(float(value))
    return float(value)


def twins(make: Any, backend: Any) -> tuple[Sequential, Sequential]:
    """Two networks alike, parameters and all."""
    pair = []
    for _ in range(2):
        random.seed(5)
        network = make()
        network.forward(backend.asarray(np.zeros((1, *IMAGE), dtype=np.float32)), False)
        pair.append(network)
    return pair[0], pair[1]


def assert_alike(backend: Any, ours: Sequential, theirs: Sequential, tolerance: float) -> None:
    assert ours.parameters.keys() == theirs.parameters.keys()
    for name, value in ours.parameters.items():
        np.testing.assert_allclose(
            backend.asnumpy(value),
            backend.asnumpy(theirs.parameters[name]),
            rtol=tolerance,
            atol=tolerance,
            err_msg=name,
        )
