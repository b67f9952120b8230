"""Well-known small networks, built from gpulayers' layers with the sizes that fit a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpulayers._types import is_sequence
from gpulayers.errors import ParameterError, suggest
from gpulayers.layers import (
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
)
from gpulayers.models.blocks import Activation, Residual
from gpulayers.models.network import Sequential

__all__ = ["MODELS", "build", "lenet", "mlp", "resnet9", "vgg_small"]

Shape = tuple[int, ...]


def lenet(classes: int = 10, input_shape: Shape = (28, 28, 1), optimizer: Any = None) -> Sequential:
    """Build LeNet-5 with ReLU and max pooling.

    Two convolutions of 6 and 16 filters of 5x5, each followed by 2x2 pooling, then dense layers of
    120, 84 and `classes` outputs. LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied
    to document recognition" (1998), figure 2, has tanh, trainable subsampling, a partly connected
    second convolution and radial basis outputs; this is the variant everybody trains today.
    Images smaller than the paper's 32x32 are padded by 2 pixels.

    Parameters
    ----------
    classes : int
    input_shape : (rows, cols, channels), at least 12 x 12
    optimizer : str or optimizer, optional

    Returns
    -------
    Sequential; its outputs are logits (use `losses.SoftmaxCrossEntropy`)

    Raises
    ------
    ParameterError
        If classes or input_shape does not fit.
    """
    rows, cols, _ = _image("lenet", classes, input_shape, 12)
    pad = 2 if min(rows, cols) < 32 else 0
    layers = [
        Conv2D(6, (5, 5), pad=pad, act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Conv2D(16, (5, 5), act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Flatten(),
        FullyConnected(120, act_fn="ReLU"),
        FullyConnected(84, act_fn="ReLU"),
        FullyConnected(classes),
    ]
    return Sequential(layers, optimizer, "lenet")


def mlp(
    classes: int = 10,
    input_shape: Shape = (28, 28, 1),
    optimizer: Any = None,
    hidden: Sequence[int] = (256, 128),
) -> Sequential:
    """Build a multilayer perceptron: dense layers with ReLU on the flattened input.

    Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors" (1986).

    Parameters
    ----------
    classes : int
    input_shape : shape of one example, any rank
    optimizer : str or optimizer, optional
    hidden : sequence of int
        Units of each hidden layer.

    Returns
    -------
    Sequential; its outputs are logits

    Raises
    ------
    ParameterError
        If classes, input_shape or hidden does not fit.
    """
    _check("mlp", classes, input_shape)
    layers: list[Any] = [Flatten()]
    layers += [FullyConnected(units, act_fn="ReLU") for units in hidden]
    return Sequential([*layers, FullyConnected(classes)], optimizer, "mlp")


def vgg_small(
    classes: int = 10,
    input_shape: Shape = (32, 32, 3),
    optimizer: Any = None,
    width: int = 32,
) -> Sequential:
    """Build a small VGG: three stages of two 3x3 convolutions and a 2x2 pooling.

    Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition"
    (2015), shrunk to small images: `width`, 2 `width` and 4 `width` filters, one hidden dense layer
    with dropout; batch normalisation (Ioffe & Szegedy, 2015) after each convolution.

    Parameters
    ----------
    classes : int
    input_shape : (rows, cols, channels), at least 8 x 8
    optimizer : str or optimizer, optional
    width : int
        Filters of the first stage.

    Returns
    -------
    Sequential; its outputs are logits

    Raises
    ------
    ParameterError
        If classes or input_shape does not fit.
    """
    _image("vgg-small", classes, input_shape, 8)
    layers: list[Any] = []
    for filters in (width, 2 * width, 4 * width):
        layers += [*_conv_block(filters), *_conv_block(filters), Pool2D((2, 2), stride=2)]
    layers += [
        Flatten(),
        FullyConnected(8 * width, act_fn="ReLU"),
        Dropout(0.5),
        FullyConnected(classes),
    ]
    return Sequential(layers, optimizer, "vgg-small")


def resnet9(
    classes: int = 10,
    input_shape: Shape = (32, 32, 3),
    optimizer: Any = None,
    width: int = 64,
) -> Sequential:
    """Build ResNet-9: eight 3x3 convolutions, four of them inside two residual blocks, one dense.

    The architecture is that of D. Page's "How to train your ResNet" (2018) for CIFAR-10; residual
    blocks after He et al., "Deep residual learning for image recognition" (2016).

    Parameters
    ----------
    classes : int
    input_shape : (rows, cols, channels), at least 8 x 8
    optimizer : str or optimizer, optional
    width : int
        Filters of the first convolution; the others have 2, 4 and 8 times as many.

    Returns
    -------
    Sequential; its outputs are logits

    Raises
    ------
    ParameterError
        If classes or input_shape does not fit.
    """
    rows, cols, _ = _image("resnet9", classes, input_shape, 8)
    halve = lambda: Pool2D((2, 2), stride=2)  # noqa: E731
    layers = [
        *_conv_block(width),
        *_conv_block(2 * width),
        halve(),
        Residual([*_conv_block(2 * width), *_conv_block(2 * width)]),
        *_conv_block(4 * width),
        halve(),
        *_conv_block(8 * width),
        halve(),
        Residual([*_conv_block(8 * width), *_conv_block(8 * width)]),
        Pool2D((rows // 8, cols // 8), stride=max(rows // 8, cols // 8)),
        Flatten(),
        FullyConnected(classes),
    ]
    return Sequential(layers, optimizer, "resnet9")


MODELS: dict[str, Callable[..., Sequential]] = {
    "lenet": lenet,
    "mlp": mlp,
    "vgg-small": vgg_small,
    "resnet9": resnet9,
}


def build(
    name: str, classes: int = 10, input_shape: Shape = (28, 28, 1), optimizer: Any = None
) -> Sequential:
    """Build the network `name`, one of `MODELS`; an underscore counts as a dash.

    Raises
    ------
    ParameterError
        If the name is unknown (with the nearest one), or as the builder does.
    """
    builder = MODELS.get(str(name).lower().replace("_", "-"))
    if builder is None:
        raise ParameterError(
            f"unknown model {name!r}, expected one of {', '.join(MODELS)}{suggest(name, MODELS)}"
        )
    return builder(classes, input_shape, optimizer)


def _conv_block(filters: int) -> list[Any]:
    """3x3 convolution at the same size, batch normalisation, ReLU."""
    return [Conv2D(filters, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU")]


def _check(model: str, classes: Any, input_shape: Any) -> None:
    if not _is_count(classes) or classes < 1:
        raise ParameterError(f"{model}: classes must be a positive integer, got {classes!r}")
    if (
        not is_sequence(input_shape)
        or not input_shape
        or not all(_is_count(n) and n > 0 for n in input_shape)
    ):
        raise ParameterError(
            f"{model}: input_shape must be a tuple of positive integers, got {input_shape!r}"
        )


def _image(model: str, classes: Any, input_shape: Any, least: int) -> tuple[int, int, int]:
    _check(model, classes, input_shape)
    if len(input_shape) != 3 or min(input_shape[:2]) < least:
        turned = (
            len(input_shape) == 3 and input_shape[0] in (1, 3) and min(input_shape[1:]) >= least
        )
        raise ParameterError(
            f"{model}: takes images (rows, cols, channels) of at least {least} x {least} pixels, "
            f"got {tuple(input_shape)}; "
            + (
                "channels go last: images.transpose(0, 2, 3, 1)"
                if turned
                else "the model 'mlp' takes any shape"
            )
        )
    rows, cols, channels = (int(n) for n in input_shape)
    return rows, cols, channels


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
