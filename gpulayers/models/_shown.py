"""A dictionary that shows what a model holds, and refuses to be changed."""

from __future__ import annotations

from typing import Any, NoReturn

from gpulayers.errors import ParameterError

__all__ = ["Shown"]


class Shown(dict[str, Any]):
    """What a property puts together on each use; to assign to it would change nothing.

    Arrays in it are the live ones. Copies of it (`copy`, `pickle`, ``dict(...)``) are plain
    dictionaries.

    Parameters
    ----------
    entries : dict
    what : str
        The property, for the error: ``"lenet.parameters"``.
    instead : str
        What to do, for the error.
    """

    __slots__ = ("_instead", "_what")

    def __init__(self, entries: dict[str, Any], what: str, instead: str) -> None:
        super().__init__(entries)
        self._what, self._instead = what, instead

    # `Any`, since the signatures of dict are overloaded
    def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ParameterError(
            f"{self._what}: it is put together anew on each use, so an entry assigned to it or "
            f"taken from it would change nothing; {self._instead}"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)
