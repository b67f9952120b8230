"""What every group of layers shares, whatever way data runs through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

from gpulayers.errors import NotInitializedError
from gpulayers.initializers import OptimizerInitializer


class LayerGroup(ABC):
    """Layers, wrapped layers and groups under names, that learn, freeze and move together."""

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """Every part by its name, in the order in which the methods go through them."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield ``(name, layer)`` for every layer, also those inside groups, in order."""
        for key, part in self._parts().items():
            if isinstance(part, LayerGroup):
                yield from part.walk(f"{prefix}{key}.")
            else:
                yield prefix + key, part

    def set_optimizer(self, optimizer: Any) -> None:
        """Give each layer its own copy of `optimizer` (an object, a string, or None for SGD).

        Raises
        ------
        ParameterError
            If the string names no optimizer.
        """
        optimizer = OptimizerInitializer(optimizer)()
        for _, layer in self.walk():
            layer.optimizer = optimizer.copy()

    @property
    def trainable(self) -> bool:
        """False if every layer is frozen."""
        return any(part.trainable for part in self._parts().values())

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned (running statistics are not).

        Raises
        ------
        NotInitializedError
            Before the first forward pass.
        """
        for where, layer in self.walk():
            for name, array in layer.parameters.items():
                if array is None:
                    raise NotInitializedError(
                        f"{self._name}: the shape of {where}.{name} is known only after the first "
                        "forward pass"
                    )
        return sum(int(g.size) for _, layer in self.walk() for g in layer.gradients.values())

    def update(self, cur_loss: float | None = None) -> None:
        """Update the parameters of every layer that is not frozen, and flush all gradients."""
        for part in self._parts().values():
            if part.trainable:
                part.update(cur_loss)
            else:
                part.flush_gradients()

    def flush_gradients(self) -> None:
        """Forget retained inputs and set the gradients to zero."""
        for part in self._parts().values():
            part.flush_gradients()

    def _drop_retained(self) -> None:
        """Forget retained inputs, and keep the gradients."""
        for part in self._parts().values():
            drop = getattr(part, "_drop_retained", None)  # a layer of somebody's own may have none
            if drop is not None:
                drop()

    def freeze(self) -> None:
        """Exclude every layer from updates."""
        for part in self._parts().values():
            part.freeze()

    def unfreeze(self) -> None:
        """Let every layer learn again."""
        for part in self._parts().values():
            part.unfreeze()

    def to(self, name: str) -> Self:
        """Move all layers to the backend ``"numpy"`` or ``"cupy"``, and return the group.

        Raises
        ------
        BackendError
            If the backend is unknown or cannot start.
        """
        for part in self._parts().values():
            part.to(name)
        return self
