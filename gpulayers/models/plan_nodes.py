"""The steps of a planned network: one layer each, or a few that are computed in one pass.

A node keeps what its backward pass needs and its layers' gradients. Several sets of nodes can stand
for the same layers (one for each thread), because nodes of one batch never change a layer; the
layers' own `forward` and `backward` are not called but for what no node understands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpulayers import threads
from gpulayers.activations import Identity, ReLU
from gpulayers.backend import Array, xp_of
from gpulayers.layers import (
    Add,
    Conv1D,
    Conv2D,
    Deconv2D,
    Flatten,
    FullyConnected,
    GlobalAvgPool2D,
    GroupNorm,
    LayerNorm1D,
    LayerNorm2D,
    Multiply,
    Pool2D,
    Softmax,
    Upsample2D,
    ZeroPad2D,
)
from gpulayers.layers._group import LayerGroup
from gpulayers.layers.base import LayerBase
from gpulayers.models.blocks import Activation, GatedActivation, Residual
from gpulayers.models.network import Sequential
from gpulayers.models.plan_conv import ConvNode, PooledNode
from gpulayers.models.plan_node import BySize, Node, backward_through, contiguous
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._product import product

__all__ = ["Node", "has_own_methods", "nodes_of"]

# Layers of one input that treat each example by itself and change nothing of their own meanwhile:
# a batch may be cut into parts that are computed at the same time.
_BY_EXAMPLE = (
    Activation,
    Conv1D,
    Conv2D,
    Deconv2D,
    Flatten,
    FullyConnected,
    GatedActivation,
    GlobalAvgPool2D,
    GroupNorm,
    LayerNorm1D,
    LayerNorm2D,
    Pool2D,
    Softmax,
    Upsample2D,
    ZeroPad2D,
)
_SEVERAL_INPUTS = (Add, Multiply)


class LayerNode(Node):
    """A layer by its own formulas, without the checks and the bookkeeping around them."""

    def __init__(self, layer: Any) -> None:
        super().__init__([layer], type(layer).__name__)
        self.by_example = type(layer) in _BY_EXAMPLE
        self.recordable = type(layer) is Flatten  # a view
        self._saved: Any = None

    def forward(self, X: Array) -> Array:
        Y, self._saved = self.layers[0]._forward(X, training=self.layers[0].trainable)
        return Y

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        layer = self.layers[0]
        dX, grads = layer._backward(
            contiguous(dY), self._saved, params=layer.trainable, inputs=inputs
        )
        if layer.trainable:
            for name in layer.gradients.keys() - grads.keys():  # a normalisation's of no example
                grads[name] = xp_of(dY).zeros_like(layer.parameters[name])
        self.gradients[0] = grads
        return dX if inputs else None

    def forget(self) -> None:
        super().forget()
        self._saved = None


class PublicNode(Node):
    """Whatever has only the public methods: groups, wrappers, layers with their own forward."""

    by_example = False

    def __init__(self, part: Any) -> None:
        super().__init__([part], type(part).__name__)

    @property
    def wants_gradient(self) -> bool:
        return True

    def forward(self, X: Array) -> Array:
        return self.layers[0].forward(X, True)

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        dX = self.layers[0].backward(dY)
        return dX if inputs else None

    def gradient_arrays(self) -> Iterator[Array]:
        part = self.layers[0]
        parts = part.walk() if isinstance(part, LayerGroup) else [("", part)]
        for _, layer in parts:
            if layer.trainable:
                yield from layer.gradients.values()

    def forget(self) -> None:
        """The part keeps its own gradients until its update."""

    def update(
        self, cur_loss: float | None, gradients: list[dict[str, Array]], rules: Any = None
    ) -> None:
        part = self.layers[0]
        if part.trainable:
            part.update(cur_loss)
        else:
            part.flush_gradients()


class DenseNode(Node):
    """A dense layer with bias and ReLU (or none); only the output is kept."""

    recordable = True

    def __init__(self, layer: Any, relu: bool, extra: Sequence[Any] = ()) -> None:
        super().__init__([layer, *extra], "FullyConnected" + (" + ReLU" if relu else ""))
        self._relu = relu
        self._plans = BySize()
        self._saved: Any = None

    def forward(self, X: Array) -> Array:
        p, plan = self.layers[0].parameters, self._plan(X)
        W, b = p["W"], p["b"].reshape(-1)
        if plan is not None:
            Y = plan.forward(X, W, b)
        else:
            Y = kernels_for(X).dense_forward(X, W, b, self._relu)
        self._saved = X, Y, plan
        return Y

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        layer, (X, Y, plan) = self.layers[0], self._saved
        dY, W = contiguous(dY), layer.parameters["W"]
        if plan is not None:
            gradients, dX = plan.backward(dY, X, Y, W, layer.trainable, inputs)
            if gradients is not None:
                self.gradients[0] = dict(zip("Wb", gradients, strict=True))
            return dX
        k = kernels_for(dY)
        dZ = k.relu_backward(dY, Y) if self._relu else dY
        if layer.trainable:
            self.gradients[0] = {"W": product(X.T, dZ), "b": k.bias_grad(dZ)}
        return product(dZ, W.T) if inputs else None

    def _plan(self, X: Array) -> Any:
        """Pure NumPy's memory and way for a thread that computes alone; None otherwise."""
        k: Any = kernels_for(X)
        make = getattr(k, "dense_layer", None)
        if make is None or getattr(k, "threaded", False) or not threads.is_serial():
            return None
        shape = self.layers[0].parameters["W"].shape
        return self._plans.get((len(X), X.dtype), lambda: make(len(X), shape, X.dtype, self._relu))

    def forget(self) -> None:
        super().forget()
        self._saved = None


class ResidualNode(Node):
    """Y = body(X) + shortcut(X), each side a chain of nodes."""

    def __init__(self, block: Residual) -> None:
        body = list(nodes_of(block.body.layers))
        side = None if block.shortcut is None else list(nodes_of(block.shortcut.layers))
        super().__init__([], "Residual: " + ", ".join(n.name for n in body))
        self.body, self.side = body, side
        self.by_example = all(n.by_example for n in (*body, *(side or ())))

    @property
    def wants_gradient(self) -> bool:
        return any(node.wants_gradient for node in self.parts())

    def parts(self) -> Iterator[Node]:
        yield from self.body
        yield from self.side or ()

    def forward(self, X: Array) -> Array:
        Y = side = X
        for node in self.body:
            Y = node.forward(Y)
        for node in self.side or ():
            side = node.forward(side)
        return Y + side

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        through = backward_through(self.body, dY, inputs)
        side = backward_through(self.side, dY, inputs) if self.side is not None else dY
        return None if through is None or side is None else through + side

    def forget(self) -> None:
        for node in self.parts():
            node.forget()


# ------------------------------------------------------------------------------ which node for what


def has_own_methods(part: object) -> bool:
    """Whether somebody put a method of their own into this object, which must then be called."""
    return part is not None and not vars(part).keys().isdisjoint(
        ("forward", "backward", "update", "_forward")
    )


def nodes_of(layers: Sequence[Any]) -> Iterator[Node]:
    """Yield the nodes for a chain of layers: fused where layers in a row fit, else one each."""
    flat = list(_flattened(layers))
    pooled: list[ConvNode] = []
    i = 0
    while i < len(flat):
        node, used = _fused(flat, i)
        if node is None:
            node, used = _single(flat[i]), 1
        i += used
        if isinstance(node, ConvNode) and node.halves:
            pooled.append(node)
            continue
        if pooled:
            yield PooledNode(pooled)
            pooled = []
        yield node
    if pooled:
        yield PooledNode(pooled)


def _flattened(layers: Sequence[Any]) -> Iterator[Any]:
    for layer in layers:
        if type(layer) is Sequential and not has_own_methods(layer):
            yield from _flattened(layer.layers)
        else:
            yield layer


def _single(part: Any) -> Node:
    if type(part) is Residual and not has_own_methods(part):
        return ResidualNode(part)
    plain = (
        isinstance(part, LayerBase)
        and type(part).forward is LayerBase.forward
        and type(part).backward is LayerBase.backward
        and type(part).update is LayerBase.update
        and vars(part).keys().isdisjoint(("forward", "backward", "update"))
        and not isinstance(part, _SEVERAL_INPUTS)
    )
    return LayerNode(part) if plain else PublicNode(part)


def _fused(layers: list[Any], i: int) -> tuple[Node | None, int]:
    """A node for the layers from `i` on that are computed in one pass, and how many they are."""
    first = layers[i]
    if type(first) not in (Conv2D, FullyConnected) or has_own_methods(first):
        return None, 0
    relu = type(first.act_fn) is ReLU
    if not relu and type(first.act_fn) is not Identity:
        return None, 0
    extra: list[Any] = []
    after = layers[i + 1] if i + 1 < len(layers) else None
    if has_own_methods(after):
        after = None
    if not relu and type(after) is Activation and type(after.act_fn) is ReLU:
        relu, extra = True, [after]
        after = layers[i + 2] if i + 2 < len(layers) else None
        after = None if has_own_methods(after) else after
    if type(first) is FullyConnected:
        return DenseNode(first, relu, extra), 1 + len(extra)
    pool = after if type(after) is Pool2D and after.mode == "max" else None
    return ConvNode(first, pool, relu, extra), 1 + len(extra) + (pool is not None)
