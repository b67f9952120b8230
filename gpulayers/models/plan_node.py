"""What a step of a planned network is, and how a gradient goes back through a chain of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.ops._kernels import kernels_for

__all__ = ["BySize", "Node", "backward_through", "contiguous", "first_wanting"]


class BySize:
    """What was made for batches of a size, for the last two sizes: a whole batch, and the last one
    of an epoch."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            while len(self._made) > 1:
                del self._made[next(iter(self._made))]
            self._made[key] = make()
        return self._made[key]


class Node(ABC):
    """One step of the chain.

    Attributes
    ----------
    layers : the layers it stands for
    name : str
        As `CompiledNetwork.describe` prints it.
    by_example : bool
        Whether parts of a batch may be computed at the same time.
    recordable : bool
        Whether the compiled kernels compute all of it, in the same calls for every batch of a size
        as long as the parameters and `settings` are the same.
    gradients : list of dict
        After `backward`: for each layer its parameters' gradients by name, of this batch alone.
    """

    by_example = True
    recordable = False

    def __init__(self, layers: Sequence[Any], name: str) -> None:
        self.layers = tuple(layers)
        self.name = name
        self.gradients: list[dict[str, Array]] = [{} for _ in layers]

    @property
    def wants_gradient(self) -> bool:
        """Whether a step has to come back as far as this node: something in it learns."""
        return any(layer.trainable and layer.gradients for layer in self.layers)

    @abstractmethod
    def forward(self, X: Array) -> Array: ...

    @abstractmethod
    def backward(self, dY: Array, inputs: bool) -> Array | None:
        """Return the gradient of the input if `inputs`, and keep those of the parameters."""

    def forget(self) -> None:
        """Let go of the arrays of the batch, so that the workspace can use them again."""
        self.gradients = [{} for _ in self.layers]

    def settings(self) -> Any:
        """What the calls of its kernels depend on, but for batch and parameters."""
        return None

    def gradient_arrays(self) -> Iterator[Array]:
        """The gradients of the parameters that learn."""
        for layer, grads in zip(self.layers, self.gradients, strict=True):
            if layer.trainable:
                yield from grads.values()

    def update(
        self, cur_loss: float | None, gradients: list[dict[str, Array]], rules: Any = None
    ) -> None:
        """Let each layer's optimizer take its step with these gradients; `rules` does the
        updates, by default the kernels for the arrays."""
        for layer, grads in zip(self.layers, gradients, strict=True):
            if not layer.trainable or not layer.gradients:
                continue
            optimizer = layer.optimizer
            optimizer.step()
            for name in layer.gradients:
                parameter = layer.parameters[name]
                grad = grads[name]
                if grad.shape != parameter.shape:
                    grad = grad.reshape(parameter.shape)
                k = kernels_for(grad) if rules is None else rules
                optimizer.update_planned(k, parameter, grad, name, cur_loss)


def first_wanting(nodes: Sequence[Node], inputs: bool) -> int:
    """The number of the node that a gradient goes back to: the first one, if its input's is wanted
    too (`inputs`), else the first that wants one."""
    wanting = (i for i, node in enumerate(nodes) if inputs or node.wants_gradient)
    return next(wanting, len(nodes))


def backward_through(nodes: Sequence[Node], dY: Array, inputs: bool) -> Array | None:
    """Through a chain, the last node first; without `inputs` what nobody wants is left out: the
    nodes at the beginning that learn nothing, and the input's gradient of the one behind them."""
    grad: Any = dY
    first = first_wanting(nodes, inputs)
    for i in range(len(nodes) - 1, first - 1, -1):
        grad = nodes[i].backward(grad, inputs or i > first)
    return grad if inputs else None


def contiguous(array: Array) -> Array:
    return array if array.flags.c_contiguous else xp_of(array).ascontiguousarray(array)
