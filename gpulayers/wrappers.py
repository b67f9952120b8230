"""Wrappers: layers that do something around another layer, and look like it otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

from gpulayers._types import is_dict, is_list, is_sequence
from gpulayers.backend import Array
from gpulayers.errors import DTypeError, ParameterError, suggest
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Retained
from gpulayers.layers.base import LayerBase
from gpulayers.layers.dropout import draw_kept, drop

__all__ = ["Dropout", "WrapperBase", "init_wrappers"]


class WrapperBase(ABC):
    """Base class of the wrappers: everything but `forward` and `backward` is the wrapped layer's.

    Parameters
    ----------
    wrapped_layer : layer or wrapper
        Wrappers stack: the outermost acts first on the way in and last on the way back (numpy-ml
        leaves out all but one).

    Attributes
    ----------
    trainable, is_initialized, parameters, gradients, X, act_fn, optimizer, dtype, home
        Those of the innermost layer.

    Raises
    ------
    ParameterError
        If wrapped_layer is no layer.
    """

    def __init__(self, wrapped_layer: Any) -> None:
        if not isinstance(wrapped_layer, (LayerBase, WrapperBase)):
            raise ParameterError(
                f"{type(self).__name__}: expected a layer to wrap, got {wrapped_layer!r}"
            )
        self._wrapped = wrapped_layer
        inside = isinstance(wrapped_layer, WrapperBase)
        self._base_layer: LayerBase = wrapped_layer._base_layer if inside else wrapped_layer
        self._depth: int = wrapped_layer._depth + 1 if inside else 0

    # ---- what a wrapper adds

    @abstractmethod
    def forward(self, X: Array, retain_derived: bool = True) -> Any:
        """Compute the output."""

    @abstractmethod
    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Carry the gradient of the loss back."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """This wrapper's own hyperparameters."""

    @abstractmethod
    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return valid settings, in the form of `_settings`, or raise ParameterError."""

    @abstractmethod
    def _derived(self) -> dict[str, Any]:
        """What this wrapper adds to `derived_variables`."""

    # ---- the wrapped layer's

    @property
    def trainable(self) -> bool:
        return self._base_layer.trainable

    @property
    def is_initialized(self) -> bool:
        return self._base_layer.is_initialized

    @property
    def parameters(self) -> dict[str, Any]:
        return self._base_layer.parameters

    @property
    def gradients(self) -> dict[str, Array]:
        return self._base_layer.gradients

    @property
    def X(self) -> list[Array]:
        return self._base_layer.X

    @property
    def act_fn(self) -> Any:
        return self._base_layer.act_fn

    @property
    def optimizer(self) -> Any:
        return self._base_layer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        self._base_layer.optimizer = optimizer

    @property
    def dtype(self) -> Any:
        return self._base_layer.dtype

    @property
    def home(self) -> str | None:
        return self._base_layer.home

    def freeze(self) -> None:
        """Stop learning, as the layer does."""
        self._base_layer.freeze()

    def unfreeze(self) -> None:
        """Learn again (numpy-ml's wrapper freezes here, too)."""
        self._base_layer.unfreeze()

    def update(self, cur_loss: float | None = None) -> None:
        """Update the layer's parameters, see `LayerBase.update`."""
        self._base_layer.update(cur_loss)

    def flush_gradients(self) -> None:
        """Set the gradients to zero and forget what is retained."""
        self._base_layer.flush_gradients()

    def _drop_retained(self) -> None:
        self._base_layer._drop_retained()

    def to(self, name: str) -> Self:
        """Move everything to a backend, see `LayerBase.to`."""
        self._base_layer.to(name)
        return self

    # ---- describing, restoring

    def _chain(self) -> Iterator[WrapperBase]:
        """All wrappers around the layer, the innermost first."""
        if isinstance(self._wrapped, WrapperBase):
            yield from self._wrapped._chain()
        yield self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the layer, and ``"wrappers"``: what `init_wrappers` takes."""
        described = [{"wrapper": type(w).__name__, **w._settings()} for w in self._chain()]
        return {**self._base_layer.hyperparameters, "wrappers": described}

    @property
    def derived_variables(self) -> dict[str, Any]:
        """Those of the layer, and ``"wrappers"``: one dict per wrapper, the innermost first."""
        shown = [w._derived() for w in self._chain()]
        return {**self._base_layer.derived_variables, "wrappers": shown}

    def summary(self) -> dict[str, Any]:
        """Return the layer's summary and ``"layer_wrappers"``, the innermost name first."""
        return {
            "layer": self._base_layer.summary()["layer"],
            "layer_wrappers": [type(w).__name__ for w in self._chain()],
            "parameters": self.parameters,
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> Self:
        """Restore what `summary` returned, in the layer and in the wrappers.

        Parameters
        ----------
        summary_dict : dict
            As `LayerBase.set_params`, with or without ``"wrappers"``. It is not changed.

        Returns
        -------
        self : (numpy-ml returns the bare layer, without its wrappers)

        Raises
        ------
        ParameterError, ShapeError, DTypeError
            As `LayerBase.set_params`; also for other wrappers than these. Nothing is changed then.
        """
        name = type(self).__name__
        values = check.group(name, summary_dict)
        values.pop("layer_wrappers", None)
        given = values.pop("wrappers", None)
        if "hyperparameters" in values:
            values["hyperparameters"] = check.group(name, values, "hyperparameters")
            given = values["hyperparameters"].pop("wrappers", given)
        chain, found = list(self._chain()), []
        if given is not None:
            if not is_sequence(given):
                raise ParameterError(
                    f"{name}: 'wrappers' in the summary must be a list of dicts, got {given!r}"
                )
            mine = [type(w).__name__ for w in chain]
            theirs = [_described(entry)[0] for entry in given]
            if theirs != mine:
                raise ParameterError(
                    f"{name}: got the summary of a layer with the wrappers "
                    f"{theirs}, this one has {mine}"
                )
            pairs = zip(chain, given, strict=True)
            found = [w._checked(_described(entry)[1]) for w, entry in pairs]
        self._base_layer.set_params(values)
        for wrapper, settings in zip(chain, found, strict=False):
            for name, value in settings.items():
                setattr(wrapper, name, value)
        return self

    def __repr__(self) -> str:
        settings = "".join(f", {k}={v}" for k, v in self._settings().items())
        return f"{type(self).__name__}({self._wrapped!r}{settings})"


class Dropout(WrapperBase):
    """Set each input of the wrapped layer to zero with probability p while training.

        X' = X * kept / (1 - p)        Y = layer(X')        dX = dX' * kept / (1 - p)

    Parameters
    ----------
    wrapped_layer : layer or wrapper
        Any that takes one floating array, cells included: each step drops anew.
    p : float in [0, 1)

    Attributes
    ----------
    derived_variables : the layer's, and ``"wrappers": [{"dropout_mask": [...]}, ...]``
        For each retained input the array `kept`, of bool; None where it passed unchanged.

    Raises
    ------
    ParameterError
        If wrapped_layer is no layer, or p no number in [0, 1).

    Notes
    -----
    Evaluation (`retain_derived=False`, or frozen) leaves the input as it is: the kept inputs are
    scaled so that the expected input is the same. numpy-ml scales the layer's output instead, which
    is another function of bias and activation, and forgets the mask on the way back.
    `layers.Dropout` is the same as a layer of its own, for networks.
    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting"
    (2014), section 4 and, for the scaling, section 10.
    """

    def __init__(self, wrapped_layer: Any, p: float) -> None:
        super().__init__(wrapped_layer)
        self.p = p
        self.p = self._checked(self._settings())["p"]

    def _settings(self) -> dict[str, Any]:
        return {"p": self.p}

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name in settings if name != "p"]
        if unknown or "p" not in settings:
            raise ParameterError(f"Dropout: expected the one setting p, got {settings}")
        return {"p": check.number("Dropout", "p", settings["p"], 0, 1, "[")}

    def _derived(self) -> dict[str, Any]:
        passes = self._base_layer._retained
        return {"dropout_mask": [retained.saved.get(self._key) for retained in passes]}

    @property
    def _key(self) -> str:
        """The mask's name in what the layer retains: it lives and moves with that."""
        return f"dropout_mask {self._depth}"

    def forward(self, X: Array, retain_derived: bool = True) -> Any:
        """Drop inputs, then compute the layer's output.

        Parameters
        ----------
        X : array
            What the layer takes, floating. It is not changed.
        retain_derived : bool
            As in `LayerBase.forward`. False drops nothing.

        Returns
        -------
        Y : what the layer returns

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As the layer; DTypeError also for several inputs.
        """
        base = self._base_layer
        kept = None
        if retain_derived and self.trainable and self.p > 0:
            if is_sequence(X):
                raise DTypeError(
                    f"Dropout: expected one input array, got {len(X)}; wrap the layers before "
                    f"this {type(base).__name__}"
                )
            base._check_array("the input", X)
            kept = draw_kept(X, self.p)
            X = drop(X, kept, self.p)
        Y = self._wrapped.forward(X, retain_derived)
        if retain_derived:
            base._retained[-1].saved[self._key] = kept
        return Y

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Go back through the layer, then drop what was dropped.

        Parameters
        ----------
        dLdY : array or list of arrays
            As in `LayerBase.backward`. It is not changed (numpy-ml overwrites it).
        retain_grads, input_grad : bool
            As in `LayerBase.backward`.

        Returns
        -------
        dLdX : array, or list of arrays after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As the layer.
        """
        passes = self._passes()
        dLdX = self._wrapped.backward(dLdY, retain_grads, input_grad)
        if not input_grad:
            return dLdX
        several = is_list(dLdX)
        dLdXs = [
            grad if (kept := retained.saved.get(self._key)) is None else drop(grad, kept, self.p)
            for grad, retained in zip(dLdX if several else [dLdX], passes, strict=True)
        ]
        return dLdXs if several else dLdXs[0]

    def _passes(self) -> list[Retained]:
        """The forward passes that the next backward goes through."""
        base = self._base_layer
        if "current_step" not in base.derived_variables or hasattr(base, "cell"):
            return base._retained
        step = base.derived_variables["current_step"]  # a cell takes back its last step
        return base._retained[max(step - 1, 0) : step]


_WRAPPERS: dict[str, type[Any]] = {"Dropout": Dropout}


def init_wrappers(layer: Any, wrappers_list: Sequence[dict[str, Any]]) -> Any:
    """Put wrappers around a layer, as ``hyperparameters["wrappers"]`` describes them.

    Parameters
    ----------
    layer : layer or wrapper
    wrappers_list : list of dict
        ``{"wrapper": "Dropout", "p": 0.5}`` and the like, the innermost first.

    Returns
    -------
    the outermost wrapper, or `layer` itself for an empty list

    Raises
    ------
    ParameterError
        For an unknown wrapper, or settings that are missing, unknown or out of range.
    """
    for entry in wrappers_list:
        name, settings = _described(entry)
        if name not in _WRAPPERS:
            raise ParameterError(
                f"init_wrappers: unknown wrapper {name!r}, expected one of "
                f"{', '.join(_WRAPPERS)}{suggest(str(name), _WRAPPERS)}"
            )
        try:
            layer = _WRAPPERS[name](layer, **settings)
        except TypeError as error:
            raise ParameterError(f"init_wrappers: {name}: {error}") from error
    return layer


def _described(entry: Any) -> tuple[Any, dict[str, Any]]:
    """Name and settings of one entry of ``hyperparameters["wrappers"]``."""
    if not is_dict(entry) or "wrapper" not in entry:
        raise ParameterError(
            f"a wrapper is described by a dict with the entry 'wrapper', got {entry!r}"
        )
    return entry["wrapper"], {k: v for k, v in entry.items() if k != "wrapper"}
