"""A list of steps that is cut out of an array only where it is looked at."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from typing import Any

from gpulayers.backend import Array


class Steps(MutableSequence[Any]):
    """The items of an array along its first axis, as a list of views.

    A sequence of 100 steps has hundreds of values to show, most of which nobody looks at, and
    CuPy takes a microsecond for a view. So the list is made when it is changed; until then an item
    is cut where it is asked for. It does what a list does, and only is not of that type.
    """

    def __init__(self, array: Array) -> None:
        self._array: Array | None = array
        self._list: list[Any] = []

    def _items(self) -> list[Any]:
        if self._array is not None:
            self._list = [self._array[t] for t in range(len(self._array))]
            self._array = None
        return self._list

    def __len__(self) -> int:
        return len(self._list if self._array is None else self._array)

    def __getitem__(self, index: Any) -> Any:
        if self._array is None or isinstance(index, slice):
            return self._items()[index]
        return self._array[range(len(self._array))[index]]  # an integer within it, nothing else

    def __setitem__(self, index: Any, value: Any) -> None:
        self._items()[index] = value

    def __delitem__(self, index: Any) -> None:
        del self._items()[index]

    def insert(self, index: int, value: Any) -> None:
        """Put `value` before the item of this number."""
        self._items().insert(index, value)

    def copy(self) -> list[Any]:
        """Return a list of the same items."""
        return self._items().copy()

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Any]) -> list[Any]:
        return [*other, *self]

    def __repr__(self) -> str:
        return repr(self._items())
