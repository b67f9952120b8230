"""Convolutions and dense layers of a planned network on a GPU, each a launch or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpulayers import backend
from gpulayers.activations import Identity, ReLU
from gpulayers.backend import Array
from gpulayers.layers import Conv1D, Flatten
from gpulayers.layers import _arguments as check
from gpulayers.models.graph_layers import NormStep, is_fixed, layer_step
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.graph_sequence import SequenceStep, sequence_step
from gpulayers.models.plan_conv import ConvNode, PooledNode
from gpulayers.models.plan_node import Node, contiguous
from gpulayers.models.plan_nodes import DenseNode, LayerNode, ResidualNode
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.window import Window

__all__ = ["Fused", "leaves", "on_gpu", "places_of", "refusal"]


class _Product(Fused):
    """A layer with a weight, and a bias whose gradient is the last row of the weight's."""

    def places(self) -> list[Place]:
        return [(self.layers[0], "W"), (self.layers[0], "b")] if self.learns else []

    def take(self, region: Array) -> None:
        cols = self.layers[0].parameters["W"].shape[-1]
        self.grads = region.reshape(len(region), -1, cols)

    def _into_grads(self, dtype: Any, compute: Callable[[Array], Any]) -> Any:
        """Call `compute` with where the gradients go: sums in one part have the arrays' type, those
        of a half type become float32 after it."""
        if len(self.grads) > 1 or self.grads.dtype == dtype:
            return compute(self.grads)
        sums = backend.xp_of(self.grads).empty(self.grads.shape, dtype=dtype)
        found = compute(sums)
        self.grads[...] = sums
        return found


class ConvStep(_Product):
    """A convolution with bias, ReLU and 2 x 2 max pooling, one launch forward, two back."""

    def __init__(self, node: Node, relu: bool, pooled: bool) -> None:
        super().__init__(node.layers, node.name)
        self._conv, self._relu, self._pooled = node.layers[0], relu, pooled
        self.ends_with_relu = relu and not pooled

    def settings(self) -> Any:
        layer = self._conv
        return layer.kernel_shape, layer.stride, layer.pad, layer.dilation

    def _window(self, X: Array) -> Window:
        layer = self._conv
        return check.window_2d(
            layer.kernel_shape, layer.stride, layer.pad, layer.dilation, X.shape[1:3], self.name
        )

    @property
    def _weight(self) -> Array:
        return self._conv.parameters["W"]

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import conv  # needs CuPy

        window, b = self._window(X), self._conv.parameters["b"].reshape(-1)
        Y, winners = conv.forward(
            *(contiguous(X), self._weight, b, window, self._relu, self._pooled), special=True
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
            self._into_grads(
                X.dtype,
                lambda grads: conv.weight_grad(X, dY, window, True, winners, grads, special=True),
            )
        if not inputs:
            return None
        mask = X if self.masks_input else None
        return conv.input_grad(dY, self._weight, X.shape, window, winners, mask, special=True)


class RowStep(ConvStep):
    """A convolution along time with bias and ReLU, as one of images of one row."""

    def settings(self) -> Any:
        layer = self._conv
        return layer.kernel_width, layer.stride, layer.pad, layer.dilation

    def _window(self, X: Array) -> Window:
        layer = self._conv
        return check.window_1d(
            layer.kernel_width, layer.stride, layer.pad, layer.dilation, X.shape[2], self.name
        )

    @property
    def _weight(self) -> Array:
        return self._conv.parameters["W"][None]

    def forward(self, X: Array) -> Array:
        return super().forward(X[:, None])[:, 0]

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        dX = super().backward(dY, inputs)
        return None if dX is None else dX[:, 0]


class DenseStep(_Product):
    """A dense layer with bias and ReLU, one launch each way."""

    def __init__(self, node: DenseNode, relu: bool) -> None:
        super().__init__(node.layers, node.name)
        self.ends_with_relu = relu

    def forward(self, X: Array) -> Array:
        p, X = self.layers[0].parameters, contiguous(X)
        Y = kernels_for(X).dense_forward(X, p["W"], p["b"].reshape(-1), self.ends_with_relu)
        self._saved = X, Y
        return Y

    def parts(self) -> int:
        X, Y = self._saved
        engine: Any = kernels_for(X)
        return engine.dense_parts(X.shape[0], X.shape[1], Y.shape[1], X.dtype)

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
        engine: Any = kernels_for(X)
        return self._into_grads(
            X.dtype,
            lambda grads: engine.dense_backward(X, W, dY, grads, self.masks_input, inputs),
        )


class SumStep(ResidualNode):
    """A residual block; batch normalisation at the end of its body takes the sum along."""

    def __init__(self, node: ResidualNode) -> None:
        Node.__init__(self, [], node.name)
        self.body = on_gpu(node.body)
        self.side = None if node.side is None else on_gpu(node.side)

    def forward(self, X: Array) -> Array:
        last = self.body[-1]
        if not isinstance(last, NormStep):
            return super().forward(X)
        Y = side = X
        for node in self.body[:-1]:
            Y = node.forward(Y)
        for node in self.side or ():
            side = node.forward(side)
        last.side = side
        return last.forward(Y)


def on_gpu(nodes: Sequence[Node]) -> list[Node]:
    """The nodes of a plan, with those in the place of some that a GPU has a shorter way for."""
    chain = list(_replaced(nodes))
    before: Any = None
    node: Any
    for node in chain:
        both = isinstance(node, Fused) and isinstance(before, Fused)
        if both and node.takes_slope and before.ends_with_relu:
            node.masks_input = before.leaves_slope = True
        if isinstance(before, SequenceStep):
            before.join(node)
        if [type(layer) for layer in node.layers] != [Flatten]:
            before = node
    return chain


def _replaced(nodes: Sequence[Node]) -> Iterator[Node]:
    i = 0
    while i < len(nodes):
        node, taken = layer_step(nodes, i)
        if node is None:
            node, taken = sequence_step(nodes, i), 1
        if node is not None:
            yield node
        else:
            yield from _replacement(nodes[i])
        i += taken


def _replacement(node: Any) -> Iterator[Node]:
    if isinstance(node, PooledNode):
        yield from _replaced(node.nodes)
    elif isinstance(node, ResidualNode):
        yield SumStep(node)
    elif isinstance(node, ConvNode) and (node.halves or node._pool is None):
        yield ConvStep(node, node._relu, node.halves)
    elif isinstance(node, DenseNode):
        yield DenseStep(node, node._relu)
    elif type(node) is LayerNode and type(node.layers[0]) is Conv1D:
        relu = type(node.layers[0].act_fn) is ReLU
        known = relu or type(node.layers[0].act_fn) is Identity
        yield RowStep(node, relu, False) if known else node
    else:
        yield node


def leaves(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes that hold gradients, in order."""
    for node in nodes:
        if isinstance(node, ResidualNode):
            yield from leaves(list(node.parts()))
        else:
            yield node


def places_of(node: Node) -> list[Place]:
    """The parameters of a node that learn, in the order of their gradients."""
    if isinstance(node, Fused):
        return node.places()
    return [(layer, name) for layer in node.layers if layer.trainable for name in layer.gradients]


def refusal(nodes: Sequence[Node]) -> str | None:
    """Why a step of these nodes (of `on_gpu`) cannot be captured; None if it can."""
    for node in leaves(nodes):
        if not (node.by_example or isinstance(node, Fused) or is_fixed(node)):
            return f"{node.name} does not treat each example by itself"
    return None
