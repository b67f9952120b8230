"""What the ready-made models share: named parts, nested dictionaries, moving, summaries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from gpulayers._progress import Display, make_display
from gpulayers._types import is_dict
from gpulayers.backend import Array, home_of, is_floating
from gpulayers.errors import DTypeError, NotInitializedError, ParameterError, ShapeError, suggest
from gpulayers.models._shown import Shown

Part = OrderedDict[str, Any]
Callback = Callable[[Any, int], Any]


class Model:
    """A model of several chains of layers, each an ordered dictionary, such as ``model.encoder``.

    `parameters`, `gradients` and `derived_variables` are numpy-ml's nested dictionaries:
    ``model.parameters["components"]["encoder"]["FC4"]["W"]`` is a live array. The dictionaries are
    read only down to those of the layers.
    """

    _parts: ClassVar[tuple[str, ...]]
    _hyper: ClassVar[tuple[str, ...]]

    def _chains(self) -> dict[str, Part]:
        """The chains by name; empty until the first input tells the sizes."""
        return {name: getattr(self, name) for name in self._parts}

    def _layers(self) -> list[Any]:
        return [layer for chain in self._chains().values() for layer in chain.values()]

    def _collected(self, what: str) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            name: {key: getattr(layer, what) for key, layer in chain.items()}
            for name, chain in self._chains().items()
        }

    def _shown(self, what: str, more: dict[str, Any] | None = None) -> Shown:
        """As `_collected`, read only."""
        name = f"{type(self).__name__}.{what}"
        how = f'write into the arrays, ....{what}["components"][part][layer][key][...] = array'
        parts = {part: Shown(layers, name, how) for part, layers in self._collected(what).items()}
        return Shown({**(more or {}), "components": Shown(parts, name, how)}, name, how)

    @property
    def parameters(self) -> dict[str, Any]:
        """``{"components": {part: {layer: {name: array}}}}``, the live arrays."""
        return self._shown("parameters")

    @property
    def gradients(self) -> dict[str, Any]:
        """As `parameters`."""
        return self._shown("gradients")

    @property
    def derived_variables(self) -> dict[str, Any]:
        """Intermediate values of the model, and under "components" those of its layers."""
        return self._shown("derived_variables", getattr(self, "_dv", {}))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, and each layer's hyperparameters: a new dict."""
        return {
            "layer": type(self).__name__,
            **{name: getattr(self, name) for name in self._hyper},
            "component_ids": list(self._parts),
            "components": self._collected("hyperparameters"),
        }

    def summary(self) -> dict[str, Any]:
        """Return ``{"layer", "parameters", "hyperparameters"}``, with the optimizers' state.

        The arrays are the live ones: ``copy.deepcopy`` it to keep a snapshot.
        """
        return {
            "layer": type(self).__name__,
            "parameters": {"components": self._collected("parameters")},
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> Self:
        """Restore parameters and optimizers from what `summary` of such a model returned.

        Arrays are copied; `summary_dict` is not changed.

        Raises
        ------
        ParameterError
            If it is another model's, or names no layer of this one.
        ShapeError, DTypeError
            If an array does not fit.
        NotInitializedError
            If this model has no layers yet and cannot tell their sizes.
        """
        name = type(self).__name__
        if summary_dict.get("layer", name) != name:
            raise ParameterError(f"{name}: got the summary of {summary_dict['layer']!r}")
        parameters = summary_dict.get("parameters", {}).get("components")
        if not is_dict(parameters):
            raise ParameterError(f"{name}.set_params: expected the summary of a {name}")
        hyper = summary_dict.get("hyperparameters", {}).get("components", {})
        if not self._layers() and any(parameters.values()):
            self._prepare(parameters)
        chains, none = self._chains(), Part()
        for part, layers in parameters.items():
            for key, values in layers.items():
                if key not in chains.get(part, none):
                    known = [f"{p}.{k}" for p, chain in chains.items() for k in chain]
                    raise ParameterError(
                        f"{name}.set_params: no layer {part}.{key}"
                        + suggest(f"{part}.{key}", known)
                    )
                described = dict(hyper.get(part, {}).get(key, {}))
                described.pop("layer", None)
                chains[part][key].set_params({"parameters": values, "hyperparameters": described})
        return self

    def _prepare(self, parameters: dict[str, Any]) -> None:
        """Make the layers, their sizes told by the arrays of a summary."""
        raise NotInitializedError(
            f"{type(self).__name__}: the layers are made at the first input; call forward first"
        )

    # ---- what a checkpoint keeps besides the constructor's arguments and the layers

    def _kept(self) -> dict[str, Any]:
        """Plain values and arrays."""
        return {}

    def _restore(self, kept: dict[str, Any]) -> None:
        """Make the layers of a fresh model, from what `_kept` returned."""

    def _more(self) -> dict[str, Any]:
        """What learns besides the layers of the chains, by name."""
        return {}

    def _learners(self) -> list[Any]:
        return [*self._layers(), *self._more().values()]

    def freeze(self) -> None:
        """Freeze everything that learns."""
        for layer in self._learners():
            layer.freeze()

    def unfreeze(self) -> None:
        """Let everything learn again."""
        for layer in self._learners():
            layer.unfreeze()

    def to(self, name: str) -> Self:
        """Move everything to backend "numpy" or "cupy"."""
        for layer in self._learners():
            layer.to(name)
        return self

    def _checked(self, X: Any, ndim: int, axes: str) -> Array:
        """An input of the right rank and floating dtype, with at least one example."""
        name = type(self).__name__
        home_of(name, "the input", X)
        if not is_floating(X.dtype):
            raise DTypeError(
                f"{name}: the input must be floating, got {X.dtype}; convert it, for bytes e.g. "
                "with (X / 255).astype('float32')"
            )
        if X.ndim != ndim or not X.size:
            raise ShapeError(f"{name}: expected an input {axes}, n_ex >= 1, got shape {X.shape}")
        return X


def shown(verbose: bool) -> Display:
    """Where `fit` shows how it goes: a bar or lines on standard output, or nothing."""
    return make_display() if verbose else Display()


def called(name: str, callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    """The callbacks of a `fit` as a tuple; a single one may stand for itself.

    Raises
    ------
    ParameterError
        If one cannot be called.
    """
    if callable(callbacks):
        return (callbacks,)
    found = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in found:
        if not callable(callback):
            raise ParameterError(f"{name}: callbacks must be callables, got {callback!r}")
    return found


def chain_forward(chain: Part, X: Array, retain_derived: bool) -> Array:
    """Through the layers of a chain, first to last."""
    for layer in chain.values():
        X = layer.forward(X, retain_derived)
    return X


def chain_backward(chain: Part, dLdY: Any, input_grad: bool = True) -> Any:
    """Back through the layers of a chain; without the input's gradient if it is not wanted."""
    layers = list(chain.values())
    for i in range(len(layers) - 1, -1, -1):
        dLdY = layers[i].backward(dLdY, input_grad=input_grad or i > 0)
    return dLdY
