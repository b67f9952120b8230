"""Operations of a planned training step in one pass on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.cpu import _columns, _dense, _pooled
from gpulayers.ops.cpu._blocks import (
    BLOCK,
    SMALL,
    add_bias,
    block_lengths,
    blocks,
    relu_in_place,
    row_shares,
)
from gpulayers.ops.cpu.conv import all_grads, convolve, param_grads
from gpulayers.ops.reference.fused import ReferenceFused
from gpulayers.ops.window import Window
from gpulayers.threads import run_shares


class CpuFused(ReferenceFused):
    """Bias and ReLU while a block is in the cache; the bias gradient out of Winograd's sums."""

    def conv2d_relu_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        return convolve(X, W, b, window, rectify=True)

    def pooled_convolutions(
        self, layers: Sequence[_pooled.Layer], x_shape: Shape4, dtype: np.dtype
    ) -> _pooled.PooledConvolutions | None:
        """Memory and plan for a chain of convolutions with ReLU and 2x2 max pooling, if it pays."""
        if dtype.itemsize < 4 or not _pooled.serves(layers, x_shape):
            return None
        return _pooled.PooledConvolutions(layers, x_shape, dtype)

    def dense_layer(
        self, n: int, shape: tuple[int, int], dtype: np.dtype, relu: bool
    ) -> _dense.DenseLayer | None:
        """Memory for a dense layer that one thread computes, for batches of `n` examples."""
        return None if dtype.itemsize < 4 or not n else _dense.DenseLayer(n, shape, dtype, relu)

    def conv2d_param_grads(self: Any, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
        if window.is_pointwise or dZ.dtype.itemsize < 4:
            return self.conv2d_weight_grad(X, dZ, window), self.bias_grad(dZ)
        return param_grads(X, dZ, window) or _columns.param_grads(X, dZ, window)

    def conv2d_grads(
        self, X: Array, dZ: Array, W: Array, window: Window
    ) -> tuple[Array, Array, Array]:
        return all_grads(X, dZ, W, window) or super().conv2d_grads(X, dZ, W, window)

    def dense_forward(self, X: Array, W: Array, b: Array, relu: bool) -> Array:
        Z = product(X, W)
        if not Z.size:
            return Z
        add_bias(Z, b.reshape(-1))
        if relu:
            relu_in_place(Z)
        return Z

    def relu_backward(self, dY: Array, Y: Array) -> Array:
        dZ = workspace.empty(dY.shape, dY.dtype)
        dy, y, dz = dY.reshape(-1), Y.reshape(-1), dZ.reshape(-1)
        if y.size <= SMALL:
            np.multiply(dy, np.greater(y, 0, out=workspace.empty(y.shape, np.bool_)), out=dz)
            return dZ
        parts = row_shares(y.size, 1, 2)
        steps = block_lengths(parts, 4 * BLOCK)  # calls cost more than the cache saves
        masks = [workspace.empty((step,), np.bool_) for step in steps]

        def work(i: int, part: slice) -> None:
            for block in blocks(part, steps[i]):
                above = np.greater(y[block], 0, out=masks[i][: block.stop - block.start])
                np.multiply(dy[block], above, out=dz[block])

        run_shares(work, parts, blas=False)
        return dZ
