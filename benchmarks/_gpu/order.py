"""In which order the ways of taking a step have their turns: what no run has measured yet first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from _gpu import record, tables
from _gpu.nets import Item

__all__ = ["TURNS", "TWICE", "Turn", "turns"]

#: (side, way, seconds that it is given at most): each way in a process of its own, so that it has
#: its own peak of memory; the slow compilers last
TURNS: tuple[tuple[str, str, float], ...] = (
    *(("ours", way, 200.0) for way in ("fused", "resident")),
    *(("torch", way, 120.0) for way in ("torch eager", "torch graph")),
    *(("ours", way, 200.0) for way in ("mega", "layers")),
    *(("jax", way, 150.0) for way in ("jax jit", "jax scan")),
    ("torch", "torch reduce-overhead", 200.0),
    ("torch", "torch compiled graph", 300.0),
    ("torch", "torch max-autotune", 300.0),
)
#: each of them made and timed once more in its process, for the noise
TWICE = ("fused", "resident", "mega", "torch eager", "torch graph", "jax jit")


class Turn(NamedTuple):
    """A way of taking an item's step that is to be timed."""

    item: Item
    side: str
    way: str
    most: float


def turns(
    items: list[Item], known: dict[str, dict[str, Any]], sides: list[str], anew: bool = False
) -> Iterator[Turn]:
    """Yield each way that has no figure, way by way; those that failed in a former run last.

    A ratio needs both times from the same run. So before the first of an item's turns some ways
    that have a figure are timed again: our fastest before a peer, PyTorch's eager step and the
    fastest peer before one of ours.

    Parameters
    ----------
    known : item's name -> way -> value
        What runs like this one found, with this one's own.
    sides : list of str
        Those that take part.
    anew : bool
        Everything is timed, as if nothing were known.
    """
    if anew:
        known = {}
    anchored: set[str] = set()
    for wanted in ("left out", "failed"):
        for side, way, most in TURNS:
            for item in items:
                entry = known.get(item.name, {})
                if side not in sides or _state(entry, way) != wanted:
                    continue
                if item.name not in anchored:
                    anchored.add(item.name)
                    yield from _anchors(item, entry, sides)
                yield Turn(item, side, way, most)


def _state(entry: dict[str, Any], way: str) -> str:
    return record.state(entry[way]) if way in entry else "left out"


def _anchors(item: Item, entry: dict[str, Any], sides: list[str]) -> Iterator[Turn]:
    """What is timed again, so that what is missing can be held against it."""
    missing = [s for s, way, _ in TURNS if s in sides and _state(entry, way) != "measured"]
    wanted = [tables.fastest(entry, tables.OURS)]
    if "ours" in missing:
        wanted += [tables.EAGER, tables.fastest(entry)]
    for side, way, most in TURNS:
        if way in wanted and side in sides and _state(entry, way) == "measured":
            yield Turn(item, side, way, most)
