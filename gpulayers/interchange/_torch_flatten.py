"""In which order a network and PyTorch flatten an image, and which layers notice.

PyTorch's images are (channels, rows, cols), ours (rows, cols, channels); of sequences, PyTorch's
are (channels, length) for convolutions and, batch first, (length, features) for recurrent layers,
ours the other way round. So flattened features stand in another order, until a dense layer, whose
rows are in the order of its inputs, brings both together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import layers, models
from gpulayers.errors import InterchangeError, ParameterError
from gpulayers.interchange._torch_layers import FORMS
from gpulayers.layers._group import LayerGroup
from gpulayers.models import Sequential
from gpulayers.models._watch import bare, example, forward, watched

_CHANNELS_FIRST = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Deconv2D,
    layers.RNN,
    layers.LSTM,
    layers.GRU,
)
# Layers that leave the order of a flattened image's features as it is.
_PASSES_FEATURES = (
    layers.BatchNorm1D,
    layers.Dropout,
    layers.LayerNorm1D,
    layers.Softmax,
    models.Activation,
)


def feature_orders(network: Any, input_shape: Sequence[int] | None) -> dict[str, np.ndarray]:
    """For each layer that sees a flattened image: which of PyTorch's features is our i-th."""
    leaves = dict(network.walk()) if isinstance(network, LayerGroup) else {}
    if not any(isinstance(bare(leaf), layers.Flatten) for leaf in leaves.values()):
        return {}
    if input_shape is None:
        raise ParameterError(
            "the network flattens images, which PyTorch does in another order; pass input_shape, "
            "the shape of one example, such as (28, 28, 1)"
        )
    orders: dict[str, np.ndarray] = {}
    _follow(network, "", None, _flattened_shapes(network, input_shape), orders)
    return orders


def _flattened_shapes(network: Any, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """What each Flatten gets, channels last there and first in PyTorch; seen on a copy."""
    shapes: dict[str, tuple[int, ...]] = {}
    first = len(input_shape) == 3  # whether PyTorch has the channels first

    def listener(name: str, _: str, part: Any, call: Any, args: tuple[Any, ...]) -> Any:
        nonlocal first
        layer = bare(part)
        if isinstance(layer, layers.Flatten):
            shape = args[0].shape[1:]
            shapes[name] = shape if first else (1, *shape, 1)
        Y = call()
        if isinstance(layer, _CHANNELS_FIRST):
            first = True
        elif isinstance(layer, (layers.Embedding, layers.DotProductAttention)):
            first = False
        return Y

    twin = watched(network, listener, "forward")
    forward(twin, example(network, input_shape), False)
    return shapes


def _follow(
    part: Any,
    name: str,
    order: np.ndarray | None,
    shapes: dict[str, tuple[int, ...]],
    orders: dict[str, np.ndarray],
) -> np.ndarray | None:
    """Carry the order of the features from a Flatten to the layers that see them."""
    layer = bare(part)
    if isinstance(part, Sequential):
        for key, inner in part._parts().items():
            order = _follow(inner, f"{name}.{key}" if name else key, order, shapes, orders)
        return order
    if isinstance(part, LayerGroup):
        if order is not None:
            raise InterchangeError(
                f"{name} ({type(layer).__name__}) gets a flattened image; a dense layer must come "
                "first"
            )
        for key, inner in part._parts().items():
            _follow(inner, f"{name}.{key}", None, shapes, orders)
        return None
    if isinstance(layer, layers.Flatten):
        return _channels_last(shapes[name])
    if order is not None and type(layer) in FORMS:
        orders[name] = order
    if order is None or isinstance(layer, _PASSES_FEATURES):
        return order
    return None


def _channels_last(shape: tuple[int, ...]) -> np.ndarray | None:
    """Places of (channels, ...) as (..., channels) goes through them; None if they agree."""
    first = (shape[-1], *shape[:-1])
    places = np.moveaxis(np.arange(np.prod(shape)).reshape(first), 0, -1).reshape(-1)
    return None if (np.diff(places) == 1).all() else places
