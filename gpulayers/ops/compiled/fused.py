"""Operations of a planned training step in one pass over memory."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.compiled import activation, conv, pool, softmax
from gpulayers.ops.compiled.library import DTYPES
from gpulayers.ops.compiled.product import product_into, worth_c
from gpulayers.ops.cpu.fused import CpuFused
from gpulayers.ops.reference.fused import ReferenceFused
from gpulayers.ops.window import Window

_IN_CACHE = 1 << 16  # weights that stay there while the pixels pass by, as do their gradients


class CompiledFused(CpuFused):
    """float32 and float64; the rest as in NumPy."""

    def conv2d_relu_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array:
        if X.dtype not in DTYPES:
            return super().conv2d_relu_forward(X, W, b, window)
        out = window.output_size(X.shape[1], X.shape[2])
        Y = workspace.empty((X.shape[0], *out, W.shape[3]), X.dtype)
        conv.conv2d_forward_into(X, W, b, window, Y, relu=True)
        return Y

    def conv2d_param_grads(self, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
        if X.dtype not in DTYPES:
            return super().conv2d_param_grads(X, dZ, window)
        dW = workspace.empty((*window.kernel, X.shape[3], dZ.shape[3]), X.dtype)
        db = workspace.empty(dZ.shape[3:], X.dtype)
        conv.conv2d_weight_grad_into(X, dZ, window, dW, db)
        return dW, db

    def conv2d_grads(
        self, X: Array, dZ: Array, W: Array, window: Window
    ) -> tuple[Array, Array, Array]:
        if X.dtype not in DTYPES or not window.is_pointwise or W.size > _IN_CACHE:
            return ReferenceFused.conv2d_grads(self, X, dZ, W, window)  # one by one, in C
        dX = workspace.empty(X.shape, X.dtype)
        dW = workspace.empty(W.shape, X.dtype)
        db = workspace.empty(W.shape[3:], X.dtype)
        conv.pointwise_grads_into(X, dZ, W, window, dX, dW, db)
        return dX, dW, db

    def dense_forward(self, X: Array, W: Array, b: Array, relu: bool) -> Array:
        (m, k), n = X.shape, W.shape[1]
        if X.dtype not in DTYPES or not worth_c(m, n, k):
            return super().dense_forward(X, W, b, relu)
        Y = workspace.empty((m, n), X.dtype)
        product_into(X, W, Y, bias=b, relu=relu)
        return Y

    def relu_backward(self, dY: Array, Y: Array) -> Array:
        if dY.dtype not in DTYPES:
            return super().relu_backward(dY, Y)
        dZ = workspace.empty(dY.shape, dY.dtype)
        activation.relu_backward_into(dY, Y, dZ)
        return dZ

    def max_pool2d_relu_backward(
        self, dY: Array, argmax: Array, Y: Array, x_shape: Shape4, window: Window
    ) -> Array:
        if not pool.serves(dY, window):
            return super().max_pool2d_relu_backward(dY, argmax, Y, x_shape, window)
        dZ = workspace.empty(x_shape, dY.dtype)
        pool.max_pool2d_relu_backward_into(dY, argmax, Y, dZ, window)
        return dZ

    def softmax_cross_entropy_both(
        self, logits: Array, labels: Array, scale: float
    ) -> tuple[Array, Array]:
        if logits.dtype not in DTYPES:
            return super().softmax_cross_entropy_both(logits, labels, scale)
        dlogits = workspace.empty(logits.shape, logits.dtype)
        return softmax.softmax_cross_entropy_both(logits, labels, scale, dlogits), dlogits
