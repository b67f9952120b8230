"""The curves of a run in a notebook, drawn again while they grow."""

from __future__ import annotations

import math
import time
from html import escape
from typing import Any

from gpulayers.training.history import Epoch, History

__all__ = ["CurveProgress", "curve_svg"]

_LOOK_SECONDS = 0.5  # between two drawings
_WIDTH, _HEIGHT, _LEFT, _TOP = 330, 200, 52, 30  # of one panel, and its axes' place in it
_BLUE, _ORANGE = "#1f77b4", "#ff7f0e"
_POINTS = 200  # of a curve: more are not to be seen


class CurveProgress:
    """Loss and accuracy as growing curves (an SVG picture, no package but IPython is needed).

    Parameters
    ----------
    history : History
        Of the run that is shown.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.epochs, self.steps = 0, 1
        self._line, self._notes = "", [""]
        self._running: list[tuple[float, float, float]] = []  # epoch, loss, accuracy
        self._handle: Any = None
        self._shown = 0.0

    def start(self, epochs: int, steps: int, done: int) -> None:
        # IPython may be missing, and `display` has no full types
        from IPython.display import display  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

        self.epochs, self.steps, self._notes = epochs, max(1, steps), []
        self._handle = display(self._picture(), display_id=True)

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        at = epoch - 1 + step / self.steps
        self._running.append((at, loss, accuracy))
        self._line = (
            f"epoch {epoch}/{self.epochs}, batch {step}/{self.steps}: loss {loss:.4f}, "
            f"accuracy {accuracy:.2%}, {rate:,.0f} examples/s"
        )
        if time.perf_counter() - self._shown > _LOOK_SECONDS:
            self._draw()

    def validating(self, epoch: int) -> None:
        """Too short to be worth a drawing."""

    def epoch_done(self, record: Epoch) -> None:
        self._line = (
            f"epoch {record.epoch}/{self.epochs}: loss {record.train_loss:.4f}, test loss "
            f"{record.val_loss:.4f}, test accuracy {record.val_accuracy:.2%}, "
            f"{record.examples_per_second:,.0f} examples/s"
        )
        self._draw()

    def message(self, text: str) -> None:
        self._notes.append(text)
        self._draw()

    def stop(self) -> None:
        self._draw()
        self._handle = None

    def _draw(self) -> None:
        self._shown = time.perf_counter()
        if self._handle is not None:
            self._handle.update(self._picture())

    def _picture(self) -> _Picture:
        notes = [self._line, *self._notes]
        return _Picture(curve_svg(self.history, self.epochs, notes, self._running), notes[0])


class _Picture:
    """What IPython asks for its picture, or for its text where there are none."""

    def __init__(self, svg: str, text: str) -> None:
        self._svg, self._text = svg, text

    def _repr_html_(self) -> str:
        return self._svg

    def __repr__(self) -> str:
        return self._text


def curve_svg(
    history: History,
    epochs: int,
    notes: list[str],
    running: list[tuple[float, float, float]] | None = None,
) -> str:
    """Return a picture of loss and accuracy over the epochs, as SVG.

    Parameters
    ----------
    history : History
    epochs : int
        The width of the axis.
    notes : list of str
        Lines of text below.
    running : list of (epochs so far, loss, accuracy), optional
        Means over the running epochs, drawn thin.
    """
    x = history.column("epoch")
    live = running or []
    panels = [
        ("loss", "train_loss", "val_loss", [(r[0], r[1]) for r in live]),
        ("accuracy", "train_accuracy", "val_accuracy", [(r[0], r[2]) for r in live]),
    ]
    body = ""
    for i, (title, train, test, thin) in enumerate(panels):
        lines = [
            (thin, _BLUE, 0.4),
            (list(zip(x, history.column(train), strict=True)), _BLUE, 1.0),
            (list(zip(x, history.column(test), strict=True)), _ORANGE, 1.0),
        ]
        body += _panel(title, lines, epochs, i * (_WIDTH + _LEFT))
    notes = [note for note in notes if note]
    height = _HEIGHT + 70 + 18 * len(notes)
    for i, note in enumerate(notes):
        body += f'<text x="8" y="{_HEIGHT + 80 + 18 * i}">{escape(note)}</text>'
    wide = 2 * (_WIDTH + _LEFT) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" '
        f'style="max-width:{wide}px;width:100%;background:#fff" '
        f'font-family="sans-serif" font-size="12" role="img" '
        f'aria-label="loss and accuracy over {len(x)} epochs">{body}</svg>'
    )


def _panel(
    title: str, lines: list[tuple[list[tuple[float, float]], str, float]], epochs: int, left: int
) -> str:
    """One pair of axes with its curves."""
    values = [y for points, _, _ in lines for _, y in points if math.isfinite(y)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    least = max(1e-9, 1e-6 * abs(low), 1e-6 * abs(high))
    step = _round_step(max(high - low, least) / 4)
    low = step * math.floor(low / step + 1e-9)
    high = max(step * math.ceil(high / step - 1e-9), low + step)
    width, bottom, x0 = max(1, epochs), _TOP + _HEIGHT, left + _LEFT

    def place(x: float, y: float) -> str:
        return f"{x0 + x / width * _WIDTH:.1f},{bottom - (y - low) / (high - low) * _HEIGHT:.1f}"

    text = f'<text x="{x0}" y="18" font-weight="bold">{title}</text>'
    if title == "loss":
        text += f'<text x="{x0 + 60}" y="18" fill="{_BLUE}">training</text>'
        text += f'<text x="{x0 + 120}" y="18" fill="{_ORANGE}">test</text>'
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        y = bottom - _HEIGHT * i * step / (high - low)
        text += f'<path d="M{x0} {y:.1f}h{_WIDTH}" stroke="#ddd"/>'
        text += f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    for epoch in range(0, width + 1, max(1, round(_round_step(width / 6)))):
        at = x0 + epoch / width * _WIDTH
        text += f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{epoch}</text>'
    text += f'<text x="{x0 + _WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">epoch</text>'
    for points, colour, strength in lines:
        shown = [p for p in points if math.isfinite(p[1])]
        shown = shown[:: max(1, len(shown) // _POINTS)]
        path = " ".join(place(x, y) for x, y in shown)
        if len(shown) > 1:
            text += f'<polyline points="{path}" fill="none" stroke="{colour}" '
            text += f'stroke-width="{1 + strength}" opacity="{strength}"/>'
        for x, y in shown if strength == 1.0 and len(shown) <= 30 else []:
            cx, cy = place(x, y).split(",")
            text += f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>'
    return text


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50 ... (and of their tenths and so on) that is not less."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(n * unit for n in (1, 2, 5, 10) if n * unit >= least * (1 - 1e-9))
