"""Convolutions and dense layers of a planned network on a GPU, each a launch or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpulayers.activations import Identity, ReLU
from gpulayers.backend import Array
from gpulayers.cuda.table_tiles import REACH
from gpulayers.layers import Conv1D, Flatten
from gpulayers.layers import _arguments as check
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_layers import NormStep, is_fixed, layer_step
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.graph_sequence import SequenceStep, sequence_step
from gpulayers.models.plan_conv import ConvNode, PooledNode
from gpulayers.models.plan_node import Node, backward_through, contiguous, first_wanting
from gpulayers.models.plan_nodes import DenseNode, LayerNode, ResidualNode, nodes_of
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.window import Window

__all__ = [
    "ConvStep",
    "Fused",
    "backward_into",
    "graph_nodes",
    "leaves",
    "places_of",
    "refusal",
]


class _Product(Fused):
    """A layer with a weight, and a bias whose gradient is the last row of the weight's."""

    def places(self) -> list[Place]:
        return [(self.layers[0], "W"), (self.layers[0], "b")] if self.learns else []

    def take(self, region: Array) -> None:
        cols = self.layers[0].parameters["W"].shape[-1]
        self.grads = region.reshape(len(region), -1, cols)


class ConvStep(_Product):
    """A convolution with bias, ReLU and 2 x 2 max pooling, one launch each way.

    Attributes
    ----------
    inputs : bool
        Whether the input's gradient will be wanted.
    behind, before : NormStep or None
        The normalisations of its output and of its input, which it makes sums for on its way.
    takes_side : bool
        Whether it begins a residual block.
    side : array or None
        Is added to the next gradient of the input: what goes around that block.
    """

    def __init__(self, node: Node, relu: bool, pooled: bool) -> None:
        super().__init__(node.layers, node.name)
        self._conv, self._relu, self._pooled = node.layers[0], relu, pooled
        self.ends_with_relu = relu and not pooled
        self.plain = not relu and not pooled
        self.inputs = True
        self.takes_side = False
        self.behind: NormStep | None = None
        self.before: NormStep | None = None
        self.side: Any = None
        self._arrived: Any = None

    def settings(self) -> Any:
        layer = self._conv
        return layer.kernel_shape, layer.stride, layer.pad, layer.dilation

    def prepare(self, draws: Draws | None) -> None:
        from gpulayers.cuda import conv_step  # needs CuPy

        if self.behind is not None or self.before is not None:
            self._arrived = conv_step.counters(max(self._weight.shape[2:]))

    def _window(self, X: Array) -> Window:
        layer = self._conv
        return check.window_2d(
            layer.kernel_shape, layer.stride, layer.pad, layer.dilation, X.shape[1:3], self.name
        )

    @property
    def _weight(self) -> Array:
        return self._conv.parameters["W"]

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import conv, conv_step, example_conv  # needs CuPy

        X, window, winners = contiguous(X), self._window(X), None
        W, b = self._weight, self._conv.parameters["b"].reshape(-1)
        if self._by_example(X, window):
            Y, winners = example_conv.forward(X, W, b, window, self._relu, self._pooled)
            self._saved = X, window, Y, winners if self._pooled else None
            return Y
        if not self.inputs:
            X = conv_step.pad(X, conv_step.padded_channels(W.shape[2], W.shape[3], X.dtype))
        if self.behind is not None:
            Y, self.behind.moments = conv_step.forward(X, W, b, window, self._arrived)
        else:
            args = (X, W, b, window, self._relu, self._pooled)
            Y, winners = conv.forward(*args, special=True)
        self._saved = X, window, Y, winners if self._pooled else None
        return Y

    def _by_example(self, X: Array, window: Window) -> bool:
        """Whether the images are so small that blocks take them whole."""
        from gpulayers.cuda import example_conv  # needs CuPy

        if self.behind is not None or self.before is not None or self.takes_side:
            return False
        return example_conv.serves(X.dtype, X.shape, self._weight.shape[3], window, self._pooled)

    def _choice(self) -> Any:
        from gpulayers.cuda import conv_step  # needs CuPy

        X, window, Y, _ = self._saved
        flags = self._pooled, self.inputs, X.dtype
        return conv_step.backward_choice(X.shape, Y.shape[3], window, *flags)

    def parts(self) -> int:
        from gpulayers.cuda import example_conv  # needs CuPy

        X, window, _, _ = self._saved
        if self._by_example(X, window):
            return example_conv.parts(len(X), self._weight.size + self._weight.shape[3])
        return self._choice().parts

    def parts_before(self) -> int:
        """In how many parts the sums come that the normalisation before it wants."""
        from gpulayers.cuda import conv_step  # needs CuPy

        return conv_step.parts_before(self._saved[0].shape, self._choice())

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import conv_step, example_conv  # needs CuPy

        X, window, Y, winners = self._saved
        dY = contiguous(dY).reshape(Y.shape)
        if self.ends_with_relu and not self.leaves_slope:
            dY = kernels_for(dY).relu_backward(dY, Y)
        if not inputs and not self.learns:
            return None
        if self._by_example(X, window):
            return example_conv.backward(
                *(X, dY, winners, self._weight, window),
                *(self.grads if self.learns else None, inputs, self.masks_input),
            )
        return conv_step.backward(
            *(X, dY, self._weight, window, winners),
            *(self.grads if self.learns else None, inputs, self.masks_input, self.side),
            *(None if self.before is None else self.before.before(), self._arrived),
        )

    def forget(self) -> None:
        super().forget()
        self.side = None


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
        return engine.dense_backward(X, W, dY, self.grads, self.masks_input, inputs)


class SumStep(ResidualNode):
    """A residual block; batch normalisation at the end of its body takes the sum along, and a
    convolution at its beginning that of the gradients."""

    def __init__(self, node: ResidualNode) -> None:
        Node.__init__(self, [], node.name)
        self.body = on_gpu(node.body)
        self.side = None if node.side is None else on_gpu(node.side)
        if self.entry is not None:
            self.entry.takes_side = True

    def forward(self, X: Array) -> Array:
        last = self.exit
        if last is None:
            return super().forward(X)
        Y = side = X
        for node in self.body[:-1]:
            Y = node.forward(Y)
        for node in self.side or ():
            side = node.forward(side)
        last.side = side
        return last.forward(Y)

    @property
    def entry(self) -> ConvStep | None:
        """The convolution that gives the gradient of the block's input, if it is one."""
        first = self.body[0] if self.body and self.side is None else None
        return first if isinstance(first, ConvStep) else None

    @property
    def exit(self) -> NormStep | None:
        """The normalisation that takes the sum along, if it is one."""
        last = self.body[-1] if self.body else None
        return last if isinstance(last, NormStep) else None

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        first = self.entry
        if first is None or not inputs:
            return super().backward(dY, inputs)
        first.side = contiguous(dY)
        return backward_through(self.body, dY, inputs)


def graph_nodes(layers: Sequence[Any]) -> list[Node]:
    """The nodes of a captured step for a chain of layers; nobody wants the input's gradient."""
    nodes = on_gpu(list(nodes_of(layers)))
    _tell_inputs(nodes, False)
    return nodes


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
        _join_norm(before, node)
        if [type(layer) for layer in node.layers] != [Flatten]:
            before = node
    return chain


def _join_norm(before: Any, node: Any) -> None:
    """A convolution makes the sums of the normalisation behind it, and of the one before it."""
    if isinstance(before, ConvStep) and before.plain and isinstance(node, NormStep):
        before.behind = node
    norm = before.exit if isinstance(before, SumStep) else before
    first = node.entry if isinstance(node, SumStep) else node
    if isinstance(norm, NormStep) and isinstance(first, ConvStep):
        norm.behind, first.before = first, norm


def _tell_inputs(nodes: Sequence[Any], inputs: bool) -> None:
    """Tell the convolutions whether their input's gradient will be wanted; `inputs`: that of the
    first node is."""
    first = first_wanting(nodes, inputs)
    for i, node in enumerate(nodes):
        wanted = inputs or i > first
        if isinstance(node, ConvStep):
            node.inputs = wanted
        elif isinstance(node, ResidualNode):
            _tell_inputs(node.body, wanted)
            _tell_inputs(node.side or (), wanted)


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
    elif isinstance(node, ConvNode) and _reached(node) and (node.halves or node._pool is None):
        yield ConvStep(node, node._relu, node.halves)
    elif isinstance(node, DenseNode):
        yield DenseStep(node, node._relu)
    elif type(node) is LayerNode and type(node.layers[0]) is Conv1D and _reached(node):
        relu = type(node.layers[0].act_fn) is ReLU
        known = relu or type(node.layers[0].act_fn) is Identity
        yield RowStep(node, relu, False) if known else node
    else:
        yield node


def _reached(node: Node) -> bool:
    """Whether the grid of a convolution's kernels reaches all its channels."""
    return max(node.layers[0].in_ch or 0, node.layers[0].out_ch) <= REACH


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


def backward_into(nodes: list[Any], grads: list[Any], dY: Array) -> None:
    """Go back through the nodes; each leaf with parameters leaves its gradients in its regions of
    a program's memory."""
    regions = iter(grads)
    others: list[tuple[Node, Array]] = []
    for node in leaves(nodes):
        if not places_of(node):
            continue
        region = next(regions)
        if isinstance(node, Fused):
            node.take(region)
        else:
            others.append((node, region[0]))
    backward_through(nodes, dY, False)
    for node, region in others:
        start = 0
        for layer, given in zip(node.layers, node.gradients, strict=True):
            for name in layer.gradients if layer.trainable else ():
                size = given[name].size
                region[start : start + size] = given[name].reshape(-1)
                start += size
