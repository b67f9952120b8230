"""Crops, flips, cut squares and mixtures of images in array arithmetic: no loop over the images,
no look at the random numbers, so nothing waits for a GPU."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of


def reflected(places: Array, size: int) -> Array:
    """Places on a line of `size` pixels mirrored at its end pixels: ... 2 1 0 1 2 ... size-2 ..."""
    if size == 1:
        return places * 0
    last = size - 1
    return last - abs(last - places % (2 * last))


class ReferenceAugment:
    """He et al. (2016), section 4.2; DeVries & Taylor (2017); Zhang et al. (2018)."""

    def crop(
        self,
        images: Array,
        tops: Array,
        lefts: Array,
        size: tuple[int, int],
        reflect: bool,
        fill: Any,
    ) -> Array:
        xp = xp_of(images)
        n, rows, cols, channels = images.shape
        i, j = tops[:, None] + xp.arange(size[0]), lefts[:, None] + xp.arange(size[1])
        if reflect:
            near_i, near_j = reflected(i, rows), reflected(j, cols)
        else:
            near_i, near_j = xp.clip(i, 0, rows - 1), xp.clip(j, 0, cols - 1)
        pixel = (xp.arange(n)[:, None] * rows + near_i)[:, :, None] * cols + near_j[:, None, :]
        Y = images.reshape(n * rows * cols, channels)[pixel]
        if reflect:
            return Y
        inside = (i == near_i)[:, :, None] & (j == near_j)[:, None, :]
        return xp.where(inside[..., None], Y, fill)

    def flip_columns(self, images: Array, chosen: Array) -> Array:
        xp = xp_of(images)
        return xp.where(chosen[:, None, None, None], images[:, :, ::-1], images)

    def cut_squares(self, images: Array, rows: Array, cols: Array, side: int, fill: Any) -> Array:
        xp = xp_of(images)
        i = xp.arange(images.shape[1]) - (rows - side // 2)[:, None]
        j = xp.arange(images.shape[2]) - (cols - side // 2)[:, None]
        cut_i, cut_j = (i >= 0) & (i < side), (j >= 0) & (j < side)
        cut = cut_i[:, :, None] & cut_j[:, None, :]
        return xp.where(cut[..., None], fill, images)

    def mix(self, images: Array, partners: Array, weight: float) -> Array:
        dtype = images.dtype.type
        return images * dtype(weight) + images[partners] * dtype(1.0 - weight)
