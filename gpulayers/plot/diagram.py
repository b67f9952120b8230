"""A network drawn as boxes, from the image at the top to the scores at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.layers._group import LayerGroup
from gpulayers.models import Residual
from gpulayers.models._watch import bare as unwrapped
from gpulayers.models._watch import parts_of
from gpulayers.models.summary import Row, look
from gpulayers.modules.base import ModuleBase
from gpulayers.plot._style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Axes,
    Figure,
    literal,
    new_figure,
    picture,
)

__all__ = ["network_diagram"]

_FAMILIES = {
    BLUE: ("Conv", "Deconv"),
    GREEN: ("Pool", "GlobalAvg", "Upsample", "ZeroPad"),
    ORANGE: ("FullyConnected", "SparseEvolution", "RBM"),
    PURPLE: ("BatchNorm", "LayerNorm", "GroupNorm"),
    SKY: ("RNN", "LSTM", "GRU", "Bidirectional", "DotProduct", "MultiHeaded", "Embedding"),
    RED: ("Residual", "SkipConnection", "Wavenet"),
}
_STEP, _BOX, _WIDTH, _INDENT = 0.5, 0.34, 3.0, 0.45  # inches


@picture
def network_diagram(network: Any, input_shape: Sequence[Any], title: str = "") -> Figure:
    """Draw the layers of a network one below the other, with what they are told and give.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
    input_shape : shape of one example, e.g. (28, 28, 1)
    title : str
        The network's name if empty; ``$x_2$`` is a formula in a title, and itself in a name.

    Returns
    -------
    matplotlib.figure.Figure
        A box a layer, the layers of a block set in from it, the way around a residual block as a
        line at its side; the layers of a module, which may stand side by side, have no arrows.
        Behind each box the shape of its output and the number of its parameters.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    GPULayersError
        If the network does not take such an input.
    """
    summary = look(network, input_shape, 1, "network_diagram")
    layers = {"": network, **dict(parts_of(network))}
    rows = summary.rows
    depth = max(_depth(row) for row in rows)
    width, height = _WIDTH + depth * _INDENT + 3.3, _STEP * (len(rows) + 1) + 0.9
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(-0.35, width - 0.35), ylim=(-_STEP * (len(rows) + 0.8), 0.75))
    left = _WIDTH + depth * _INDENT + 0.2
    columns = (left, left + 2.5)
    axes.text(columns[0], 0.45, "output", color=GREY, fontsize=9, va="center")
    axes.text(columns[1], 0.45, "parameters", color=GREY, fontsize=9, va="center", ha="right")
    _box(axes, 0.0, 0, "input", "white")
    axes.text(columns[0], 0, _shape(summary.input_shape), fontsize=9, va="center")
    for k, row in enumerate(rows, 1):
        y, x = -_STEP * k, _INDENT * _depth(row)
        if _follows(row.name, layers):
            _arrow(axes, x + 0.35, y)
        _box(axes, x, y, literal(_words(row, layers[row.name])), _colour(row.layer), row.is_group)
        axes.text(columns[0], y, _shape(row.output), fontsize=9, va="center")
        if row.parameters:
            text = f"{row.parameters:,}"
            axes.text(columns[1], y, text, fontsize=9, va="center", ha="right")
        block = unwrapped(layers[row.name])
        if isinstance(block, Residual) and block.shortcut is None:
            inside = sum(other.name.startswith(f"{row.name}.") for other in rows)
            _way_around(axes, x + _INDENT / 2, y, inside)
    name = title or literal(getattr(network, "name", type(unwrapped(network)).__name__))
    axes.set_title(f"{name}: {summary.parameters:,} parameters", loc="left")
    return figure


def _follows(name: str, layers: dict[str, Any]) -> bool:
    """Whether a row gets what the row above it gives: not inside modules, whose layers may stand
    side by side, nor at the beginning of a shortcut."""
    if not name:
        return True
    parent, _, key = name.rpartition(".")
    if isinstance(layers[parent], ModuleBase):
        return False
    return not (parent.endswith("shortcut") and key == "0")


def _depth(row: Row) -> int:
    """How far a row is set in: the layers of a block stand in chains inside it."""
    return (row.name.count(".") + 1) // 2


def _words(row: Row, layer: Any) -> str:
    """The layer's class, and what it was told that shows its work."""
    layer = unwrapped(layer)
    told: list[str] = []
    kernel = getattr(layer, "kernel_shape", None) or getattr(layer, "kernel_width", None)
    if kernel is not None:
        told.append(_sizes(kernel))
    stride = getattr(layer, "stride", 1)
    if stride not in (1, (1, 1)):
        told.append(f"stride {_sizes(stride)}")
    if getattr(layer, "mode", None) and row.layer == "Pool2D":
        told.insert(0, layer.mode)
    if row.layer == "Dropout":
        told.append(f"p = {layer.p:g}")
    act = getattr(layer, "act_fn", None)
    if act is not None and str(act) != "Identity" and not isinstance(layer, LayerGroup):
        told.append(str(act).partition("(")[0])
    name = row.layer if not told else f"{row.layer}  {', '.join(told)}"
    return f"{row.name}  {name}".strip()


def _sizes(value: Any) -> str:
    """An int, or one for rows and columns."""
    return " x ".join(str(n) for n in value) if hasattr(value, "__len__") else str(value)


def _colour(layer: str) -> str:
    return next((c for c, starts in _FAMILIES.items() if layer.startswith(starts)), GREY)


def _shape(shape: tuple[Any, ...]) -> str:
    if shape and hasattr(shape[0], "__len__"):
        return ", ".join(_shape(one) for one in shape)
    return _sizes(shape)


def _box(axes: Axes, x: float, y: float, text: str, colour: str, hollow: bool = False) -> None:
    """A box with a broad edge in the family's colour: black text stays readable on all of them."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    axes.add_patch(
        FancyBboxPatch(
            (x, y - _BOX / 2),
            _WIDTH,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor="white" if hollow else "#F7F7F7",
            edgecolor="#BBBBBB",
            linestyle="--" if hollow else "-",
            linewidth=0.8,
        )
    )
    if colour != "white":
        axes.add_patch(Rectangle((x, y - _BOX / 2), 0.09, _BOX, facecolor=colour))
    axes.text(x + 0.18, y, text, fontsize=9, va="center", color=INK)


def _arrow(axes: Axes, x: float, y: float) -> None:
    """From the box above to this one."""
    axes.annotate(
        "",
        (x, y + _BOX / 2),
        (x, y + _STEP - _BOX / 2),
        arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1, "mutation_scale": 7},
    )


def _way_around(axes: Axes, x: float, y: float, inside: int) -> None:
    """The line around a residual block's layers, to where both are added."""
    top, bottom = y - _BOX / 2, y - _STEP * (inside + 1) + _BOX / 2
    axes.annotate(
        "",
        (x, bottom),
        (x, top),
        arrowprops={"arrowstyle": "-|>", "color": RED, "lw": 1.5, "shrinkA": 0, "shrinkB": 0},
    )
    axes.text(
        x - 0.1, bottom + 0.1, "+", color=RED, fontsize=12, weight="bold", ha="center", va="center"
    )
