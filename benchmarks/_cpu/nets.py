"""The networks whose training steps are timed, said once for all sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """Convolution of stride 1 that pads `pad`, with ReLU unless told."""

    out: int
    k: int
    pad: int
    relu: bool = True


@dataclass(frozen=True)
class Norm:
    """Batch normalisation, then ReLU."""


@dataclass(frozen=True)
class Pool:
    """The maximum of windows of 2 x 2."""


@dataclass(frozen=True)
class Flatten:
    """From (rows, cols, ch) to one row."""


@dataclass(frozen=True)
class Dropout:
    """Half of the numbers set to zero."""


@dataclass(frozen=True)
class Dense:
    """Fully connected, with ReLU unless told."""

    out: int
    relu: bool = True


Layer = Conv | Norm | Pool | Flatten | Dropout | Dense


@dataclass(frozen=True)
class Net:
    """A chain of layers on inputs of one shape."""

    title: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    classes: int = 10

    @property
    def is_image(self) -> bool:
        return any(isinstance(layer, Conv) for layer in self.layers)


def _stage(filters: int) -> tuple[Layer, ...]:
    return (Conv(filters, 3, 1), Conv(filters, 3, 1), Pool())


def _vgg_stage(filters: int) -> tuple[Layer, ...]:
    return (*2 * (Conv(filters, 3, 1, relu=False), Norm()), Pool())


NETS = {
    "lenet": Net(
        "LeNet",
        (28, 28, 1),
        (
            *(Conv(6, 5, 2), Pool(), Conv(16, 5, 0), Pool(), Flatten()),
            *(Dense(120), Dense(84), Dense(10, relu=False)),
        ),
    ),
    "cifar": Net(
        "small CIFAR CNN",
        (32, 32, 3),
        (*_stage(32), *_stage(64), Flatten(), Dense(10, relu=False)),
    ),
    "mlp": Net(
        "MLP 784-256-128-10",
        (28, 28, 1),
        (Flatten(), Dense(256), Dense(128), Dense(10, relu=False)),
    ),
    "vgg": Net(
        "VGG-small",
        (32, 32, 3),
        (
            *(*_vgg_stage(32), *_vgg_stage(64), *_vgg_stage(128), Flatten()),
            *(Dense(256), Dropout(), Dense(10, relu=False)),
        ),
    ),
}


def walk(net: Net) -> Iterator[tuple[Layer, Shape, Shape]]:
    """Yield each layer with the shapes of one example before and after it."""
    shape = net.input_shape
    for layer in net.layers:
        before = shape
        if isinstance(layer, Conv):
            size = shape[0] + 2 * layer.pad - layer.k + 1
            shape = (size, size, layer.out)
        elif isinstance(layer, Pool):
            shape = (shape[0] // 2, shape[1] // 2, shape[2])
        elif isinstance(layer, Flatten):
            shape = (math.prod(shape),)
        elif isinstance(layer, Dense):
            shape = (layer.out,)
        yield layer, before, shape


def parameters(net: Net, numbers: Callable[..., np.ndarray]) -> list[np.ndarray]:
    """Draw the starting weights (W and b, or scaler and intercept), layer after layer."""
    drawn = []
    for layer, before, after in walk(net):
        if isinstance(layer, (Conv, Dense)):
            taps = layer.k**2 if isinstance(layer, Conv) else 1
            fan_in = taps * before[-1]
            shape = (layer.k, layer.k, before[-1], layer.out) if taps > 1 else (fan_in, layer.out)
            drawn.append(numbers(*shape, scale=math.sqrt(2 / fan_in)))
            drawn.append(numbers(after[-1], scale=0.01))
        elif isinstance(layer, Norm):
            drawn.append(1 + numbers(after[-1], scale=0.1))
            drawn.append(numbers(after[-1], scale=0.1))
    return drawn


def products(net: Net) -> tuple[float, float]:
    """Return the floating-point operations of one example's step (products alone), and how many
    numbers pass between layers: each activation written and read forward, and so its gradient.
    """
    flops, passed, first = 0.0, 0.0, True
    for layer, before, after in walk(net):
        if isinstance(layer, (Conv, Dense)):
            taps = layer.k**2 * before[-1] if isinstance(layer, Conv) else before[-1]
            flops += 2.0 * (2 if first else 3) * taps * math.prod(after)
            first = False
        if not isinstance(layer, Flatten):
            passed += 2.0 * (math.prod(before) + math.prod(after))
    return flops, passed
