"""Convolutions with spacing between the taps as dense ones.

What a tap sees lies a whole number of spacings from what the next one sees. So the pixels whose
rows and columns leave the same remainders by the spacing are images of their own, which the kernel
goes over without spacing. It costs a copy of the images and one of the outputs.

Source: Yu & Koltun, "Multi-scale context aggregation by dilated convolutions" (2016), which names
the operation; the copies are what TensorFlow calls space to batch.
"""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.cpu._blocks import pixels, row_shares
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares

Spacing = tuple[int, int]


def dense_window(window: Window, size: tuple[int, int]) -> Window | None:
    """The window on the images of `apart`, for images of `size` rows and columns; None where there
    is no spacing, or where those images would not be alike."""
    (dr, dc), (top, bottom, left, right) = window.dilation, window.pad
    if window.dilation == (1, 1) or window.stride != (1, 1):
        return None
    if any(k % dr for k in (size[0], top, bottom)) or any(k % dc for k in (size[1], left, right)):
        return None
    pad = (top // dr, bottom // dr, left // dc, right // dc)
    return Window(window.kernel, (1, 1), pad)


def shape_apart(shape: Shape4, spacing: Spacing) -> Shape4:
    """The shape of `apart`."""
    (n, rows, cols, ch), (dr, dc) = shape, spacing
    return n * dr * dc, rows // dr, cols // dc, ch


def apart(images: Array, spacing: Spacing) -> Array:
    """The images (dr dc n, rows / dr, cols / dc, ch) of the pixels that leave the same remainders,
    of contiguous ones (n, rows, cols, ch)."""
    parts = workspace.empty(shape_apart(images.shape, spacing), images.dtype)
    _copy(_by_remainder(images, spacing), _in_order(parts, spacing))
    return parts


def together(parts: Array, spacing: Spacing) -> Array:
    """The images that `apart` made `parts` of."""
    (count, rows, cols, ch), (dr, dc) = parts.shape, spacing
    images = workspace.empty((count // (dr * dc), rows * dr, cols * dc, ch), parts.dtype)
    _copy(_in_order(parts, spacing), _by_remainder(images, spacing))
    return images


def _by_remainder(images: Array, spacing: Spacing) -> Array:
    """The pixels as (n, dr, dc, rows / dr, cols / dc)."""
    (n, rows, cols, _), (dr, dc) = images.shape, spacing
    return pixels(images).reshape(n, rows // dr, dr, cols // dc, dc).transpose(0, 2, 4, 1, 3)


def _in_order(parts: Array, spacing: Spacing) -> Array:
    """The pixels of the parts, as (n, dr, dc, rows, cols)."""
    count, rows, cols, _ = parts.shape
    (dr, dc) = spacing
    return pixels(parts).reshape(count // (dr * dc), dr, dc, rows, cols)


def _copy(source: Array, target: Array) -> None:
    shares = row_shares(len(source), source[0].size * source.itemsize // 4, 2)
    run_shares(lambda i, part: np.copyto(target[part], source[part]), shares)
