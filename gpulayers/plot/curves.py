"""The course of a training run."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers.plot._style import BLUE, GREY, ORANGE, Axes, Figure, new_figure, picture

__all__ = ["training_curves"]


@picture
def training_curves(history: Any, title: str = "", held_out: str = "validation") -> Figure:
    r"""Draw loss and accuracy over the epochs, and mark the best epoch.

    Parameters
    ----------
    history : training.History
        Also one of a run that goes on; without an epoch the axes are empty.
    title : str
        Between two ``$`` matplotlib's formulas; ``\$`` is a dollar sign.
    held_out : str
        What to call the examples that the history's ``val_`` columns are of; "test" where a run
        looks at the test split after each epoch.

    Returns
    -------
    matplotlib.figure.Figure
        Left the loss (logarithmic), with that of the single steps behind it, smoothed over 1 % of
        the run; right the accuracy in percent.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    epochs = history.column("epoch")
    steps = np.asarray(history.step_losses, dtype=np.float64)
    if steps.size and epochs:
        window = max(1, steps.size // 100)
        smooth = np.convolve(steps, np.full(window, 1.0 / window), mode="valid")
        at = (np.arange(smooth.size) + window) / steps.size * epochs[-1]
        left.plot(at, smooth, color=BLUE, alpha=0.35, linewidth=1, label="training, steps")
    _pair(left, epochs, history.column("train_loss"), history.column("val_loss"), held_out)
    left.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    training, other = (
        [100 * value for value in history.column(name)]
        for name in ("train_accuracy", "val_accuracy")
    )
    _pair(right, epochs, training, other, held_out)
    right.set(title="Accuracy", xlabel="epoch", ylabel="right (%)")
    if epochs:
        best = history.best
        right.axvline(best.epoch, color=GREY, linewidth=1, linestyle=":")
        text = f"best: {100 * best.val_accuracy:.2f} %, epoch {best.epoch}"
        right.plot([], [], color=GREY, linewidth=1, linestyle=":", label=text)
    for axes in (left, right):
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    _readable_logarithm(left)
    if title:
        figure.suptitle(title)
    return figure


def _pair(
    axes: Axes, epochs: list[float], training: list[float], other: list[float], name: str
) -> None:
    axes.plot(epochs, training, "o-", color=BLUE, label="training")
    axes.plot(epochs, other, "s-", color=ORANGE, label=name)


def _readable_logarithm(axes: Axes) -> None:
    """Plain numbers, also between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
