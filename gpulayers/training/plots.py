"""Training curves as a picture (needs matplotlib, which is in the extra ``gpulayers[train]``)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gpulayers.training.history import History

__all__ = ["MISSING", "plot_curves"]

MISSING = 'no plot: matplotlib is not installed (pip install "gpulayers[train]")'


def plot_curves(history: History, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw loss and accuracy over the epochs into the file `path`; return the path.

    The ending of `path` says the format (png, pdf, svg). No display is needed.

    Parameters
    ----------
    history : History
    path : path
    title : str

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    x = history.column("epoch")
    steps = np.asarray(history.step_losses, dtype=np.float64)
    if steps.size and x:
        # one window = 1 % of the run: single batches are too noisy to see anything in
        window = max(1, steps.size // 100)
        smooth = np.convolve(steps, np.full(window, 1.0 / window), mode="valid")
        at = (np.arange(smooth.size) + window) / steps.size * x[-1]
        left.plot(at, smooth, color="tab:blue", alpha=0.35, linewidth=1, label="training, steps")
    left.plot(x, history.column("train_loss"), "o-", color="tab:blue", label="training")
    left.plot(x, history.column("val_loss"), "o-", color="tab:orange", label="test")
    left.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log")
    right.plot(x, history.column("train_accuracy"), "o-", color="tab:blue", label="training")
    right.plot(x, history.column("val_accuracy"), "o-", color="tab:orange", label="test")
    right.set(xlabel="epoch", ylabel="accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
