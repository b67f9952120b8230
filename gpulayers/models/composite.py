"""What a group of layers shares, whatever way data runs through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpulayers.backend import Array
from gpulayers.errors import NotInitializedError, ParameterError, ShapeError, suggest
from gpulayers.initializers import OptimizerInitializer

__all__ = ["Composite"]


class Composite:
    """What every group of layers shares; subclasses add `forward` and `backward`.

    Parameters
    ----------
    components : dict of str to layer
        In the order in which `update` and `parameters` go through them.
    name : str
        Used in error messages and reports.
    """

    def __init__(self, components: dict[str, Any], name: str) -> None:
        self.components = components
        self.name = name

    # -------------------------------------------------------------------------------- optimizer

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

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield ``(name, layer)`` for every layer, also those inside blocks, in order."""
        for key, layer in self.components.items():
            if isinstance(layer, Composite):
                yield from layer.walk(f"{prefix}{key}.")
            else:
                yield prefix + key, layer

    # ------------------------------------------------------------------------------- parameters

    @property
    def trainable(self) -> bool:
        """False if every layer is frozen."""
        return any(layer.trainable for layer in self.components.values())

    @property
    def parameters(self) -> dict[str, Array]:
        """Every parameter by its name, e.g. ``"0.W"``; the live arrays, None before the first
        forward pass has told their shapes."""
        return {f"{n}.{k}": v for n, layer in self.walk() for k, v in layer.parameters.items()}

    @property
    def gradients(self) -> dict[str, Array]:
        """Every accumulated gradient by its parameter's name."""
        return {f"{n}.{k}": v for n, layer in self.walk() for k, v in layer.gradients.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned (running statistics are not).

        Raises
        ------
        NotInitializedError
            Before the first forward pass.
        """
        for name, array in self.parameters.items():
            if array is None:
                raise NotInitializedError(
                    f"{self.name}: the shape of {name} is known only after the first forward pass"
                )
        return sum(int(array.size) for array in self.gradients.values())

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Class, name, and each component's hyperparameters, in order."""
        return {
            "layer": type(self).__name__,
            "name": self.name,
            "components": {k: layer.hyperparameters for k, layer in self.components.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Return numpy-ml's description: layer, parameters (the live arrays), hyperparameters."""
        return {
            "layer": type(self).__name__,
            "parameters": self.parameters,
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> Composite:
        """Assign parameters from what `summary` gave (or from ``{"parameters": {...}}``).

        Unlike numpy-ml's modules the given dictionary stays as it is.

        Raises
        ------
        ParameterError
            If a name belongs to no layer, or "parameters" is missing.
        ShapeError
            If an array has another shape than the parameter it replaces.
        """
        if not isinstance(summary_dict, dict) or "parameters" not in summary_dict:
            raise ParameterError(
                f"{self.name}.set_params: expected a dictionary with the entry 'parameters'"
            )
        layers = dict(self.walk())
        grouped: dict[str, dict[str, Array]] = {}
        for name, value in summary_dict["parameters"].items():
            where, _, key = name.rpartition(".")
            if where not in layers or key not in layers[where].parameters:
                raise ParameterError(
                    f"{self.name}.set_params: no parameter {name!r}"
                    + suggest(name, self.parameters)
                )
            current = layers[where].parameters[key]
            if current is not None and value is not None and current.shape != value.shape:
                raise ShapeError(
                    f"{self.name}.set_params: {name} must have shape {current.shape}, "
                    f"got {value.shape}"
                )
            if value is not None:
                grouped.setdefault(where, {})[key] = value
        for where, values in grouped.items():
            layers[where].set_params({"parameters": values, "hyperparameters": {}})
        return self

    # ----------------------------------------------------------------------------------- updates

    def update(self, cur_loss: float | None = None) -> None:
        """Update the parameters of every layer that is not frozen, and flush all gradients."""
        for layer in self.components.values():
            if layer.trainable:
                layer.update(cur_loss)
            else:
                layer.flush_gradients()

    def flush_gradients(self) -> None:
        """Forget retained inputs and set the gradients to zero."""
        for layer in self.components.values():
            layer.flush_gradients()

    def freeze(self) -> None:
        """Exclude every layer from updates (single ones: ``network[i].freeze()``)."""
        for layer in self.components.values():
            layer.freeze()

    def unfreeze(self) -> None:
        """Let every layer learn again."""
        for layer in self.components.values():
            layer.unfreeze()

    def to(self, name: str) -> Composite:
        """Move all layers to the backend ``"numpy"`` or ``"cupy"``, and return the network.

        Raises
        ------
        BackendError
            If the backend is unknown or cannot start.
        """
        for layer in self.components.values():
            layer.to(name)
        return self

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        raise NotImplementedError

    def backward(self, dLdY: Any, retain_grads: bool = True) -> Any:
        raise NotImplementedError
