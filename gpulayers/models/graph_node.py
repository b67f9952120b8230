"""What the nodes of a captured step have beyond a `Node`.

Their gradients go where the step wants them, in parts that its update adds up, and the slope of a
ReLU is taken along by the node behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.models.graph_draws import Draws
from gpulayers.models.plan_node import Node

__all__ = ["Fused", "Place"]

Place = tuple[Any, str]


class Fused(Node):
    """A layer with what follows it, of which our kernels compute all.

    Attributes
    ----------
    ends_with_relu : bool
        Whether the output is that of a ReLU whose slope the node behind may take along.
    takes_slope : bool
        Whether it can do that for the node before.
    masks_input : bool
        Whether the input's gradient goes through the ReLU that made the input.
    leaves_slope : bool
        Whether the node behind does that for this one.
    grads : array (parts, ...)
        Where the gradients go; unless the layer is frozen.
    """

    ends_with_relu = False
    takes_slope = True

    def __init__(self, layers: Sequence[Any], name: str) -> None:
        super().__init__(layers, name)
        self.masks_input = self.leaves_slope = False
        self.grads: Any = None
        self._saved: Any = None

    @property
    def learns(self) -> bool:
        return self.layers[0].trainable

    def places(self) -> list[Place]:
        """The parameters that learn, in the order of their gradients within a part."""
        raise NotImplementedError

    def prepare(self, draws: Draws | None) -> None:
        """Make what outlives the steps, outside a capture; `draws` gives random numbers."""

    def parts(self) -> int:
        """In how many parts the gradients come, for the batch that went forward last."""
        raise NotImplementedError

    def take(self, region: Array) -> None:
        """From now on the gradients go into `region` (parts, numbers of all parameters)."""
        self.grads = region

    def forget(self) -> None:
        super().forget()
        self._saved = None
