"""Training curves as a file (needs matplotlib, which the extra ``train`` brings)."""

from __future__ import annotations

import os
from pathlib import Path

from gpulayers.plot import training_curves
from gpulayers.training.history import History

__all__ = ["MISSING", "plot_curves"]

MISSING = "no plot: matplotlib is not installed (pip install matplotlib)"


def plot_curves(
    history: History, path: str | os.PathLike[str], title: str = "", held_out: str = "validation"
) -> Path:
    """Draw `plot.training_curves` into the file `path`; return the path.

    The ending of `path` says the format (png, pdf, svg). No display is needed.

    Parameters
    ----------
    history : History
    path : path
    title, held_out : str
        As there.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    training_curves(history, title, held_out).savefig(path, dpi=120)
    return path
