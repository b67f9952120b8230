"""Which nodes a captured step has for a chain of layers, and how their gradients are gathered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpulayers.activations import Identity
from gpulayers.backend import Array
from gpulayers.cuda.fusible import RELU, formula_of, is_told_by_value
from gpulayers.cuda.table_tiles import REACH
from gpulayers.layers import Conv1D, Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models.blocks import Activation
from gpulayers.models.graph_layers import NormStep, is_fixed, layer_step, plain
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.graph_products import ConvStep, DenseStep, RowStep, SumStep
from gpulayers.models.graph_sequence import SequenceStep, sequence_step
from gpulayers.models.plan_conv import ConvNode, PooledNode, is_halving
from gpulayers.models.plan_node import Node, backward_through, first_wanting
from gpulayers.models.plan_nodes import DenseNode, LayerNode, ResidualNode, nodes_of

__all__ = [
    "ConvStep",
    "Fused",
    "acts_of",
    "backward_into",
    "graph_nodes",
    "leaves",
    "places_of",
    "refusal",
]


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
        act = before.ends_with if isinstance(before, Fused) else None
        if act is not None and isinstance(node, Fused) and node.takes_slope_of(act):
            node.input_act, before.leaves_slope = act, True
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
        if node is None:
            node, taken = _activated(nodes, i)
        if node is not None:
            yield node
            i += taken
        else:
            yield from _replacement(nodes[i])
            i += 1


def _replacement(node: Any) -> Iterator[Node]:
    if isinstance(node, PooledNode):
        yield from _replaced(node.nodes)
    elif isinstance(node, ResidualNode):
        side = None if node.side is None else on_gpu(node.side)
        yield SumStep(node.name, on_gpu(node.body), side)
    elif isinstance(node, ConvNode) and _reached(node) and (node.halves or node._pool is None):
        yield ConvStep(node.layers, RELU if node._relu else None, node.halves)
    elif isinstance(node, DenseNode):
        yield DenseStep(node.layers, RELU if node._relu else None)
    elif type(node) is LayerNode and type(node.layers[0]) is Conv1D and _reached(node):
        yield RowStep(node.layers, None, False) if _ends_plain(node) else node
    else:
        yield node


def _activated(nodes: Sequence[Node], i: int) -> tuple[Node | None, int]:
    """A node for the product that node `i` is with an activation, and perhaps a pooling, that no
    node of a plan has taken along yet, and of how many nodes it takes the place."""
    node: Any = nodes[i]
    layers, taken = list(node.layers), 1
    if not layers or type(layers[0]) not in (Conv1D, Conv2D, FullyConnected):
        return None, 0
    if _ends_plain(node):
        after = plain(nodes, i + 1)
        act = formula_of(after.act_fn) if type(after) is Activation else None
        layers, taken = [*layers, after], 2
    elif type(node) is LayerNode:
        act = formula_of(layers[0].act_fn)
    else:
        return None, 0
    if act is None or not is_told_by_value(act):
        return None, 0
    if type(layers[0]) is FullyConnected:
        return DenseStep(layers, act), taken
    if not _reached(node):
        return None, 0
    if type(layers[0]) is Conv1D:
        return RowStep(layers, act, False), taken
    after = plain(nodes, i + taken)
    pooled = type(after) is Pool2D and is_halving(after)
    return ConvStep([*layers, after] if pooled else layers, act, pooled), taken + pooled


def _ends_plain(node: Any) -> bool:
    """Whether a node is a layer without an activation and nothing behind it."""
    if type(node) is LayerNode:
        return type(node.layers[0].act_fn) is Identity
    return isinstance(node, ConvNode | DenseNode) and len(node.layers) == 1 and not node._relu


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


def acts_of(layers: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The layers' activations with their constants, as they are now: the captured ones are those of
    the nodes. Of arrays it counts which they are."""
    found: list[tuple[Any, ...]] = []
    for layer in layers:
        act: Any = getattr(layer, "act_fn", None)
        if act is not None:
            known: dict[str, Any] = act.__dict__
            found.append((act, *(id(v) if hasattr(v, "shape") else v for v in known.values())))
    return found


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
