"""All three gradients of a 3x3 convolution by Winograd's F(4, 3), dZ being transformed once.

dX is the convolution of dZ with the kernel turned by 180 degrees (see `_winograd`). dW, turned, is
that convolution's weight gradient: what it reads is dZ, and what its outputs are multiplied by is
X. So both need the same B^T dZ, and X only the cheaper transform of an output gradient. By
themselves, dX takes B^T dZ and dW takes A dZ and B^T X.
"""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu import _winograd as winograd
from gpulayers.ops.cpu._blocks import all_finite, blocks, ones, row_by_row
from gpulayers.ops.cpu._columns import example_shares
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares


def gradients(
    X: Array, dZ: Array, turned: Array, window: Window
) -> tuple[Array, Array, Array] | None:
    """(dX, dW, db); None if a number is not finite.

    `turned` (3, 3, out_ch, ch) is the kernel turned by 180 degrees, `window` leads from dZ to X.
    """
    if not all_finite(turned):
        return None
    n, out_rows, out_cols, out_ch = dZ.shape
    ch = X.shape[3]
    dX = workspace.empty(X.shape, X.dtype)
    weights = winograd.transformed(turned)
    parts = example_shares(n, X[:1].size * 9 * out_ch)
    step = winograd.block_of(parts, window, out_rows, out_cols, out_ch, ch)
    full = winograd.Geometry(step, window, out_rows, out_cols)
    buffers = [
        (winograd.Input(full, out_ch), winograd.Output(full, ch), winograd.Gradient(full, ch))
        for _ in parts
    ]
    size = (6, ch, 3 * out_ch)
    sums = [workspace.zeros(size, X.dtype) for _ in parts]
    products = [workspace.empty(size, X.dtype) for _ in parts]
    biases = [np.zeros(out_ch, X.dtype) for _ in parts]
    one = ones(step * out_rows * out_cols, X.dtype)
    finite = [True] * len(parts)

    def work(i: int, part: slice) -> None:
        to_tiles, from_tiles, of_outputs = buffers[i]
        for block in blocks(part, step):
            count = block.stop - block.start
            g = full if count == step else winograd.Geometry(count, window, out_rows, out_cols)
            seen = to_tiles(dZ[block], g)
            from_tiles(seen, weights, None, dX[block], g)
            if not all_finite(to_tiles.witness):
                finite[i] = False
                return
            for x, dz in zip(of_outputs(X[block], g), seen, strict=True):
                np.matmul(x.transpose(0, 2, 1), dz, out=products[i])
                np.add(sums[i], products[i], out=sums[i])
            rows = dZ[block].reshape(-1, out_ch)
            biases[i] += one[: len(rows)] @ rows

    # the direct way will warn
    width = out_cols * min(ch, out_ch)
    with np.errstate(over="ignore", invalid="ignore"), row_by_row(width):
        run_shares(work, parts)
    for more, db in zip(sums[1:], biases[1:], strict=True):
        sums[0] += more
        biases[0] += db
    # as in `_winograd.weight_grad`: what is not finite in X or dZ is left in the sums
    if not all(finite) or not all_finite(sums[0]):
        return None
    along = workspace.empty((3, ch * 3 * out_ch), X.dtype)
    np.matmul(winograd.G.T, sums[0].reshape(6, -1), out=along)
    dW = workspace.empty((3, 3, ch, out_ch), X.dtype)
    dW[...] = along.reshape(3, ch, 3, out_ch).transpose(0, 2, 1, 3)[::-1, ::-1]
    return dX, dW, biases[0]
