"""Errors of an array library over sizes say which layer asked for them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from gpulayers._types import is_sequence
from gpulayers.errors import GPULayersError, ShapeError

# what array libraries say of a size that no array can have
_TOO_LARGE = ("too big", "too large", "out of bounds for", "Maximum allowed dimension")


@contextmanager
def named(what: str) -> Generator[None]:
    """Name in an error for want of memory, or over a size that cannot be, what it was for."""
    try:
        yield
    except Exception as error:
        other = _said(error, what, what)
        if other is None:
            raise
        raise other from error


def say_where(error: Exception, who: str, what: str, arrays: Any) -> ShapeError | None:
    """Add to an error for want of memory which call of which layer it was: CuPy names bytes. Return
    the error to raise instead for a size that no array can have."""
    if not isinstance(error, (MemoryError, OverflowError, ValueError)):
        return None
    several: Sequence[Any] = arrays if is_sequence(arrays) else [arrays]
    sizes = ", ".join(f"{getattr(a, 'shape', '?')} {getattr(a, 'dtype', '')}" for a in several)
    layer = who.partition(".")[0]
    if any(note.startswith(f"{layer}: ") for note in getattr(error, "__notes__", ())):
        return None  # it is a parameter that was too large
    note = f"{who}: of {what} of shape {sizes}; a smaller batch needs less memory"
    return _said(error, f"{who}: {what} of shape {sizes}", note)


def _said(error: Exception, what: str, note: str) -> ShapeError | None:
    if isinstance(error, MemoryError):
        error.add_note(note)
    elif isinstance(error, GPULayersError):
        return None
    elif isinstance(error, (OverflowError, ValueError)) and any(
        w in str(error) for w in _TOO_LARGE
    ):
        return ShapeError(f"{what} leads to a size that no array can have: {error}")
    return None
