"""Errors that gpulayers raises; each also is the built-in exception a caller would expect.

A message says where (the layer or operation), what was expected and what came. Raised besides are
ImportError for a package that is not installed, and MemoryError, NumPy's own among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GPULayersError(Exception):
    """Base class of every error raised on purpose by gpulayers."""


class ShapeError(GPULayersError, ValueError):
    """An array has the wrong rank, channel count or size."""


class DTypeError(GPULayersError, TypeError):
    """An array has a dtype the operation cannot take, or is no array at all."""


class ParameterError(GPULayersError, ValueError):
    """A hyperparameter is out of range, or a name is unknown."""


class BackendError(GPULayersError, RuntimeError):
    """The asked-for array library cannot be used, or arrays of two libraries were mixed."""


class DeviceMemoryError(BackendError, MemoryError):
    """A GPU has too little memory for what was asked of it."""


class FrozenLayerError(GPULayersError, RuntimeError, AssertionError):
    """A frozen layer was asked to update; an AssertionError too, as numpy-ml raises there."""


class NotInitializedError(GPULayersError, RuntimeError):
    """Something needs shapes that only the first forward pass tells."""


class DataError(GPULayersError, ValueError):
    """A dataset is missing, truncated, corrupted or inconsistent."""


class CheckpointError(GPULayersError, ValueError):
    """A saved model cannot be read: missing, truncated, corrupted or written by something else."""


class UnreadableError(CheckpointError):
    """A file is missing, truncated, corrupted or no file of a checkpoint's format."""


class InterchangeError(GPULayersError, ValueError):
    """A network or an array has no counterpart in the other library's format."""


class GradientError(GPULayersError, ArithmeticError):
    """A backward pass is not the gradient of its forward pass."""


class DivergedError(GPULayersError, ArithmeticError):
    """Training produced a loss that is not finite."""


class ImageScaleWarning(UserWarning):
    """Floating images are on another scale than the network was trained on, or can learn from."""


_VERY_LIKE = 0.75


def suggest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name closest to `name`, else ``""``.

    `cutoff` (0..1) is how alike the two must be; short names want more than 0.5. Unless one is
    very like it, a name that is longer and begins like it goes before those that are just alike:
    'expp' is 'exponential' and not 'step'.
    """
    given, folded = str(name).lower(), {k.lower(): k for k in known}
    close = difflib.get_close_matches(given, list(folded), n=1, cutoff=cutoff)
    alike = difflib.SequenceMatcher(None, given, close[0]).ratio() if close else 0.0
    if alike < _VERY_LIKE and len(given) >= 3:
        least = max(3, len(given) - len(given) // 4)  # as many of its characters must be right
        close = [k for k in folded if len(k) > len(given) and k.startswith(given[:least])] or close
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""
