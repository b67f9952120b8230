"""Which cases of a parametrised test stand for all of them: a fair part.

Every k-th case is no fair part: where the innermost argument has an even number of values, every
second case has the same one.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any


def fair_part(cases: Sequence[tuple[str, Mapping[str, Any]]], every: int) -> set[int]:
    """The places of about one in `every` of the cases, each an id and its arguments.

    Of an argument with no more values than so many cases, every value is among them; of one with
    more, as many as there is room for. The ids choose the rest, by their checksums: the same cases
    in each run, and others in each test.
    """
    room = -(-len(cases) // every)
    order = sorted(range(len(cases)), key=lambda place: zlib.crc32(cases[place][0].encode()))
    marks = [{(name, _mark(value)) for name, value in given.items()} for _, given in cases]
    values: dict[str, set[Hashable]] = {}
    for name, mark in set().union(*marks):
        values.setdefault(name, set()).add(mark)
    few = {name for name, all_of_it in values.items() if len(all_of_it) <= room}
    kept: set[int] = set()
    missing = {(name, mark) for name in few for mark in values[name]}
    while missing:  # first the case with most of what is missing
        best = max(order, key=lambda place: len(marks[place] & missing))
        kept.add(best)
        missing -= marks[best]
    missing = {(name, mark) for name in values.keys() - few for mark in values[name]}
    for place in order:
        if len(kept) < room and marks[place] & missing:
            kept.add(place)
            missing -= marks[place]
    kept.update([place for place in order if place not in kept][: max(room - len(kept), 0)])
    return kept


def _mark(value: Any) -> Hashable:
    """What tells values apart, also those without a hash, and 1 from True."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value), value
