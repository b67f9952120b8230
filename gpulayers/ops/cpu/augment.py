"""Crops, flips and cut squares on NumPy: whole windows are copied, not pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops.cpu._blocks import pixels
from gpulayers.ops.reference.augment import ReferenceAugment, reflected

_BLOCK = 1 << 17  # bytes of images blended at a time: they stay in the cache


class CpuAugment(ReferenceAugment):
    """The reference's results, bit for bit."""

    def crop(
        self,
        images: Array,
        tops: Array,
        lefts: Array,
        size: tuple[int, int],
        reflect: bool,
        fill: Any,
    ) -> Array:
        n, rows, cols, channels = images.shape
        if not n:
            return np.empty((0, *size, channels), images.dtype)
        # A window far outside sees what one nearer sees; the memory below stays small.
        if reflect:
            tops, lefts = tops % max(1, 2 * rows - 2), lefts % max(1, 2 * cols - 2)
        else:
            tops, lefts = np.clip(tops, -size[0], rows), np.clip(lefts, -size[1], cols)
        # the part of the plane that windows reach into
        top, left = min(0, int(tops.min())), min(0, int(lefts.min()))
        bottom = max(rows, int(tops.max()) + size[0])
        right = max(cols, int(lefts.max()) + size[1])
        if reflect:
            across = pixels(images).take(reflected(np.arange(left, right), cols), axis=2)
            across = across.view(images.dtype).reshape(n, rows, right - left, channels)
            padded = across.take(reflected(np.arange(top, bottom), rows), axis=1)
        elif (top, left, bottom, right) == (0, 0, rows, cols):
            padded = images
        else:
            padded = np.empty((n, bottom - top, right - left, channels), images.dtype)
            padded[...] = fill
            padded[:, -top : rows - top, -left : cols - left] = images
        # each window as runs of cols * channels numbers
        image, line, pixel, item = padded.strides
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (
                n,
                padded.shape[1] - size[0] + 1,
                padded.shape[2] - size[1] + 1,
                size[0],
                size[1] * channels,
            ),
            (image, line, pixel, line, item),
            writeable=False,
        )
        Y = windows[np.arange(n), tops - top, lefts - left]
        return np.ascontiguousarray(Y).reshape(n, *size, channels)

    def flip_columns(self, images: Array, chosen: Array) -> Array:
        Y = images.copy()
        source, target = pixels(images), pixels(Y)
        target[chosen] = source[chosen][:, :, ::-1]
        return Y

    def cut_squares(self, images: Array, rows: Array, cols: Array, side: int, fill: Any) -> Array:
        Y = images.copy()
        starts = zip((rows - side // 2).tolist(), (cols - side // 2).tolist(), strict=True)
        for image, (i, j) in zip(Y, starts, strict=True):
            image[max(i, 0) : max(i + side, 0), max(j, 0) : max(j + side, 0)] = fill
        return Y

    def mix(self, images: Array, partners: Array, weight: float) -> Array:
        dtype = images.dtype.type
        mine, other = dtype(weight), dtype(1.0 - weight)
        Y = np.empty_like(images)
        if not Y.size:
            return Y
        step = max(1, _BLOCK // images[0].nbytes)
        part = np.empty_like(images[:step])
        for start in range(0, len(images), step):
            target = Y[start : start + step]
            scaled = part[: len(target)]
            np.multiply(images[partners[start : start + step]], other, out=target)
            np.multiply(images[start : start + step], mine, out=scaled)
            target += scaled
        return Y
