"""Operations of a planned training step that are several in one, on a GPU."""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.ops._product import product
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window


def _add_bias(Z: Array, b: Array, relu: bool) -> Array:
    """Z + b along the last axis, in place."""
    args = (Z, b, Z.size, Z.shape[-1])
    name = "bias_relu" if relu else "bias_add"
    launch_elements(name, Z.dtype, Z.size, args, table.index_for(Z.size))
    return Z


class CudaFused(Reference):
    """Bias and ReLU go together after a product that does not take them along; ReLU's slope is told
    by its output."""

    def conv2d_relu_forward(
        self: Any, X: Array, W: Array, b: Array | None, window: Window
    ) -> Array:
        if b is None:
            return Reference.conv2d_relu_forward(self, X, W, b, window)
        return _add_bias(self.conv2d_forward(X, W, None, window), b, relu=True)

    def dense_forward(self: Any, X: Array, W: Array, b: Array, relu: bool) -> Array:
        return _add_bias(product(X, W), b, relu)

    def relu_backward(self, dY: Array, Y: Array) -> Array:
        dZ = cupy.empty(Y.shape, dtype=Y.dtype)
        args = (dY, Y, dZ, Y.size, table.ACTIVATIONS.index("relu"), 0.0, 0.0)
        launch_elements("activation_backward", Y.dtype, Y.size, args, table.index_for(Y.size))
        return dZ
