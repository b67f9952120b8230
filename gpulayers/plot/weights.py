"""What a network has learned to look for, and what it sees in an image."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.errors import NotInitializedError, ParameterError, ShapeError, suggest
from gpulayers.layers import Conv2D
from gpulayers.layers import _arguments as check
from gpulayers.layers._group import LayerGroup
from gpulayers.models._watch import bare as unwrapped
from gpulayers.models._watch import parts_of, watched
from gpulayers.plot._style import (
    PICTURE,
    SEQUENTIAL,
    SIGNED,
    Figure,
    as_pictures,
    bare,
    class_names,
    colour_bar,
    grid_shape,
    literal,
    new_figure,
    picture,
    shortened,
    show_image,
)

__all__ = ["feature_maps", "filters", "saliency"]


@picture
def filters(layer: Any, most: int = 64) -> Figure:
    """Draw a convolution's kernels.

    Parameters
    ----------
    layer : Conv2D, initialised, or a network, whose first Conv2D is taken
    most : int
        Kernels to draw, from the first.

    Returns
    -------
    matplotlib.figure.Figure
        One picture a filter. Of three input channels each filter is in colour, scaled to its own
        range; of others the mean over the input channels, all on one scale, zero in the middle.

    Raises
    ------
    ParameterError
        If there is no Conv2D, or `most` is no positive integer.
    NotInitializedError
        Before the first forward pass.
    ImportError
        If matplotlib is not installed.
    """
    most = check.integer("filters", "most", most)
    name, conv = _first_convolution(layer)
    if conv.parameters["W"] is None:
        raise NotInitializedError("filters: the layer has no kernels before its first input")
    W = backend.to_cpu(conv.parameters["W"]).astype(np.float64)
    count, channels = min(most, W.shape[3]), W.shape[2]
    rows, columns = grid_shape(count, 8)
    figure = new_figure(max(4.0, 1.0 * columns + 1.2), 1.05 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    mean = W.mean(axis=2)
    limit = float(np.abs(mean[..., :count]).max()) or 1.0
    shown = None
    for k, axes in enumerate(grid.flat):
        if k >= count:
            axes.set_visible(False)
        elif channels == 3:
            own = np.abs(W[..., k]).max() or 1.0
            show_image(axes, 0.5 + 0.5 * W[..., k] / own)
        else:
            shown = show_image(axes, mean[..., k], cmap=SIGNED, vmin=-limit, vmax=limit)
        if k < count:
            axes.set_title(str(k), fontsize=8, fontweight="normal", loc="center", pad=2)
    if shown is not None:
        what = "weight" if channels == 1 else f"weight, mean of {channels} channels"
        colour_bar(figure, shown, grid, what)
    fr, fc = conv.kernel_shape
    of = "" if count == W.shape[3] else f" of {W.shape[3]}"
    figure.suptitle(f"{literal(name)}: {count}{of} filters of {fr} x {fc}", fontweight="bold")
    return figure


def _first_convolution(layer: Any) -> tuple[str, Any]:
    parts = layer.walk() if isinstance(layer, LayerGroup) else [("", layer)]
    for key, part in parts:
        inner = getattr(part, "_base_layer", part)
        if isinstance(inner, Conv2D):
            return f"{key} Conv2D".strip(), inner
    raise ParameterError(f"filters: expected a Conv2D or a network with one, got {layer!r}")


@picture
def feature_maps(network: Any, image: Any, layers: Any = None, most: int = 8) -> Figure:
    """Draw what the layers make of one image, one row a layer.

    Parameters
    ----------
    network : Sequential
    image : (rows, cols, channels), floating or bytes
        As the network takes it, on any backend.
    layers : sequence of str, optional
        Names of layers, as in `parameters`: ``["0", "3.body.0"]``. None is every layer of the
        chain whose output is an image.
    most : int
        Channels to draw of each layer, from the first.

    Returns
    -------
    matplotlib.figure.Figure
        Each row on its own scale, given at its end.

    Raises
    ------
    ParameterError
        If a name is none of an image's layer, or `most` is no positive integer.
    ShapeError
        If the image does not fit the network.
    ImportError
        If matplotlib is not installed.
    """
    most = check.integer("feature_maps", "most", most)
    X = _one_image("feature_maps", network, image)
    outputs = _outputs(network, X)
    if layers is None:
        names = [name for name in outputs if "." not in name]
    else:
        names = [str(name) for name in layers]
    for name in names:
        if name not in outputs:
            raise ParameterError(
                f"feature_maps: no layer {name!r} with an image as output, there are "
                f"{', '.join(outputs)}{suggest(name, outputs)}"
            )
    if not names:
        raise ParameterError("feature_maps: no layer of the network has an image as output")
    columns = max(min(most, outputs[name][1].shape[2]) for name in names)
    figure = new_figure(1.0 * columns + 3.4, 1.12 * (len(names) + 1) + 0.6)
    grid = figure.subplots(len(names) + 1, columns + 1, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    _label(grid[0, 0], f"input\n{_size(X.shape[1:])}")
    if X.shape[3] in (1, 3):
        show_image(grid[0, 1], as_pictures("feature_maps", X)[0], cmap=PICTURE, vmin=0, vmax=1)
    for name, row in zip(names, grid[1:], strict=True):
        kind, maps = outputs[name]
        count = min(most, maps.shape[2])
        some = f"\n{count} of {maps.shape[2]} drawn" if count < maps.shape[2] else ""
        _label(row[0], f"{name} {kind}\n{_size(maps.shape)}{some}")
        low, high = float(maps.min()), float(maps.max())
        shown = [
            show_image(axes, maps[..., k], cmap=SEQUENTIAL, vmin=low, vmax=high)
            for k, axes in enumerate(row[1 : count + 1])
        ]
        bar = colour_bar(figure, shown[0], list(row[1:]), "", shrink=0.95, aspect=18)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle("Output of each layer; every row has its own scale", fontweight="bold")
    return figure


def _label(axes: Any, text: str) -> None:
    axes.text(
        1.0, 0.5, literal(text), ha="right", va="center", fontsize=9, transform=axes.transAxes
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _outputs(network: Any, X: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Class and output (rows, cols, channels) of every layer that gives an image."""
    found: dict[str, tuple[str, np.ndarray]] = {}

    def listener(name: str, _: str, part: Any, call: Any, args: tuple[Any, ...]) -> Any:
        Y = call()
        if name and getattr(Y, "ndim", 0) == 4:
            found[name] = type(unwrapped(part)).__name__, backend.to_cpu(Y)[0].astype(np.float64)
        return Y

    watched(network, listener, "forward").forward(X, retain_derived=False)
    chains = [key for key, (kind, _) in found.items() if kind == "Sequential"]
    order = [key for key in _names(network) if key in found and key not in chains]
    return {key: found[key] for key in order}


def _names(network: Any) -> list[str]:
    return [name for name, _ in parts_of(network)]


@picture
def saliency(network: Any, image: Any, label: int | None = None, classes: Any = None) -> Figure:
    """Draw which pixels the score of a class depends on: |d score / d pixel|.

    Parameters
    ----------
    network : Sequential, for classes
        A frozen copy is used: in evaluation, nothing is changed.
    image : (rows, cols, channels), floating or bytes
    label : int, optional
        The class; None is the one that the network chooses.
    classes : sequence of str, optional
        Their names.

    Returns
    -------
    matplotlib.figure.Figure
        The image, the gradient's size (the largest over the channels), and both together.

    Raises
    ------
    ParameterError
        If there is no such class, or there are more names than the network has outputs.
    ShapeError
        If the image does not fit the network.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Source: Simonyan, Vedaldi & Zisserman, "Deep inside convolutional networks: visualising image
    classification models and saliency maps" (2014), section 3.
    """
    X = _one_image("saliency", network, image)
    scores, gradient, label = input_gradient(network, X, label)
    name = literal(shortened(class_names("saliency", classes, scores.size)[label], 60))
    size = np.abs(gradient).max(axis=2)
    shown_image = as_pictures("saliency", X)[0]
    figure = new_figure(10.5, 3.7)
    panels = figure.subplots(1, 3)
    show_image(panels[0], shown_image, cmap=PICTURE, vmin=0, vmax=1)
    panels[0].set_title("image")
    shown = show_image(panels[1], size, cmap=SEQUENTIAL, vmin=0)
    panels[1].set_title("where a change matters")
    colour_bar(figure, shown, panels[1], "|d score / d pixel|")
    grey = shown_image if shown_image.ndim == 2 else shown_image.mean(axis=2)
    show_image(panels[2], grey, cmap=PICTURE, vmin=0, vmax=1.3)
    share = size / (float(size.max()) or 1.0)
    show_image(panels[2], share, cmap="inferno", alpha=0.85 * np.sqrt(share), vmin=0, vmax=1)
    panels[2].set_title("both")
    p = np.exp(scores - scores.max())
    figure.suptitle(f"class {name}: score {scores[label]:.2f}, {100 * p[label] / p.sum():.1f} %")
    return figure


def input_gradient(
    network: Any, X: Any, label: int | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of one image, the gradient of one of them with respect to the image, and which one.

    Parameters
    ----------
    network : Sequential
    X : (1, rows, cols, channels), floating, on the network's backend
    label : int, optional
        None is the largest score's.

    Raises
    ------
    ParameterError
        If there is no such class.
    """
    twin = copy.deepcopy(network)
    twin.flush_gradients()
    twin.freeze()  # evaluation, but with what backward needs
    Y = twin.forward(X, retain_derived=True)
    scores = backend.to_cpu(Y).reshape(-1).astype(np.float64)
    if label is None:
        label = int(scores.argmax())
    if isinstance(label, bool) or not 0 <= int(label) < scores.size:
        raise ParameterError(f"saliency: there are the classes 0..{scores.size - 1}, got {label!r}")
    dY = backend.xp_of(Y).zeros_like(Y)
    dY[0, label] = 1
    dX = twin.backward(dY, retain_grads=False)
    return scores, backend.to_cpu(dX)[0].astype(np.float64), int(label)


def _one_image(what: str, network: Any, image: Any) -> Any:
    """(1, rows, cols, channels) on the network's backend, bytes through its pixels."""
    if getattr(image, "ndim", 0) != 3:
        raise ShapeError(
            f"{what}: expected one image (rows, cols, channels), got shape "
            f"{getattr(image, 'shape', ())}"
        )
    pixels = getattr(network, "pixels", None)
    if pixels is not None:
        pixels.watch(what, image[None])
    X = backend.to_backend(image[None], network.home or backend.current_backend())
    return network.pixels(X, network.dtype) if X.dtype == np.uint8 else X
