"""Convolutions of a planned network, with the ReLU and the max pooling that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers import threads
from gpulayers.backend import Array
from gpulayers.layers import _arguments as check
from gpulayers.models.plan_node import BySize, Node, backward_through, contiguous
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.window import Window

__all__ = ["ConvNode", "PooledNode", "is_halving"]


class ConvNode(Node):
    """A convolution with bias and ReLU, and the max pooling that follows it, if there is one.

    Only the outputs are kept, no pre-activations; the gradient goes through pooling and ReLU at
    once.
    """

    recordable = True

    def __init__(self, conv: Any, pool: Any, relu: bool, extra: Sequence[Any] = ()) -> None:
        layers = [conv, *extra, *([] if pool is None else [pool])]
        name = "Conv2D" + (" + ReLU" if relu else "") + (" + max pooling" if pool else "")
        super().__init__(layers, name)
        self._conv, self._pool, self._relu = conv, pool, relu
        self._saved: Any = None
        # whether it ends with ReLU and halves the image
        self.halves = relu and pool is not None and is_halving(pool)

    @property
    def weights(self) -> tuple[Array, Array]:
        """W, and b as (out_ch,)."""
        p = self._conv.parameters
        return p["W"], p["b"].reshape(-1)

    def window(self, x_shape: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
        """The convolution's window on images of this shape, and the shape of what is put out if
        the image is halved."""
        conv = self._conv
        window = check.window_2d(
            conv.kernel_shape, conv.stride, conv.pad, conv.dilation, x_shape[1:3], self.name
        )
        rows, cols = window.output_size(x_shape[1], x_shape[2])
        return window, (x_shape[0], rows // 2, cols // 2, self.weights[0].shape[3])

    def settings(self) -> Any:
        conv, pool = self._conv, self._pool
        after = None if pool is None else (pool.kernel_shape, pool.stride, pool.pad)
        return conv.kernel_shape, conv.stride, conv.pad, conv.dilation, after

    def as_gradients(self, dW: Array, db: Array) -> list[dict[str, Array]]:
        """These gradients, as `gradients` holds them."""
        first = {"W": dW, "b": db} if self._conv.trainable else {}
        return [first, *({} for _ in self.layers[1:])]

    def forward(self, X: Array) -> Array:
        conv, pool, k = self._conv, self._pool, kernels_for(X)
        W, b = conv.parameters["W"], conv.parameters["b"].reshape(-1)
        window = check.window_2d(
            conv.kernel_shape, conv.stride, conv.pad, conv.dilation, X.shape[1:3], self.name
        )
        if self._relu:
            Y = k.conv2d_relu_forward(X, W, b, window)
        else:
            Y = k.conv2d_forward(X, W, b, window)
        if pool is None:
            self._saved = X, window, Y
            return Y
        around = check.window_2d(
            pool.kernel_shape, pool.stride, pool.pad, 0, Y.shape[1:3], "Pool2D"
        )
        P, argmax = k.max_pool2d_forward(Y, around)
        self._saved = X, window, P, argmax, Y.shape, around
        return P

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        dY, k = contiguous(dY), kernels_for(dY)
        if self._pool is None:
            X, window, Y = self._saved
            dZ = k.relu_backward(dY, Y) if self._relu else dY
        else:
            X, window, P, argmax, shape, around = self._saved
            if self._relu:
                dZ = k.max_pool2d_relu_backward(dY, argmax, P, shape, around)
            else:
                dZ = k.max_pool2d_backward(dY, argmax, shape, around)
        W = self._conv.parameters["W"]
        if not self._conv.trainable:
            return k.conv2d_input_grad(dZ, W, X.shape, window) if inputs else None
        if inputs:
            dX, dW, db = k.conv2d_grads(X, dZ, W, window)
        else:
            dX, (dW, db) = None, k.conv2d_param_grads(X, dZ, window)
        self.gradients[0] = {"W": dW, "b": db}
        return dX

    def forget(self) -> None:
        super().forget()
        self._saved = None


def is_halving(pool: Any) -> bool:
    """Whether a max pooling takes 2 x 2 windows that lie side by side, without padding."""
    return (
        pool.mode == "max"
        and check.pair(pool.kernel_shape) == (2, 2)
        and check.pair(pool.stride) == (2, 2)
        and pool.pad in (0, (0, 0), (0, 0, 0, 0))
    )


class PooledNode(Node):
    """Convolutions in a row that each end with ReLU and 2x2 max pooling.

    Pure NumPy computes few channels of them in one pass (`gpulayers.ops.cpu._pooled`), in memory
    kept for the batch sizes it meets; everything else goes through the nodes one by one.
    """

    recordable = True

    def __init__(self, nodes: list[ConvNode]) -> None:
        layers = [layer for node in nodes for layer in node.layers]
        super().__init__(layers, "\n".join(node.name for node in nodes))
        self.nodes = nodes
        self._plans = BySize()
        self._saved: Any = None

    def settings(self) -> Any:
        return [node.settings() for node in self.nodes]

    def forward(self, X: Array) -> Array:
        plan = self._plan(X)
        Y = None if plan is None else plan.forward(X, [node.weights for node in self.nodes])
        if Y is None:
            plan, Y = None, self._forward(X)
        self._saved = X, plan
        return Y

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        X, plan = self._saved
        dY = contiguous(dY)
        done = None if plan is None else plan.backward(dY, inputs)
        if done is None:
            if plan is not None:  # a gradient is not finite
                self._forward(X)
            dX = backward_through(self.nodes, dY, inputs)
            self.gradients = [grads for node in self.nodes for grads in node.gradients]
            return dX
        gradients, dX = done
        self.gradients = [
            grads
            for node, (dW, db) in zip(self.nodes, gradients, strict=True)
            for grads in node.as_gradients(dW, db)
        ]
        return dX

    def _forward(self, X: Array) -> Array:
        for node in self.nodes:
            X = node.forward(X)
        return X

    def _plan(self, X: Array) -> Any:
        """The one pass for batches like `X`; None where there is none."""
        k: Any = kernels_for(X)
        make = getattr(k, "pooled_convolutions", None)
        if make is None or getattr(k, "threaded", False):
            return None
        key = X.shape, X.dtype, len(threads.shares(len(X)))
        return self._plans.get(key, lambda: make(self._layers(X.shape), X.shape, X.dtype))

    def _layers(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], Window]]:
        """The shape of W and the window of each, for images of this shape."""
        layers: list[tuple[tuple[int, ...], Window]] = []
        for node in self.nodes:
            window, shape = node.window(shape)
            layers.append((node.weights[0].shape, window))
        return layers

    def forget(self) -> None:
        super().forget()
        self._saved = None
        for node in self.nodes:
            node.forget()
