"""Networks and runs that the training tests use."""

from __future__ import annotations

import numpy as np

from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Residual, Sequential
from gpulayers.training import Trainer


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


def run(network, data, **options):
    """A silent run; returns the trainer."""
    options = {"batch_size": 32, "epochs": 2, "progress": False, **options}
    trainer = Trainer(network, data, **options)
    trainer.fit()
    return trainer


def assert_same_run(a: Trainer, b: Trainer) -> None:
    """Parameters and every recorded figure but the times are equal, bit for bit."""
    for name, array in a.network.parameters.items():
        np.testing.assert_array_equal(array, b.network.parameters[name], err_msg=name)
    assert a.history.step_losses == b.history.step_losses
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
        assert a.history.column(name) == b.history.column(name), name


def in_step(network: Sequential, step: int, act) -> Sequential:
    """Make `network` call ``act()`` in the forward pass of its training step number `step` (the
    first is 1), whichever way it is trained; return it."""
    dropout = next(layer for layer in network.layers if isinstance(layer, Dropout))
    plain, done = dropout._forward, []

    def forward(X, training):
        if training:
            done.append(1)
            if len(done) == step:
                act()
        return plain(X, training)

    dropout._forward = forward
    return network
