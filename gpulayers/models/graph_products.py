"""Convolutions, dense layers and residual blocks of a planned network on a GPU, each product a
launch or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda.fusible import RELU, Formula
from gpulayers.layers import _arguments as check
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_layers import NormStep, name_of
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.plan_node import Node, backward_through, contiguous
from gpulayers.models.plan_nodes import ResidualNode
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.window import Window

__all__ = ["ConvStep", "DenseStep", "RowStep", "SumStep"]


class _Product(Fused):
    """A layer with a weight, and a bias whose gradient is the last row of the weight's."""

    def places(self) -> list[Place]:
        return [(self.layers[0], "W"), (self.layers[0], "b")] if self.learns else []

    def through(self, dY: Array, Y: Array) -> Array:
        """The gradient before this node's own activation, unless the node behind takes it along."""
        from gpulayers.cuda import activation  # needs CuPy

        if self.ends_with is None or self.leaves_slope:
            return dY
        return activation.backward_by_value(dY, Y, self.ends_with)

    def take(self, region: Array) -> None:
        cols = self.layers[0].parameters["W"].shape[-1]
        self.grads = region.reshape(len(region), -1, cols)


class ConvStep(_Product):
    """A convolution with bias, activation and 2 x 2 max pooling, one launch each way.

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

    def __init__(self, layers: Sequence[Any], act: Formula | None, pooled: bool) -> None:
        super().__init__(layers, name_of(layers[0], act, pooled))
        self._conv, self._act, self._pooled = layers[0], act, pooled
        # the winners of a pooling tell the slope of a ReLU
        self.ends_with = None if pooled and act == RELU else act
        self.plain = act is None and not pooled
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
            Y, winners = example_conv.forward(X, W, b, window, self._act, self._pooled)
            self._saved = X, window, Y, winners if self._pooled else None
            return Y
        if not self.inputs:
            X = conv_step.pad(X, conv_step.padded_channels(W.shape[2], W.shape[3], X.dtype))
        if self.behind is not None:
            Y, self.behind.moments = conv_step.forward(X, W, b, window, self._arrived)
        else:
            args = (X, W, b, window, self._act, self._pooled)
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
        dY = self.through(dY, Y)
        if not inputs and not self.learns:
            return None
        if self._by_example(X, window):
            return example_conv.backward(
                *(X, dY, winners, self._weight, window),
                *(self.grads if self.learns else None, inputs, self.input_act),
            )
        return conv_step.backward(
            *(X, dY, self._weight, window, winners),
            *(self.grads if self.learns else None, inputs, self.input_act, self.side),
            *(None if self.before is None else self.before.before(), self._arrived),
        )

    def forget(self) -> None:
        super().forget()
        self.side = None


class RowStep(ConvStep):
    """A convolution along time with bias and activation, as one of images of one row."""

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
    """A dense layer with bias and activation, one launch each way."""

    def __init__(self, layers: Sequence[Any], act: Formula | None) -> None:
        super().__init__(layers, name_of(layers[0], act, False))
        self.ends_with = act

    def forward(self, X: Array) -> Array:
        p, X = self.layers[0].parameters, contiguous(X)
        engine: Any = kernels_for(X)
        Y = engine.dense_step(X, p["W"], p["b"].reshape(-1), self.ends_with)
        self._saved = X, Y
        return Y

    def parts(self) -> int:
        X, Y = self._saved
        engine: Any = kernels_for(X)
        return engine.dense_parts(X.shape[0], X.shape[1], Y.shape[1], X.dtype)

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import product  # needs CuPy

        X, Y = self._saved
        dY = self.through(contiguous(dY), Y)
        W = self.layers[0].parameters["W"]
        if not self.learns:
            if not inputs:
                return None
            act, mask = self.input_act, None if self.input_act is None else X
            return product.gemm(dY, W, transpose_b=True, mask=mask, before=act or RELU)
        engine: Any = kernels_for(X)
        return engine.dense_backward(X, W, dY, self.grads, self.input_act, inputs)


class SumStep(ResidualNode):
    """A residual block; batch normalisation at the end of its body takes the sum along, and a
    convolution at its beginning that of the gradients."""

    def __init__(self, name: str, body: list[Node], side: list[Node] | None) -> None:
        Node.__init__(self, [], name)
        self.body, self.side = body, side
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
