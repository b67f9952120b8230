"""Networks that the training tests use."""

from __future__ import annotations

from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Residual, Sequential


def dense(optimizer: str | None = "Adam(lr=0.01)") -> Sequential:
    """A perceptron with dropout: its result depends on the random numbers of every step."""
    layers = [Flatten(), FullyConnected(32, act_fn="ReLU"), Dropout(0.2), FullyConnected(10)]
    return Sequential(layers, optimizer, "dense")


def conv(optimizer: str | None = "Adam(lr=0.01)") -> Sequential:
    """A small network with every kind of state: running statistics, dropout, a residual block."""
    body = [Conv2D(4, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU")]
    layers = [
        Conv2D(4, (3, 3), pad=1, act_fn="ReLU"),
        Residual(body),
        Pool2D((2, 2), stride=2),
        Flatten(),
        Dropout(0.1),
        FullyConnected(10),
    ]
    return Sequential(layers, optimizer, "conv")
