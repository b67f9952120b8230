"""How close the kernels come to what the machine can do."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers.errors import DataError
from gpulayers.plot._style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    Axes,
    Figure,
    literal,
    new_figure,
    picture,
)

__all__ = ["roofline"]

_SERIES = {
    "compiled": ("compiled", BLUE, "o"),
    "numpy": ("NumPy", ORANGE, "s"),
    "torch": ("PyTorch", GREEN, "^"),
}
_MARKER: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
_NEAR = [(0, 10), (12, 0), (-12, 0), (0, -10), (12, 9), (-12, 9), (12, -9), (-12, -9), (0, 19)]
_FAR = [(14, 0), (-14, 0), (14, 10), (-14, 10), (14, -10), (-14, -10), (0, 20), (0, -20)]
_PLACES = [*_NEAR, *((k * x, k * y) for k in (1.0, 1.6, 2.2) for x, y in _FAR)]
_DIGIT_SPACE = "\u2007"  # as wide as a digit
_NEEDED = ("title", "ms", "MFLOP", "MB")


@picture
def roofline(results: Mapping[str, Any] | str | os.PathLike[str]) -> Figure:
    """Draw the cases of a benchmark against the machine's copy and matrix-product rates.

    Parameters
    ----------
    results : path of a file, or its contents
        What ``benchmarks/cpu.py`` writes: rates, and for each case its time, MFLOP and MB.

    Returns
    -------
    matplotlib.figure.Figure
        Left the roofline: work per byte against work per second, both logarithmic; a case is a
        number, named beside. Right the cases that hardly compute, by bytes per second.

    Raises
    ------
    DataError
        If the file is missing or none of a benchmark.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Bytes are those that must be moved at least, so a case can lie above the copy line: what stays
    in the caches is not moved. Winograd's convolution takes fewer operations than are counted here,
    so it can lie above the flat line. Source: Williams, Waterman & Patterson, "Roofline: an
    insightful visual performance model" (2009).
    """
    data = _read(results)
    copy, gemm = data["rates"]["copy GB/s"], data["rates"]["GEMM GFLOP/s"]
    cases = list(data["cases"].values())
    computing = sorted((c for c in cases if c["MFLOP"] > 0), key=lambda c: c["MFLOP"] / c["MB"])
    moving = [c for c in cases if not c["MFLOP"]]
    height = max(5.5, 0.27 * max(len(computing), len(moving)) + 1.5)
    listed, labelled = (_text_width([c["title"] for c in group]) for group in (computing, moving))
    widths = [5.2, max(listed + 0.3, 2.7), 4.0]  # inches
    figure = new_figure(sum(widths) + labelled + 1.3, height)
    left, names, right = figure.subplots(1, 3, width_ratios=widths)
    _roofs(left, copy, gemm, computing)
    _computing(left, computing)
    _listed(names, computing)
    _moving(right, moving, copy)
    machine = literal(str(data.get("cpu", "this machine")))
    figure.suptitle(f"{machine}, {data.get('threads', '?')} threads")
    figure.draw_without_rendering()  # places of the points are known from here on
    _numbered(left, computing)
    return figure


def _read(given: Any) -> Mapping[str, Any]:
    results: Any = given
    if not isinstance(given, Mapping):
        path = Path(given)
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"roofline: cannot read {path}: {error}") from error
    try:
        rates: dict[str, Any] = results["rates"]
        cases: dict[str, dict[str, Any]] = results["cases"]
        whole = {"copy GB/s", "GEMM GFLOP/s"} <= set(rates) and len(cases) > 0
        whole = whole and all(name in case for case in cases.values() for name in _NEEDED)
    except (TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            "roofline: expected the results of benchmarks/cpu.py: 'rates' with copy and GEMM, and "
            f"'cases' with {', '.join(_NEEDED)}"
        )
    return results


def _text_width(lines: list[str]) -> float:
    """About how wide the longest line is, in inches, in letters of 9 points."""
    return 0.068 * max((len(line) for line in lines), default=0)


def _best(case: Mapping[str, Any], engine: str) -> float | None:
    """Seconds of the fastest way of an engine: layer by layer, or planned."""
    ways = [engine, f"{engine} plan", f"{engine} other"]
    found = [case["ms"][way] for way in ways if way in case["ms"]]
    return min(found) / 1e3 if found else None


def _roofs(axes: Axes, copy: float, gemm: float, cases: list[Mapping[str, Any]]) -> None:
    """What copying and what computing allow."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    densities: list[float] = [c["MFLOP"] / c["MB"] for c in cases] or [1.0]
    low, high = min(*densities, gemm / copy) / 4, max(*densities, gemm / copy) * 2
    x: np.ndarray = np.geomspace(low, high, 200)
    axes.plot(x, np.minimum(x * copy, gemm), color=INK, linewidth=1.5)
    room = gemm / copy < math.sqrt(low * high)  # right of the bend
    axes.text(
        gemm / copy * 1.1 if room else high,
        gemm * 1.06,
        f"matrix product, {gemm:.0f} GFLOP/s",
        ha="left" if room else "right",
        fontsize=9,
        in_layout=False,
    )
    axes.text(
        low * 1.15,
        low * 1.15 * copy * 1.15,
        f"copy, {copy:.1f} GB/s",
        fontsize=9,
        rotation=math.degrees(math.atan(copy)),  # along y = copy x
        rotation_mode="anchor",
        transform_rotates_text=True,
        in_layout=False,
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="operations per byte (FLOP/B)",
        ylabel="speed (GFLOP/s)",
        title="Cases that compute",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major")


def _speeds(case: Mapping[str, Any]) -> dict[str, float]:
    """GFLOP/s of each engine that was measured."""
    times = {engine: _best(case, engine) for engine in _SERIES}
    return {engine: case["MFLOP"] / 1e3 / t for engine, t in times.items() if t}


def _computing(axes: Axes, cases: list[Mapping[str, Any]]) -> None:
    for case in cases:
        ends = min(_speeds(case).values()), max(_speeds(case).values())
        at = case["MFLOP"] / case["MB"]
        axes.plot([at, at], ends, color="#CCCCCC", linewidth=1, zorder=1)
    for engine, (label, colour, marker) in _SERIES.items():
        points = [(c["MFLOP"] / c["MB"], _speeds(c).get(engine)) for c in cases]
        speeds = [speed for _, speed in points if speed]
        if speeds:
            places = [at for at, speed in points if speed]
            axes.plot(places, speeds, marker, color=colour, label=label, **_MARKER)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.0))


def _numbered(axes: Axes, cases: list[Mapping[str, Any]]) -> None:
    """Each case's number beside its fastest point, where neither points nor numbers stand."""
    points = [(c["MFLOP"] / c["MB"], speed) for c in cases for speed in _speeds(c).values()]
    taken = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    scale = axes.figure.dpi / 72
    for k, case in sorted(enumerate(cases, 1), key=lambda item: -max(_speeds(item[1]).values())):
        anchor = case["MFLOP"] / case["MB"], max(_speeds(case).values())
        x, y = (float(v) for v in axes.transData.transform(anchor))
        free = [
            (dx, dy)
            for dx, dy in _PLACES
            if all(
                abs(x + dx * scale - u) > 13 * scale or abs(y + dy * scale - v) > 9 * scale
                for u, v in taken
            )
        ]
        dx, dy = (free or _PLACES)[0]
        taken.append((x + dx * scale, y + dy * scale))
        axes.annotate(
            str(k),
            anchor,
            (dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
        )


def _listed(axes: Axes, cases: list[Mapping[str, Any]]) -> None:
    """The cases by their numbers, in the order of the horizontal axis."""
    axes.set_axis_off()
    lines = [
        f"{k}".rjust(2, _DIGIT_SPACE) + f"  {literal(c['title'])}" for k, c in enumerate(cases, 1)
    ]
    style: dict[str, Any] = {"fontsize": 8, "linespacing": 1.5, "transform": axes.transAxes}
    style["in_layout"] = False  # its column is as wide as it is
    axes.text(0, 1, "\n".join(lines), va="top", **style)
    note = "Above the flat line: Winograd's convolution\ntakes fewer operations than are counted."
    axes.text(0, 0, note, va="bottom", color=GREY, **style)


def _moving(axes: Axes, cases: list[Mapping[str, Any]], copy: float) -> None:
    """Bytes per second, a line for each case."""
    axes.set(title="Cases that move data", xlabel="speed (GB/s)")
    places = np.arange(len(cases))[::-1]
    for engine, (label, colour, marker) in _SERIES.items():
        points = [
            (at, c["MB"] / 1e3, _best(c, engine)) for at, c in zip(places, cases, strict=True)
        ]
        axes.plot(
            [moved / t for _, moved, t in points if t],
            [at for at, _, t in points if t],
            marker,
            color=colour,
            label=label,
            clip_on=False,
            **_MARKER,
        )
    axes.axvline(copy, color=INK, linewidth=1.5)
    axes.text(copy, len(cases) - 0.4, "copy ", ha="right", fontsize=9)
    axes.set_yticks(places, [literal(case["title"]) for case in cases])
    axes.set_ylim(-0.7, len(cases) - 0.1)
    axes.set_xlim(left=0)
    axes.grid(axis="both")
    axes.tick_params(axis="y", length=0, pad=10)
