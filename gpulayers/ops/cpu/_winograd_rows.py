"""Winograd's transforms along one direction: six rows of pixels to six points, and these to four
rows of outputs.

Each is a matrix product of a small matrix and the rows of a tile. NumPy's matmul hands those of all
tiles to BLAS in one call, which goes over memory once for what would be some twenty passes of
NumPy's, and for which a thread takes Python's lock once.

Source: Lavin & Gray, "Fast algorithms for convolutional neural networks" (2016), section 4.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.threads import run_shares, shares, single_threaded_blas

# The points 0, infinity, 1, -1, 2, -2.
G = np.array(
    [
        [1 / 4, 0, 0],
        [0, 0, 1],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
    ],
    dtype=np.float32,
)
TO_POINTS = np.array(  # B^T
    [
        [4, 0, -5, 0, 1, 0],
        [0, 4, 0, -5, 0, 1],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
    ],
    dtype=np.float32,
)
FROM_POINTS = np.array(  # A^T
    [
        [1, 0, 1, 1, 1, 1],
        [0, 0, 1, -1, 2, -2],
        [0, 0, 1, 1, 4, 4],
        [0, 1, 1, -1, 8, -8],
    ],
    dtype=np.float32,
)
ONE = 2
"""The point of which every output row holds what it is, once."""

_PIECE = 1 << 11  # numbers of a row that a transformed kernel is computed of at a time
_SHARE = 16  # pieces that are worth a thread

Parts = list[tuple[Array, Array]]


class Rows:
    """How `rows` of an image, below `top` rows of padding, are cut into tiles.

    Tile t sees six rows, from 4 t - top on, and has four rows of outputs, the last one maybe fewer.
    The rows outside of the image are zeros, so they are left out of its sum.
    """

    def __init__(self, rows: int, top: int, out_rows: int) -> None:
        self.out_rows, self.count = out_rows, -(-out_rows // 4)
        begins = range(-top, 4 * self.count - top, 4)
        self._whole = [t for t, begin in enumerate(begins) if 0 <= begin <= rows - 6]
        self._first = begins[self._whole[0]] if self._whole else 0
        self._cut: list[tuple[int, slice, slice]] = []  # tile; which of its rows; the image's
        self._empty: list[int] = []
        for t, begin in enumerate(begins):
            first, last = max(0, begin), min(begin + 6, rows)
            if first >= last:
                self._empty.append(t)
            elif t not in self._whole:
                self._cut.append((t, slice(first - begin, last - begin), slice(first, last)))

    def seen(self, images: Array) -> Parts:
        """What leads from the rows of images (n, rows, cols, ch) to the points: matrices and what
        they are multiplied with, (n, [tiles,] cols, rows, ch)."""
        by_n, by_row, by_col, by_ch = images.strides
        parts = [
            (TO_POINTS[:, of_tile], images[:, of_image].swapaxes(1, 2))
            for _, of_tile, of_image in self._cut
        ]
        if self._whole:
            n, _, cols, ch = images.shape
            shape = (n, len(self._whole), cols, 6, ch)
            strides = (by_n, 4 * by_row, by_col, by_row, by_ch)
            parts.append((TO_POINTS, as_strided(images[:, self._first :], shape, strides)))
        return parts

    def points(self, points: Array) -> list[Array]:
        """Points (n, tiles, cols, 6, ch) in the parts of `seen`; those that see nothing become
        zeros."""
        points[:, self._empty] = 0
        parts = [points[:, t] for t, _, _ in self._cut]
        if self._whole:
            parts.append(points[:, self._whole[0] : self._whole[-1] + 1])
        return parts

    def outputs(self, images: Array) -> Parts:
        """What leads from points to the rows of contiguous outputs (n, out_rows, cols, ch):
        matrices, and the outputs (n, tiles, cols, rows, ch)."""
        n, whole, (cols, ch) = len(images), self.out_rows // 4, images.shape[2:]
        of_tiles = [
            images[:, : 4 * whole].reshape(n, whole, 4, cols, ch),
            images[:, None, 4 * whole :],
        ]
        return [
            (FROM_POINTS[: part.shape[2]], part.swapaxes(2, 3)) for part in of_tiles if part.size
        ]

    def of_outputs(self, points: Array) -> list[Array]:
        """Points (n, tiles, cols, 6, ch) in the parts of `outputs`."""
        whole = self.out_rows // 4
        return [part for part in (points[:, :whole], points[:, whole:]) if part.size]


def kernel_points(W: Array, axis: int = 0) -> Array:
    """G applied to an axis of three, the first or the second one."""
    return _along(G, W, axis)


def kernel_gradient(points: Array, axis: int = 0) -> Array:
    """G^T applied to an axis of six, the first or the second one."""
    return _along(G.T, points, axis)


def _along(matrix: Array, numbers: Array, axis: int) -> Array:
    """`matrix` (m, k) applied to an axis of k of a contiguous array, which then has m.

    In pieces, which stay in the cache between the passes of BLAS.
    """
    (m, k), shape = matrix.shape, numbers.shape
    source = numbers.reshape(math.prod(shape[:axis]), k, -1)
    out = workspace.empty((len(source), m, source.shape[2]), numbers.dtype)
    whole = source.shape[2] // _PIECE

    def pieces(array: Array, part: slice) -> Array:
        cut = array[..., : whole * _PIECE].reshape(*array.shape[:2], whole, _PIECE)
        return cut.swapaxes(1, 2)[:, part]

    def work(i: int, part: slice) -> None:
        np.matmul(matrix, pieces(source, part), out=pieces(out, part))

    if whole:
        run_shares(work, shares(whole, _SHARE))
    if source.shape[2] > whole * _PIECE:
        rest = slice(whole * _PIECE, None)
        with single_threaded_blas():
            np.matmul(matrix, source[..., rest], out=out[..., rest])
    return out.reshape(*shape[:axis], m, *shape[axis + 1 :])
