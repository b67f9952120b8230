"""Other weights for a while: what callbacks share that evaluate or restore them."""

from __future__ import annotations

from typing import Any

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.models import Sequential

__all__ = ["WeightSwap", "snapshot", "write_weights"]


def snapshot(network: Sequential) -> dict[str, Array]:
    """Copies of all floating parameters (running statistics too), where they live."""
    return {
        name: array.copy()
        for name, array in network.parameters.items()
        if array is not None and backend.is_floating(array.dtype)
    }


def write_weights(network: Sequential, weights: dict[str, Array]) -> None:
    """Write `weights` into the parameters, in place."""
    parameters = network.parameters
    for name, value in weights.items():
        target = parameters[name]
        moved = backend.to_backend(value, backend.backend_of(target))
        target[...] = moved.astype(target.dtype, copy=False)


class WeightSwap:
    """Puts other weights into a network and keeps those that are trained meanwhile.

    Attributes
    ----------
    trained : dict of str to array, or None
        The weights to go on with, while others are in the network.
    """

    def __init__(self) -> None:
        self.trained: dict[str, Array] | None = None

    def put(self, network: Sequential, weights: dict[str, Array]) -> None:
        if self.trained is None:
            self.trained = snapshot(network)
            write_weights(network, weights)

    def take_back(self, network: Sequential) -> None:
        if self.trained is not None:
            write_weights(network, self.trained)
            self.trained = None

    def load(self, trained: dict[str, Any] | None) -> None:
        self.trained = None if trained is None else dict(trained)
