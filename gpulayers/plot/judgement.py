"""How a network judges: what it takes for what, and where it is most wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.plot._style import (
    INK,
    PICTURE,
    RED,
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
    wrapped,
)

__all__ = ["confusion_matrix", "worst_mistakes"]

MOST_NUMBERED = 20  # classes up to which each cell says its count
_LONGEST = 32  # characters of a name beside the matrix
_LINE = 18  # characters of a name above an image


@picture
def confusion_matrix(matrix: Any, classes: Any = None) -> Figure:
    """Draw how often each class was taken for each other.

    Parameters
    ----------
    matrix : (k, k) of counts
        A row for each true class, a column for each predicted one, as
        `training.confusion_matrix` returns it.
    classes : sequence of str, optional
        Their names.

    Returns
    -------
    matplotlib.figure.Figure
        The colour is the share of the true class; numbers are counts, up to 20 classes. Behind
        each row the share that is right (recall).

    Raises
    ------
    ShapeError
        If the matrix is not square.
    ParameterError
        If a count is negative, or there are more names than classes.
    ImportError
        If matplotlib is not installed.
    """
    counts = np.asarray(backend.to_cpu(matrix) if hasattr(matrix, "dtype") else matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ShapeError(f"confusion_matrix: expected counts (k, k), got shape {counts.shape}")
    if counts.min() < 0:
        raise ParameterError("confusion_matrix: counts must not be negative")
    k = len(counts)
    names = class_names("confusion_matrix", classes, k)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = min(max(4.5, 0.55 * k + 1.5), 14.0)
    figure = new_figure(side + 1.6, side + 0.4)
    axes = figure.subplots()
    shown = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = np.arange(k) if k <= 40 else np.arange(0, k, k // 20)
    turned = max(len(names[i]) for i in ticks) > 3
    shown_names = [literal(shortened(names[i], _LONGEST)) for i in ticks]
    axes.set_xticks(
        ticks, shown_names, rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks(ticks, shown_names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if k <= MOST_NUMBERED:
        for i in range(k):
            for j in range(k):
                if counts[i, j]:
                    dark = share[i, j] > 0.5
                    axes.text(
                        j,
                        i,
                        f"{counts[i, j]:,}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else INK,
                    )
            right = f"{100 * share[i, i]:.1f} %" if totals[i, 0] else "none"
            axes.text(k - 0.4, i, right, ha="left", va="center", fontsize=8)
        axes.text(k - 0.4, -0.75, "right", ha="left", va="center", fontsize=8)
    colour_bar(figure, shown, axes, "share of the true class (%)")
    accuracy = counts.trace() / max(int(counts.sum()), 1)
    axes.set_title(f"{100 * accuracy:.2f} % of {int(counts.sum()):,} right", pad=16)
    return figure


@picture
def worst_mistakes(
    network: Any, images: Any, labels: Any, classes: Any = None, most: int = 24
) -> Figure:
    """Draw the images that the network is most sure of and wrong about.

    Parameters
    ----------
    network : Sequential, for classes; its outputs are logits
    images : (n, rows, cols, channels), of 1 or 3 channels, floating or bytes
    labels : (n,) integers, the true classes
    classes : sequence of str, optional
        Their names.
    most : int
        Images to draw.

    Returns
    -------
    matplotlib.figure.Figure
        The largest loss first. Above each image the true class; below what the network takes it
        for, and with which probability. Long names are wrapped, very long ones shortened.

    Raises
    ------
    ShapeError
        If images and labels do not fit each other or the network.
    ParameterError
        If there is no image, `most` is no positive integer, or there are more names than the
        network has outputs.
    ImportError
        If matplotlib is not installed.
    """
    most = check.integer("worst_mistakes", "most", most)
    truth = backend.to_cpu(labels)
    if truth.shape != (len(images),):
        raise ShapeError(
            f"worst_mistakes: expected {len(images)} labels, one an image, got shape {truth.shape}"
        )
    if not len(truth):
        raise ParameterError("worst_mistakes: there is no image")
    scores = backend.to_cpu(network.predict(images)).astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    chosen = scores.argmax(axis=1)
    loss = -log_p[np.arange(len(truth)), truth]
    wrong = np.flatnonzero(chosen != truth)
    worst = wrong[np.argsort(-loss[wrong], kind="stable")][:most]
    names = class_names("worst_mistakes", classes, scores.shape[1])
    rows, columns = grid_shape(len(worst), 8)
    cell = 1.25 if max(len(name) for name in names) <= 4 else 1.55
    names = [wrapped(name, _LINE) for name in names]  # as wide as a cell
    words = 0.85 if any("\n" in name for name in names) else 0.5  # inches above and below an image
    tall = cell * min(max(images.shape[1] / max(images.shape[2], 1), 0.25), 2.0)
    figure = new_figure(max(5.0, cell * columns), max(1.4, (tall + words) * rows + 0.7))
    head = f"{len(wrong):,} of {len(truth):,} wrong"
    if not len(worst):
        axes = figure.subplots()
        bare(axes)
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=axes.transAxes)
        figure.suptitle(head, fontweight="bold")
        return figure
    places = backend.to_backend(worst, backend.backend_of(images))
    pictures = as_pictures("worst_mistakes", images[places])
    names = [literal(name) for name in names]
    for k, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if k >= len(worst):
            axes.set_visible(False)
            continue
        i = worst[k]
        show_image(axes, pictures[k], cmap=PICTURE, vmin=0, vmax=1)
        axes.set_title(names[truth[i]], fontsize=9, loc="center", pad=3)
        sure = 100 * np.exp(log_p[i, chosen[i]])
        axes.set_xlabel(f"{names[chosen[i]]}, {sure:.0f} %", fontsize=8, color=RED, labelpad=3)
    figure.suptitle(f"{head}: the worst {len(worst)}", fontweight="bold")
    figure.supxlabel("above: true class      below: prediction, probability", fontsize=9)
    return figure
