"""One set of a plan's nodes, and what is said of it or done to two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpulayers.backend import Array
from gpulayers.models.plan_node import Node
from gpulayers.models.plan_nodes import PublicNode, ResidualNode, nodes_of
from gpulayers.ops.workspace import Workspace

__all__ = ["Copy", "add_gradients", "multiplications"]


class Copy:
    """One set of nodes with the memory it works in; a thread has one of its own."""

    def __init__(self, layers: list[Any]) -> None:
        self.nodes = list(nodes_of(layers))
        self.workspace = Workspace()
        self.losses: Any = None
        self.outputs: Any = None

    def forward(self, X: Array) -> Array:
        for node in self.nodes:
            X = node.forward(X)
        return X

    def leaves(self) -> Iterator[Node]:
        """The nodes that hold gradients."""
        return _leaves(self.nodes)

    def forget(self) -> None:
        self.losses = self.outputs = None
        for node in self.nodes:
            node.forget()

    def drop(self) -> None:
        """A batch has failed on its way: what parts keep of it by themselves is gone, too."""
        self.forget()
        for node in self.leaves():
            if isinstance(node, PublicNode):
                node.layers[0].flush_gradients()


def _leaves(nodes: Any) -> Iterator[Node]:
    for node in nodes:
        if isinstance(node, ResidualNode):
            yield from _leaves(node.parts())
        else:
            yield node


def multiplications(copy: Copy, X: Array) -> float:
    """Of the forward pass of one example, about: each parameter once for every pixel put out."""
    total = 0.0
    for node in copy.nodes:
        X = node.forward(X)
        count = sum(
            p.size for leaf in _leaves([node]) for la in leaf.layers for p in la.parameters.values()
        )
        total += count * max(1, X.size // max(1, X.shape[-1]))
    copy.forget()
    return total


def add_gradients(total: Copy, other: Copy) -> None:
    """Add the gradients that another part of the batch gave."""
    for ours, theirs in zip(total.leaves(), other.leaves(), strict=True):
        for mine, more in zip(ours.gradients, theirs.gradients, strict=True):
            for name, grad in more.items():
                mine[name] += grad
