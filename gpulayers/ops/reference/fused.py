"""Operations that a planned training step does in one pass, put together from the plain ones."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.ops._product import product
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window


class ReferenceFused:
    """Each is what the plain operations give one after the other.

    ReLU's slope is told by its output Y: it is 1 where Y > 0, which is where the input was.
    """

    def conv2d_relu_forward(
        self: Any, X: Array, W: Array, b: Array | None, window: Window
    ) -> Array:
        Y = self.conv2d_forward(X, W, b, window)
        return xp_of(Y).maximum(Y, Y.dtype.type(0), out=Y)

    def conv2d_param_grads(self: Any, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]:
        return self.conv2d_weight_grad(X, dZ, window), self.bias_grad(dZ)

    def conv2d_grads(
        self: Any, X: Array, dZ: Array, W: Array, window: Window
    ) -> tuple[Array, Array, Array]:
        dW, db = self.conv2d_param_grads(X, dZ, window)
        return self.conv2d_input_grad(dZ, W, X.shape, window), dW, db

    def dense_forward(self: Any, X: Array, W: Array, b: Array, relu: bool) -> Array:
        Z = product(X, W)
        Z += b
        return xp_of(Z).maximum(Z, Z.dtype.type(0), out=Z) if relu else Z

    def relu_backward(self, dY: Array, Y: Array) -> Array:
        return dY * (Y > 0)

    def max_pool2d_relu_backward(
        self: Any, dY: Array, argmax: Array, Y: Array, x_shape: Shape4, window: Window
    ) -> Array:
        # the winner of a window is its output, so ReLU's slope there is that of the pooled value
        return self.max_pool2d_backward(self.relu_backward(dY, Y), argmax, x_shape, window)

    def softmax_cross_entropy_both(
        self: Any, logits: Array, labels: Array, scale: float
    ) -> tuple[Array, Array]:
        losses, probs = self.softmax_cross_entropy_forward(logits, labels)
        return losses, self.softmax_cross_entropy_backward(probs, labels, scale)
