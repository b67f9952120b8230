"""What the nodes of a captured step have beyond a `Node`.

Their gradients go where the step wants them, in parts that its update adds up, and the slope of an
activation is taken along by the node behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda.fusible import Formula
from gpulayers.models.graph_draws import Draws
from gpulayers.models.plan_node import Node

__all__ = ["Fused", "Place"]

Place = tuple[Any, str]


class Fused(Node):
    """A layer with what follows it, of which our kernels compute all.

    Attributes
    ----------
    ends_with : Formula or None
        The activation of the output, whose slope the node behind may take along.
    input_act : Formula or None
        The activation that made the input, if the input's gradient goes through it here.
    leaves_slope : bool
        Whether the node behind does that for this one.
    grads : array (parts, ...)
        Where the gradients go; unless the layer is frozen.
    """

    ends_with: Formula | None = None

    def __init__(self, layers: Sequence[Any], name: str) -> None:
        super().__init__(layers, name)
        self.input_act: Formula | None = None
        self.leaves_slope = False
        self.grads: Any = None
        self._saved: Any = None

    @property
    def learns(self) -> bool:
        return self.layers[0].trainable

    def takes_slope_of(self, act: Formula) -> bool:
        """Whether the input's gradient can go through such an activation of the node before."""
        return True

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
