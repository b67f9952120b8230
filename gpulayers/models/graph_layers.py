"""Layers of a planned network on a GPU that are neither convolution nor dense, with what follows
them: batch normalisation with its activation, dropout, global average pooling, gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda.fusible import RELU, Formula, formula_of, is_told_by_value
from gpulayers.layers import BatchNorm1D, BatchNorm2D, Dropout, GlobalAvgPool2D, Pool2D
from gpulayers.models.blocks import Activation, GatedActivation
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.plan_conv import is_halving
from gpulayers.models.plan_node import Node, contiguous
from gpulayers.models.plan_nodes import LayerNode
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.window import Window

__all__ = [
    "DropoutStep",
    "GateStep",
    "GlobalPoolStep",
    "NormStep",
    "is_fixed",
    "layer_step",
    "name_of",
    "plain",
]


class NormStep(Fused):
    """Batch normalisation that learns, with activation and 2 x 2 max pooling; two launches each
    way, of which a convolution before it or behind it takes the first along.

    The slope of its own activation is worked out anew from the input, which the way back reads
    anyhow.

    Attributes
    ----------
    side : array or None
        What is added to the next output: the shortcut of a residual block.
    moments : Moments or None
        Those of the next input, from the convolution before it.
    behind : ConvStep or None
        The convolution that makes the sums of the way back.
    """

    def __init__(self, layers: Sequence[Any], act: Formula | None, pooled: bool) -> None:
        super().__init__(layers, name_of(layers[0], act, pooled))
        self._act, self._pooled = act, pooled
        self.side: Any = None
        self.moments: Any = None
        self.behind: Any = None

    def settings(self) -> Any:
        return self.layers[0].momentum, self.layers[0].epsilon

    def takes_slope_of(self, act: Formula) -> bool:
        return False

    def places(self) -> list[Place]:
        return [(self.layers[0], "scaler"), (self.layers[0], "intercept")]

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import norm  # needs CuPy

        layer, side = self.layers[0], self.side
        Y, self._saved = norm.forward(
            *(contiguous(X), layer.parameters, layer.epsilon, layer.momentum),
            *(self._act, self._pooled, None if side is None else contiguous(side)),
            self.moments,
        )
        return Y

    def parts(self) -> int:
        from gpulayers.cuda import norm  # needs CuPy

        if self.behind is not None:
            return self.behind.parts_before()
        return norm.parts_of(self._saved)

    def before(self) -> Any:
        """What the convolution `behind` needs, to make the sums."""
        from gpulayers.cuda import conv_step  # needs CuPy

        return conv_step.Before(self._saved, self.layers[0].parameters, self.grads)

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import norm  # needs CuPy

        known = contiguous(dY), self._saved, self.layers[0].parameters, self.grads
        if self.behind is None:
            norm.gradient_sums(*known)
        return norm.input_grad(*known) if inputs else None

    def forget(self) -> None:
        super().forget()
        self.side = self.moments = None


class DropoutStep(Fused):
    """Dropout, a launch each way, whose masks are those that the layer would draw.

    Attributes
    ----------
    draws : Draws
        From where the random numbers come; the plan's.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__([layer], type(layer).__name__)
        self._active = layer.trainable and layer.p > 0
        self.draws: Any = None

    def takes_slope_of(self, act: Formula) -> bool:
        return self._active and act == RELU  # it keeps a bit of each number

    @property
    def wants_gradient(self) -> bool:
        return self._active  # the random stream goes on on the way back

    def settings(self) -> Any:
        return self.layers[0].p

    def places(self) -> list[Place]:
        return []

    def prepare(self, draws: Draws | None) -> None:
        self.draws = draws

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import dropout  # needs CuPy

        if not self._active:
            return X
        offset = self.draws.reserve(dropout.blocks_of(X.size))
        p, state, masked = self.layers[0].p, self.draws.state, self.input_act is not None
        Y, self._saved = dropout.forward(contiguous(X), state, offset, p, masked)
        return Y

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import dropout  # needs CuPy

        if not self._active:
            return dY
        # also where nobody wants the gradient: the random stream goes on by it
        return dropout.backward(contiguous(dY), self._saved, self.draws.state, self.layers[0].p)


class GlobalPoolStep(Fused):
    """The average of each channel over the image, as a pooling with one window."""

    def __init__(self, layer: Any) -> None:
        super().__init__([layer], type(layer).__name__)

    def takes_slope_of(self, act: Formula) -> bool:
        return False

    def places(self) -> list[Place]:
        return []

    def forward(self, X: Array) -> Array:
        window = Window((X.shape[1], X.shape[2]))
        self._saved = X.shape, window
        Y = kernels_for(X).avg_pool2d_forward(contiguous(X), window)
        return Y.reshape(len(X), X.shape[3])

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        shape, window = self._saved
        if not inputs:
            return None
        dY = contiguous(dY).reshape(shape[0], 1, 1, shape[3])
        return kernels_for(dY).avg_pool2d_backward(dY, shape, window)


class GateStep(Fused):
    """tanh(F) * sigmoid(G) of two halves of the channels, a launch each way."""

    def __init__(self, layer: Any) -> None:
        super().__init__([layer], type(layer).__name__)

    def takes_slope_of(self, act: Formula) -> bool:
        return False

    def places(self) -> list[Place]:
        return []

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import gate  # needs CuPy

        self._saved = contiguous(X)
        return gate.forward(self._saved)

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import gate  # needs CuPy

        return gate.backward(contiguous(dY), self._saved) if inputs else None


def layer_step(nodes: Sequence[Node], i: int) -> tuple[Node | None, int]:
    """A node for the layers from node `i` on, and of how many nodes it takes the place; None where
    they stay what they are."""
    layer = plain(nodes, i)
    if type(layer) is GlobalAvgPool2D:
        return GlobalPoolStep(layer), 1
    if type(layer) is Dropout:
        return DropoutStep(layer), 1
    if type(layer) is GatedActivation:
        return GateStep(layer), 1
    if type(layer) not in (BatchNorm1D, BatchNorm2D) or not layer.trainable:
        return None, 0
    layers = [layer]
    after = plain(nodes, i + 1)
    act = formula_of(after.act_fn) if type(after) is Activation else None
    if act is not None:
        layers.append(after)
        after = plain(nodes, i + 2)
    pooled = type(layer) is BatchNorm2D and type(after) is Pool2D and is_halving(after)
    pooled = pooled and (act is None or is_told_by_value(act))
    if pooled:
        layers.append(after)
    return NormStep(layers, act, pooled), len(layers)


def name_of(layer: Any, act: Formula | None, pooled: bool) -> str:
    """What a step of these is called."""
    parts = [type(layer).__name__]
    if act is not None:
        parts.append("ReLU" if act == RELU else act[0].replace("_", " "))
    return " + ".join([*parts, *(["max pooling"] if pooled else [])])


def is_fixed(node: Node) -> bool:
    """Whether a node is a layer that, being frozen, changes nothing and treats examples alone."""
    layer = plain([node], 0)
    return type(layer) in (BatchNorm1D, BatchNorm2D) and not layer.trainable


def plain(nodes: Sequence[Node], i: int) -> Any:
    """The one layer of node `i`, which the node computes by the layer's own formulas; else None."""
    node = nodes[i] if i < len(nodes) else None
    return node.layers[0] if type(node) is LayerNode else None
