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


def after_step(network: Sequential, step: int, act) -> Sequential:
    """Make `network` call ``act()`` right after its update number `step`; return it."""
    plain, done = network.update, []

    def update(cur_loss=None):
        plain(cur_loss)
        done.append(1)
        if len(done) == step:
            act()

    network.update = update
    return network
