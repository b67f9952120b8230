"""How every picture looks, and what needs matplotlib.

The colours are those of Okabe & Ito, "Color universal design" (2008), which people with any kind of
colour vision can tell apart; lines differ in their markers too. Colour maps are viridis and
cividis, made to be read in grey, and PuOr where a sign matters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from gpulayers import backend
from gpulayers.errors import ParameterError, ShapeError

Figure = Any  # matplotlib.figure.Figure; matplotlib is not imported just to name a type
Axes = Any
Arguments = ParamSpec("Arguments")

MISSING = "pictures need matplotlib: pip install matplotlib"

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8C8C8C", "#222222"
SEQUENTIAL, SIGNED, PICTURE = "viridis", "PuOr", "gray"

_SETTINGS: Any = {  # matplotlib's names
    "text.usetex": False,
    "text.parse_math": True,  # `literal` counts on it
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}


def picture(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """A function that draws: with matplotlib checked and these settings, whatever the user's."""

    @functools.wraps(draw)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(MISSING) from error
        library: Any = matplotlib
        with library.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return run


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; it needs no display and is not kept by pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Matplotlib

    figure = Matplotlib(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_image(axes: Axes, image: np.ndarray, **how: Any) -> Any:
    """An image without ticks and frame."""
    shown = axes.imshow(image, interpolation="nearest", **how)
    bare(axes)
    return shown


def bare(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def colour_bar(
    figure: Figure, shown: Any, axes: Any, label: str, shrink: float = 0.8, aspect: float = 25
) -> Any:
    """The scale of a colour map, without a frame."""
    bar = figure.colorbar(shown, ax=axes, shrink=shrink, pad=0.02, aspect=aspect)
    bar.outline.set_visible(False)
    bar.set_label(label)
    return bar


def as_pictures(what: str, images: Any) -> np.ndarray:
    """(n, rows, cols, channels) on the host in 0..1: grey (n, rows, cols) or RGB.

    Bytes are divided by 255; other numbers are stretched from their smallest to their largest.

    Raises
    ------
    ShapeError
        If the images are no pictures of 1 or 3 channels.
    """
    X = np.asarray(backend.to_cpu(images))
    if X.ndim == 3:
        X = X[..., None]
    if X.ndim != 4 or X.shape[3] not in (1, 3):
        raise ShapeError(
            f"{what}: expected images (n, rows, cols, channels) of 1 or 3 channels, got {X.shape}"
        )
    if X.dtype == np.uint8:
        Y = X / 255.0
    else:
        low, high = float(X.min(initial=0)), float(X.max(initial=0))
        Y = (X - low) / (high - low or 1.0)
    return Y[..., 0] if X.shape[3] == 1 else Y


def grid_shape(count: int, wide: int) -> tuple[int, int]:
    """Rows and columns for `count` pictures, at most `wide` in a row."""
    columns = max(1, min(count, wide))
    return -(-count // columns), columns


def class_names(what: str, classes: Any, count: int) -> list[str]:
    """Names of `count` classes; their numbers where there are none.

    Raises
    ------
    ParameterError
        If there are more names than classes.
    """
    names = [] if classes is None else [str(name) for name in classes]
    if len(names) > count:
        raise ParameterError(f"{what}: expected at most {count} class names, got {len(names)}")
    return names + [str(i) for i in range(len(names), count)]


def literal(text: str) -> str:
    """Text that is data, such as a folder's name: its dollar signs begin no formula."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """`text`, its middle left out where it has more than `most` characters: names of one family
    often differ at their ends."""
    if len(text) <= most:
        return text
    end = text[len(text) - (most - 1) // 2 :].lstrip()
    return f"{text[: most // 2].rstrip()}\N{HORIZONTAL ELLIPSIS}{end}"


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """`text` in at most so many lines of at most `width` characters, broken after a word if it can
    be, and shortened if it must be."""
    for most in range(len(text), width, -1):
        parts: list[str] = []
        rest = shortened(text, most)
        while len(rest) > width:
            ends = [i for i in range(width // 3, width) if not rest[i].isalnum() and rest[i] != "("]
            cut = max(ends, default=width - 1) + 1
            parts.append(rest[:cut].strip())
            rest = rest[cut:]
        if len(parts) < lines:
            return "\n".join([*parts, rest.strip()])
    return shortened(text, width)
