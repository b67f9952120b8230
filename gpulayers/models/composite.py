"""What a group of layers shares, whatever way data runs through it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from gpulayers.backend import Array, home_of, is_floating
from gpulayers.errors import DTypeError, ParameterError, ShapeError, suggest
from gpulayers.layers._group import LayerGroup
from gpulayers.models._shown import Shown

__all__ = ["Composite"]


class Composite(LayerGroup):
    """What every group of layers shares; subclasses add `components`, `forward` and `backward`.

    Parameters
    ----------
    name : str
        Used in error messages and reports.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def components(self) -> dict[str, Any]:
        """The parts by name, in the order in which `update` and `parameters` go through them: a
        new dict of what stands in the group now."""

    def _parts(self) -> dict[str, Any]:
        return self.components

    @property
    def _name(self) -> str:
        return self.name

    # ------------------------------------------------------------------------------- parameters

    @property
    def parameters(self) -> dict[str, Array]:
        """Every parameter by its name, e.g. ``"0.W"``; the live arrays, None before the first
        forward pass has told their shapes.

        ``net.parameters["0.W"][...] = array`` changes one; `set_params` sets several. The
        dictionary itself is read only (ParameterError); ``dict(net.parameters)`` copies it.
        """
        entries = {f"{n}.{k}": v for n, layer in self.walk() for k, v in layer.parameters.items()}
        how = 'write into the array, ....parameters["0.W"][...] = array, or use set_params'
        return Shown(entries, f"{self.name}.parameters", how)

    @property
    def gradients(self) -> dict[str, Array]:
        """Every accumulated gradient by its parameter's name; the live arrays, in a dictionary
        that is read only."""
        entries = {f"{n}.{k}": v for n, layer in self.walk() for k, v in layer.gradients.items()}
        how = 'write into the array, ....gradients["0.W"][...] = array'
        return Shown(entries, f"{self.name}.gradients", how)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Class, name, and each component's hyperparameters, in order: a new dict."""
        return {
            "layer": type(self).__name__,
            "name": self.name,
            "components": {k: layer.hyperparameters for k, layer in self.components.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Return numpy-ml's description: layer, parameters (the live arrays), hyperparameters."""
        return {
            "layer": type(self).__name__,
            "parameters": dict(self.parameters),
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
        DTypeError
            If a value is no array of numbers. All are looked at before one is assigned.
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
            if value is None:
                continue
            home_of(f"{self.name}.set_params", name, value)
            if not (is_floating(value.dtype) or value.dtype.kind in "iu"):
                raise DTypeError(
                    f"{self.name}.set_params: {name} must be floating, got {value.dtype}"
                )
            current = layers[where].parameters[key]
            if current is not None and current.shape != value.shape:
                raise ShapeError(
                    f"{self.name}.set_params: {name} must have shape {current.shape}, "
                    f"got {value.shape}"
                )
            grouped.setdefault(where, {})[key] = value
        for where, values in grouped.items():
            layers[where].set_params({"parameters": values, "hyperparameters": {}})
        return self

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Compute the group's output."""
        raise NotImplementedError

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Carry the gradient of the loss back through the group."""
        raise NotImplementedError
