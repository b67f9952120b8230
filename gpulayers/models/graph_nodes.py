"""Convolutions and dense layers of a planned network on a GPU, each a launch or two.

Beyond a `Node` their gradients go where the step wants them, in parts that its update adds up, and
the slope of a ReLU is taken along by the node behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.layers import Flatten
from gpulayers.layers import _arguments as check
from gpulayers.models.plan_conv import ConvNode, PooledNode
from gpulayers.models.plan_node import Node, contiguous
from gpulayers.models.plan_nodes import DenseNode, ResidualNode
from gpulayers.ops._kernels import kernels_for

__all__ = ["Fused", "leaves", "on_gpu"]


class Fused(Node):
    """A convolution or a dense layer with what follows it.

    Attributes
    ----------
    masks_input : bool
        Whether the input's gradient goes through the ReLU that made the input.
    leaves_slope : bool
        Whether the node behind does that for this one.
    grads : array (parts, rows + 1, cols)
        Where the gradients of W and, as the last row, b go; unless the layer is frozen.
    """

    ends_with_relu = False

    def __init__(self, layers: Sequence[Any], name: str) -> None:
        super().__init__(layers, name)
        self.masks_input = self.leaves_slope = False
        self.grads: Any = None
        self._saved: Any = None

    @property
    def learns(self) -> bool:
        return self.layers[0].trainable

    def parts(self) -> int:
        """In how many parts the gradients come, for the batch that went forward last."""
        raise NotImplementedError

    def forget(self) -> None:
        super().forget()
        self._saved = None


class ConvStep(Fused):
    """A convolution with bias, ReLU and 2 x 2 max pooling, one launch forward, two back."""

    def __init__(self, node: ConvNode, relu: bool, pooled: bool) -> None:
        super().__init__(node.layers, node.name)
        self._conv, self._relu, self._pooled = node.layers[0], relu, pooled
        self.ends_with_relu = relu and not pooled

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import conv  # needs CuPy

        layer = self._conv
        window = check.window_2d(
            layer.kernel_shape, layer.stride, layer.pad, layer.dilation, X.shape[1:3], self.name
        )
        p = layer.parameters
        Y, winners = conv.forward(
            *(contiguous(X), p["W"], p["b"].reshape(-1), window, self._relu, self._pooled),
            special=True,
        )
        self._saved = contiguous(X), window, Y, winners if self._pooled else None
        return Y

    def parts(self) -> int:
        from gpulayers.cuda import conv  # needs CuPy

        X, window, Y, _ = self._saved
        pooled = self._pooled
        return conv.weight_choice(X.shape, Y.shape, window, True, pooled, True, X.dtype).parts

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import conv  # needs CuPy

        X, window, Y, winners = self._saved
        dY = contiguous(dY).reshape(Y.shape)
        if self.ends_with_relu and not self.leaves_slope:
            dY = kernels_for(dY).relu_backward(dY, Y)
        if self.learns:
            conv.weight_grad(X, dY, window, True, winners, self.grads, special=True)
        if not inputs:
            return None
        mask = X if self.masks_input else None
        W = self._conv.parameters["W"]
        return conv.input_grad(dY, W, X.shape, window, winners, mask, special=True)


class DenseStep(Fused):
    """A dense layer with bias and ReLU, one launch each way."""

    def __init__(self, node: DenseNode, relu: bool) -> None:
        super().__init__(node.layers, node.name)
        self.ends_with_relu = relu

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import product  # needs CuPy

        p, X = self.layers[0].parameters, contiguous(X)
        Y = product.gemm(X, p["W"], bias=p["b"].reshape(-1), relu=self.ends_with_relu)
        self._saved = X, Y
        return Y

    def parts(self) -> int:
        from gpulayers.cuda import product  # needs CuPy

        X, Y = self._saved
        return product.dense_choice(*X.shape, Y.shape[1], X.dtype).parts

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import product  # needs CuPy

        X, Y = self._saved
        dY = contiguous(dY)
        if self.ends_with_relu and not self.leaves_slope:
            dY = kernels_for(dY).relu_backward(dY, Y)
        W = self.layers[0].parameters["W"]
        if not self.learns:
            mask = X if self.masks_input else None
            return product.gemm(dY, W, transpose_b=True, mask=mask) if inputs else None
        return product.dense_backward(X, W, dY, self.grads, self.masks_input, inputs)


def on_gpu(nodes: Sequence[Node]) -> list[Node]:
    """The nodes of a plan, with those in the place of some that a GPU has a shorter way for."""
    chain = list(_replaced(nodes))
    before: Node | None = None
    for node in chain:
        if isinstance(node, Fused) and isinstance(before, Fused) and before.ends_with_relu:
            node.masks_input = before.leaves_slope = True
        if [type(layer) for layer in node.layers] != [Flatten]:
            before = node
    return chain


def _replaced(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        if isinstance(node, PooledNode):
            yield from _replaced(node.nodes)
        elif isinstance(node, ResidualNode):
            node.body = on_gpu(node.body)
            node.side = None if node.side is None else on_gpu(node.side)
            yield node
        elif isinstance(node, ConvNode) and (node.halves or node._pool is None):
            yield ConvStep(node, node._relu, node.halves)
        elif isinstance(node, DenseNode):
            yield DenseStep(node, node._relu)
        else:
            yield node


def leaves(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes that hold gradients, in order."""
    for node in nodes:
        if isinstance(node, ResidualNode):
            yield from leaves(list(node.parts()))
        else:
            yield node
