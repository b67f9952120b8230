"""A drawing as MNIST's makers would have prepared it."""

from __future__ import annotations

import numpy as np

from gpulayers.errors import DTypeError, ShapeError

__all__ = ["centred"]

SIDE, BOX = 28, 20  # pixels of an MNIST image, and of the box that its ink fits into
_INK = 25  # levels above the ground that count as ink: compression leaves faint noise


def centred(drawing: np.ndarray) -> np.ndarray:
    """Return `drawing` scaled and centred as the digits of MNIST are.

    The ink's bounding box is scaled, with its sides' ratio kept, to fit into 20 x 20 pixels, which
    gives gray levels; it is then placed in a field of 28 x 28 such that its centre of mass is at
    the centre. Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".

    Parameters
    ----------
    drawing : (rows, cols) uint8
        Bright ink on a dark ground.

    Returns
    -------
    (28, 28) uint8
        Zeros if there is no ink.

    Raises
    ------
    DTypeError, ShapeError
        If it is no such array.
    """
    if not isinstance(drawing, np.ndarray) or drawing.dtype != np.uint8:
        raise DTypeError(
            f"a drawing must be a uint8 array, got {getattr(drawing, 'dtype', type(drawing))}"
        )
    if drawing.ndim != 2 or not drawing.size:
        raise ShapeError(f"a drawing must have shape (rows, cols), got {drawing.shape}")
    result = np.zeros((SIDE, SIDE), np.uint8)
    ink = drawing > _INK
    if not ink.any():
        return result
    rows, cols = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    cut = drawing[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(np.float64)
    scale = BOX / max(cut.shape)
    height, width = (max(1, round(n * scale)) for n in cut.shape)
    small = _weights(height, len(cut)) @ cut @ _weights(width, cut.shape[1]).T
    mass = small.sum()
    middle = (SIDE - 1) / 2  # pixel centres are at whole numbers
    top = round(middle - float(np.arange(height) @ small.sum(axis=1) / mass))
    left = round(middle - float(small.sum(axis=0) @ np.arange(width) / mass))
    top, left = min(max(top, 0), SIDE - height), min(max(left, 0), SIDE - width)
    result[top : top + height, left : left + width] = np.rint(small).clip(0, 255)
    return result


def _weights(size: int, count: int) -> np.ndarray:
    """Resampling `count` pixels to `size`, as a matrix (size, count) whose rows sum to 1.

    A triangle filter, as wide as a pixel of the coarser side: linear interpolation when growing,
    an antialiased mean when shrinking (Turkowski, "Filters for common resampling tasks", 1990).
    """
    ratio = count / size
    support = max(ratio, 1.0)
    centres = (np.arange(size) + 0.5) * ratio - 0.5
    distance = np.abs(np.arange(count)[None, :] - centres[:, None]) / support
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
