"""What all modules share: their components, described, restored, trained together."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from gpulayers import backend
from gpulayers._types import is_dict, is_list, is_sequence
from gpulayers.backend import Array, xp_of
from gpulayers.errors import (
    FrozenLayerError,
    GPULayersError,
    ParameterError,
    ShapeError,
    suggest,
)
from gpulayers.layers import _arguments as check
from gpulayers.layers._group import LayerGroup
from gpulayers.layers._state import _moved
from gpulayers.layers.base import LayerBase
from gpulayers.modules._fixed import fix_settings

_GROUPS = ("parameters", "hyperparameters")


class ModuleBase(LayerGroup):
    """Base class of the modules: several layers that form one piece, used like a layer.

    Attributes
    ----------
    component_ids : tuple of str
        The components' names; each is an attribute, too.
    components : list of layers, in that order
    X : list
        Inputs retained for `backward`.

    Notes
    -----
    `parameters`, `gradients`, `derived_variables` and `hyperparameters` hold the components' under
    ``"components"``, by name. A module trains for any number of steps, takes several forward passes
    before one backward, and each component has its own copy of the optimizer. (After an update
    numpy-ml's modules crash in the second forward, with one optimizer's state for all components.)
    """

    component_ids: ClassVar[tuple[str, ...]]
    _hyper: ClassVar[tuple[str, ...]]  # names listed in `hyperparameters`
    _settings: ClassVar[tuple[str, ...]]  # those of them that the constructor takes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        fix_settings(cls)

    def __init__(self) -> None:
        self.X: list[Any] = []
        self._kept: list[dict[str, Any]] = []  # what each forward pass leaves for backward
        self._dv: dict[str, Any] = {}

    # ---- what a module adds

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output."""

    @abstractmethod
    def backward(self, *args: Any, **kwargs: Any) -> Any:
        """Carry the gradient of the loss back through the module."""

    # ---- components

    def _parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.component_ids}

    @property
    def components(self) -> list[Any]:
        return list(self._parts().values())

    @property
    def optimizer(self) -> Any:
        """The first component's; `set_optimizer` changes it in all."""
        return self.components[0].optimizer

    @property
    def parameters(self) -> dict[str, Any]:
        return self._of_components("parameters")

    @property
    def gradients(self) -> dict[str, Any]:
        return self._of_components("gradients")

    @property
    def derived_variables(self) -> dict[str, Any]:
        """The components', and what the last forward and backward pass computed between them."""
        return {**self._of_components("derived_variables"), **self._dv}

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the module was built with, the sizes its first input told, and the components'."""
        values = {name: getattr(self, name) for name in self._hyper}
        for name in ("act_fn", "gate_fn"):
            if name in values:
                values[name] = str(values[name])
        return {
            "layer": self._name,
            **values,
            "optimizer": {"cache": {}, "hyperparameters": self.optimizer.hyperparameters},
            "component_ids": list(self.component_ids),
            **self._of_components("hyperparameters"),
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments but the optimizer, activations as strings."""
        values = self.hyperparameters
        return {name: values[name] for name in self._settings}

    def _of_components(self, attribute: str) -> dict[str, Any]:
        return {"components": {n: getattr(part, attribute) for n, part in self._parts().items()}}

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}={v}" for n, v in self.arguments.items())
        return f"{self._name}({shown}{'' if self.trainable else ', frozen'})"

    # ---- training

    def update(self, cur_loss: float | None = None) -> None:
        """Let every component that is not frozen take one step, and flush.

        Raises
        ------
        FrozenLayerError
            If all of them are frozen.
        """
        if not self.trainable:
            raise FrozenLayerError(f"{self._name}: the module is frozen; unfreeze() it to update")
        super().update(cur_loss)
        self._forget()

    def flush_gradients(self) -> None:
        """Set all gradients to zero and forget the retained inputs."""
        super().flush_gradients()
        self._forget()

    def _drop_retained(self) -> None:
        super()._drop_retained()
        self._forget()

    def _forget(self) -> None:
        self.X, self._kept, self._dv = [], [], {}

    def to(self, name: str) -> Self:
        """Move everything to a backend, see `LayerBase.to`."""
        super().to(name)
        with backend.use_backend(name):
            home = backend.current_backend()
        for attribute in ("X", "_kept", "_dv"):
            setattr(self, attribute, _moved(getattr(self, attribute), home))
        return self

    # ---- describing, restoring

    def summary(self) -> dict[str, Any]:
        """Return ``{"layer", "parameters", "hyperparameters"}``, from which `set_params` restores.

        The arrays are the live ones.
        """
        return {
            "layer": self._name,
            "parameters": self.parameters,
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> Self:
        """Restore what `summary` returned; numpy-ml's summaries are taken too.

        A module that was built with other settings becomes the one described, with new components;
        else arrays are written in place. `summary_dict` is not changed.

        Parameters
        ----------
        summary_dict : dict
            ``"parameters"`` and ``"hyperparameters"``; what is missing stays as it is.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            For an unknown entry or the summary of another kind of module.
        ShapeError, DTypeError
            If an array does not fit. After an error the module is as it was.
        """
        summary_dict = check.group(self._name, summary_dict)
        copy.deepcopy(self)._assign(summary_dict)  # an error leaves this one alone
        self._assign(summary_dict)
        return self

    def _assign(self, summary_dict: dict[str, Any]) -> None:
        values = dict(summary_dict)
        arrays = check.group(self._name, values, "parameters")
        settings = check.group(self._name, values, "hyperparameters")
        settings = {n: v for n, v in values.items() if n not in _GROUPS} | settings
        kind = settings.pop("layer", self._name)
        if kind != self._name:
            raise ParameterError(f"{self._name}: got the summary of a {kind!r}")
        known = (*self._hyper, "optimizer", "component_ids", "components")
        for name in settings:
            if name not in known:
                raise ParameterError(
                    f"{self._name}: unknown entry {name!r} in the summary; "
                    f"known are {', '.join(known)}{suggest(name, known)}"
                )
        now = self.hyperparameters
        given = {n: settings[n] for n in self._settings if n in settings}
        if any(_plain(value) != _plain(now[n]) for n, value in given.items()):
            arguments = {n: getattr(self, n) for n in self._settings} | given
            accepted = inspect.signature(type(self)).parameters
            arguments["optimizer"] = _own_state(settings, {}).get("optimizer", self.optimizer)
            frozen = not self.trainable
            type(self).__init__(self, **{n: v for n, v in arguments.items() if n in accepted})
            if frozen:
                self.freeze()
        groups = (check.group(self._name, held, "components") for held in (arrays, settings))
        self._assign_components(*groups)

    def _assign_components(self, arrays: dict[str, Any], settings: dict[str, Any]) -> None:
        parts = self._parts()
        for name in (*arrays, *settings):
            if name not in parts:
                raise ParameterError(
                    f"{self._name}: no component {name!r}, there are {', '.join(parts)}"
                    f"{suggest(name, parts)}"
                )
        for name, part in parts.items():
            summary = {"parameters": check.group(self._name, arrays, name)}
            if name in settings:
                given = check.group(self._name, settings, name)
                summary["hyperparameters"] = _own_state(given, summary["parameters"])
            with self._named(name):
                part.set_params(summary)

    # ---- running the components

    @contextmanager
    def _named(self, what: str = "") -> Generator[None]:
        """Say in errors which module, and which of its components, it was."""
        try:
            yield
        except GPULayersError as error:
            where = f"{self._name}, {what}" if what else self._name
            raise type(error)(f"{where}: {error}") from error

    def _run(self, forward: Callable[[], tuple[Any, dict[str, Any]]], X: Any, keep: bool) -> Any:
        """Return the output; keep the input and what backward needs only if all went well."""
        marks = [_mark(layer) for _, layer in self.walk()]
        try:
            with self._named():
                Y, kept = forward()
        except Exception:
            for mark in marks:
                _back_to(*mark)
            raise
        if keep:
            self.X.append(X)
            self._kept.append(kept)
            self._dv.update(kept)
        return Y

    def _gradients(self, dLdY: Any, output: str) -> list[Array]:
        """Return the gradients as a list that fits the outputs retained under a name."""
        grads = list(dLdY) if is_sequence(dLdY) else [dLdY]
        count = len(self._kept)
        if count == 0:
            raise ShapeError(
                f"{self._name}: no input is retained; call forward with retain_derived=True "
                "before backward"
            )
        if len(grads) != count:
            raise ShapeError(
                f"{self._name}: {count} input(s) are retained, so backward needs "
                f"{'one gradient' if count == 1 else f'a list of {count} gradients'}, "
                f"got {len(grads)}"
            )
        for grad, kept in zip(grads, self._kept, strict=True):
            with self._named("the gradient"):
                xp_of(grad, kept[output])
            if grad.shape != kept[output].shape:
                raise ShapeError(
                    f"{self._name}: the gradient must have the output's shape "
                    f"{kept[output].shape}, got {grad.shape}"
                )
        return grads

    def _several(self, grads: Any) -> list[Any]:
        """What a component's backward returned, as one entry per forward pass."""
        return grads if len(self._kept) > 1 else [grads]

    def _as_given(self, values: list[Any]) -> Any:
        """One entry per forward pass as `backward` returns it: bare if there was one."""
        return values if len(values) > 1 else values[0]


def _own_state(settings: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """A component's hyperparameters without the optimizer state of another component.

    numpy-ml's components share one optimizer, whose state is kept by the parameters' names: what
    is there under a name may be of any of them. Only what has the parameter's shape is taken.
    """
    settings = dict(settings)
    optimizer = settings.get("optimizer")
    if is_dict(optimizer) and optimizer.get("cache"):
        cache = {
            name: state
            for name, state in optimizer["cache"].items()
            if all(
                getattr(array, "shape", None) in (None, (), getattr(arrays.get(name), "shape", ()))
                for array in (state.values() if is_dict(state) else [state])
            )
        }
        settings["optimizer"] = {**optimizer, "cache": cache}
    return settings


def _plain(value: Any) -> Any:
    """A setting in a form that compares: activations as strings, lists as tuples."""
    if is_sequence(value):
        return tuple(_plain(v) for v in value)
    return value if isinstance(value, (int, float, str)) or value is None else str(value)


def _mark(layer: Any) -> tuple[LayerBase, int, int, dict[str, int]]:
    """How much a layer, wrapped or not, retains."""
    layer = getattr(layer, "_base_layer", layer)
    lengths = {n: len(v) for n, v in layer.derived_variables.items() if is_list(v)}
    return layer, len(layer.X), len(layer._retained), lengths


def _back_to(layer: LayerBase, inputs: int, passes: int, lengths: dict[str, int]) -> None:
    """Forget what a layer retains beyond a mark."""
    del layer.X[inputs:]
    del layer._retained[passes:]
    for name, length in lengths.items():
        del layer.derived_variables[name][length:]
