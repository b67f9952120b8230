"""Floating images are taken as they are; here is noticed where that is hardly what was meant.

Only a few images are looked at, on the host: in what a user calls, never in a training step.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.errors import ImageScaleWarning

__all__ = ["not_standardised", "sample_of", "unlearnable", "warn"]

_FEW = 16  # images that are looked at
_DARK, _BRIGHT = 0.05, 0.5  # images from 0 to 1 reach them, others within it seldom do
_LARGE, _SMALL = 10.0, 0.01  # root mean square above, largest number below which nothing is learnt


def sample_of(images: Any) -> np.ndarray:
    """A few images of the whole, on the host; of those in files no others are read."""
    few = backend.to_cpu(images[:: max(1, len(images) // _FEW)][:_FEW])
    return few if few.dtype.kind == "f" else few.astype(np.float32)  # bfloat16


def not_standardised(
    images: np.ndarray, mean: Sequence[float], std: Sequence[float], dtype: Any
) -> str | None:
    """Why floats cannot be bytes that were standardised with `mean` and `std`, or None.

    Those have pixels below zero, which is the mean, and none far outside of what 0 and 255 become;
    noise or a step along a gradient may have been added to them.
    """
    low, high, middle = _look(images)
    if not math.isfinite(high - low) or low == high:  # blank ones tell nothing
        return None
    bottom = min(-m / s for m, s in zip(mean, std, strict=True))
    top = max((255 - m) / s for m, s in zip(mean, std, strict=True))
    room = top - bottom
    slack = 0.01 * room  # of rounding
    # images of little contrast lie within 0..1 too, but two bytes differ by 1 / std
    reaches = (low < _DARK and high > _BRIGHT) or high - low < 0.5 / max(std)
    if low >= 0 and high <= 1 and reaches:
        kind, bytes_of = "from 0 to 1", "(255 * images).round().astype('uint8')"
    elif bottom - slack <= middle <= top + slack and bottom - room <= low and high <= top + room:
        return None
    elif low >= 0 and 32 < high <= 255:
        kind, bytes_of = "from 0 to 255", "images.round().astype('uint8')"
    else:
        kind, bytes_of = "on another scale", "as they were read"
    return (
        f"the images are {np.dtype(dtype).name} {kind}, and floats are taken as they are; the "
        "network was trained on bytes, standardised to mean 0 and standard deviation 1, so that "
        f"its outputs for these mean little. Give bytes: {bytes_of}"
    )


def unlearnable(images: np.ndarray, dtype: Any) -> str | None:
    """Why a network learns badly from floats, or None."""
    low, high, _ = _look(images)
    size = float(np.sqrt(np.square(images, dtype=np.float64).mean()))
    peak = max(-low, high)
    if not (size > _LARGE or 0 < peak < _SMALL):
        return None
    whole = low >= 0 and high <= 255 and bool((images == np.rint(images)).all())
    how = "images.astype('uint8')" if whole else "or divide the floats so that they are about 1"
    return (
        f"the training images are {np.dtype(dtype).name} from {low:.3g} to {high:.3g}, and floats "
        "are taken as they are; a network learns badly from numbers so far from 1. Give bytes, "
        f"which are standardised: {how}"
    )


def _look(images: np.ndarray) -> tuple[float, float, float]:
    return float(images.min()), float(images.max()), float(images.mean(dtype=np.float64))


def warn(owner: str, text: str) -> None:
    """Warn in the line that called into the library, where Python then says it once."""
    level, frame = 1, sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("gpulayers"):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{owner}: {text}", ImageScaleWarning, stacklevel=level)
