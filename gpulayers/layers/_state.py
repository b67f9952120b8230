"""What a layer is made of, and how it is described, restored and moved to another backend."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

from gpulayers import backend
from gpulayers._types import is_dict, is_sequence
from gpulayers.backend import Array
from gpulayers.errors import DTypeError, ParameterError, suggest
from gpulayers.initializers import ActivationInitializer, OptimizerInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._assigned import check_assignments
from gpulayers.layers._steps import Steps

Saved = dict[str, Any]


class Retained(NamedTuple):
    """What one forward pass leaves for its backward pass."""

    saved: Saved
    out_shape: tuple[int, ...]
    out_dtype: Any
    home: str


class LayerState:
    """The state of a layer. `LayerBase` adds what it does with it."""

    _ndim: ClassVar[int | None] = None  # axes of an input, and what they are
    _axes: ClassVar[str] = "(n_ex, ...)"
    _size: ClassVar[tuple[str, int] | None] = None  # attribute told by an input axis: ("n_in", 1)
    _params: ClassVar[tuple[str, ...]] = ()
    _hyper: ClassVar[tuple[str, ...]] = ()  # attributes listed in `hyperparameters`
    _told: ClassVar[tuple[str, ...]] = ()  # those of them that are sizes and no arguments
    _kind: ClassVar[str | None] = None  # hyperparameters["layer"] where it is not the class name
    _keeps_input: ClassVar[bool] = True
    _shapes: Mapping[str, tuple[int | None, ...]] = MappingProxyType({})  # of the parameters made
    _seen: Any = None  # the parameters that were found to fit

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_assignments(cls)

    def _has_been_assigned(self) -> None:
        """A hyperparameter was assigned to the finished layer, and is checked."""

    def __init__(self, optimizer: Any = None) -> None:
        self.X: list[Array] = []
        self.act_fn: Any = None
        self.trainable = True
        self.is_initialized = False
        self.optimizer: Any = OptimizerInitializer(optimizer)().copy()
        self.parameters: dict[str, Any] = dict.fromkeys(self._params)
        self.gradients: dict[str, Array] = {}
        self.derived_variables: dict[str, Any] = self._new_derived()
        self._retained: list[Retained] = []
        self._first_home = ""  # the backend of the first input
        self._placed = False  # until then, loaded parameters follow the input to its backend

    # ---- what a family file may add

    def _init_params(self) -> None:
        """Create the parameters with `_create`; the sizes are known by now."""

    def _new_derived(self) -> dict[str, Any]:
        """Return `derived_variables` as they are before any input."""
        return {}

    def _check_hyperparameters(self) -> None:
        """Check and normalise the attributes named in `_hyper` (ParameterError)."""

    def _check_told(self) -> None:
        """Check the sizes that are no arguments (ParameterError): an input told them, or will."""
        for name in self._told:
            value = getattr(self, name)
            if value is not None:
                least = 1 if self._size is not None and self._size[0] == name else 0
                setattr(self, name, check.integer(self._name, name, value, least))

    def _is_complete(self) -> bool:
        """Whether all parameters are there, and the size that the first input tells."""
        return (
            bool(self.parameters)
            and all(p is not None for p in self.parameters.values())
            and (self._size is None or getattr(self, self._size[0]) is not None)
        )

    # ---- describing, restoring

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the layer was built with, and the sizes its first input told: a new dict."""
        values = {name: getattr(self, name) for name in self._hyper}
        if values.get("act_fn") is not None:
            values["act_fn"] = str(self.act_fn)
        return {
            "layer": self._kind or self._name,
            **values,
            "optimizer": {
                "cache": self.optimizer.cache,
                "hyperparameters": self.optimizer.hyperparameters,
            },
        }

    def summary(self) -> dict[str, Any]:
        """Return ``{"layer", "parameters", "hyperparameters"}``, from which `set_params` restores.

        The arrays are the live ones, as in numpy-ml: ``copy.deepcopy`` it to keep a snapshot.
        """
        return {
            "layer": self._kind or self._name,
            "parameters": self.parameters,
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> Self:
        """Restore what `summary` returned; numpy-ml's summaries and flat dicts are taken too.

        Arrays are copied. Into an initialised layer they are written in place, in its dtype; a new
        layer takes them as they are, moves to the backend of its first input, and does not draw
        again (numpy-ml does). `summary_dict` is not changed (numpy-ml empties it).

        Parameters
        ----------
        summary_dict : dict
            ``"parameters"`` and ``"hyperparameters"`` as dicts, or their entries at the top level.
            Entries that are missing stay as they are.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            For an unknown entry or the summary of another kind of layer.
        ShapeError, DTypeError
            If an array does not fit. After an error the layer is as it was.
        """
        values = self._flattened(summary_dict)
        before = dict(self.__dict__)
        parameters, gradients = dict(self.parameters), dict(self.gradients)
        try:
            self._assign(values)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            for live, old in ((self.parameters, parameters), (self.gradients, gradients)):
                live.clear()
                live.update(old)
            raise
        return self

    def _flattened(self, summary_dict: dict[str, Any]) -> dict[str, Any]:
        """One dict of parameters and hyperparameters, all of them known."""
        values = check.group(self._name, summary_dict)
        for name in ("parameters", "hyperparameters"):
            group = check.group(self._name, values, name)
            values.pop(name, None)
            values.update(group)
        mine = self._kind or self._name
        kind = values.pop("layer", mine)
        if kind != mine:
            raise ParameterError(f"{self._name}: got the summary of a layer {kind!r}")
        known = (*self.parameters, *self._hyper, "optimizer")
        for name in values:
            if name not in known:
                raise ParameterError(
                    f"{self._name}: unknown entry {name!r} in the summary; "
                    f"known are {', '.join(known)}{suggest(name, known)}"
                )
        return values

    def _assign(self, values: dict[str, Any]) -> None:
        arrays = {name: values.pop(name) for name in self.parameters if name in values}
        built = self.__dict__.get("_is_built", False)
        self._is_built = False  # they are checked together, when all are there
        for name, value in values.items():
            if name == "act_fn":
                if value != (None if self.act_fn is None else str(self.act_fn)):
                    self.act_fn = ActivationInitializer(value)()
            elif name == "optimizer":
                self.optimizer = OptimizerInitializer(value)().copy()
            else:
                setattr(self, name, value)
        self._check_told()
        self._check_hyperparameters()
        self._is_built = built

        in_place: list[tuple[Array, Array]] = []
        for name, value in arrays.items():
            current = self.parameters[name]
            if value is None and current is not None:
                raise ParameterError(
                    f"{self._name}: the summary is of a layer that has seen no input "
                    f"(parameter {name!r} is None), but this one is initialised"
                )
            if value is None:
                continue
            array = self._new_parameter(name, value)
            if current is not None and current.shape == array.shape:
                in_place.append((current, array))
            else:
                self.parameters[name] = array
                self.gradients.pop(name, None)
        self._seen = None
        if self._is_complete():
            self._init_params()  # nothing is left to draw: it checks the shapes
            self.is_initialized = True
        for current, array in in_place:
            current[...] = array

    def _new_parameter(self, name: str, value: Any) -> Array:
        """A fresh copy of `value`: of the layer's dtype and backend, if it has them already."""
        try:
            array = value if hasattr(value, "dtype") else backend.asarray(value)
            home = backend.backend_of(array)
        except (DTypeError, ValueError, TypeError) as error:
            raise DTypeError(f"{self._name}: parameter {name!r} is no array: {error}") from None
        dtype = self.dtype
        if not backend.is_floating(array.dtype):
            if array.dtype.kind not in "iu":
                raise DTypeError(
                    f"{self._name}: parameter {name!r} must be floating, got {array.dtype}"
                )
            dtype = dtype or backend.default_dtype()
        if self.is_initialized and self.home is not None and home != self.home:
            array = backend.to_backend(array, self.home)
        return backend.xp_of(array).array(array, dtype=dtype or array.dtype, order="C", copy=True)

    def to(self, name: str) -> Self:
        """Move parameters, gradients, optimizer state and retained values to a backend.

        Parameters
        ----------
        name : str
            A backend's name, see `gpulayers.backend`.

        Returns
        -------
        self : with new arrays, where something had to move

        Raises
        ------
        BackendError
            If the backend is unknown or cannot start.
        """
        with backend.use_backend(name):
            home = backend.current_backend()
        for held in (self.parameters, self.gradients, self.derived_variables, self.optimizer.cache):
            held.update(_moved(held, home))
        self.X = _moved(self.X, home)
        self._retained = [
            r._replace(saved=_moved(r.saved, home), home=home) for r in self._retained
        ]
        self._placed = True
        return self

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters, in the machine's byte order; None without or before them."""
        for parameter in self.parameters.values():
            if parameter is not None:
                return native(parameter.dtype)
        return None

    @property
    def home(self) -> str | None:
        """The backend of the parameters; None without or before them."""
        for parameter in self.parameters.values():
            if parameter is not None:
                return backend.backend_of(parameter)
        return None

    def __repr__(self) -> str:
        values = {k: v for k, v in self.hyperparameters.items() if k in self._hyper}
        shown = [f"{k}={v}" for k, v in values.items() if v is not None]
        return f"{self._name}({', '.join(shown)}{'' if self.trainable else ', frozen'})"

    @property
    def _name(self) -> str:
        return type(self).__name__


def native(dtype: Any) -> Any:
    """`dtype` in the machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _moved(value: Any, name: str) -> Any:
    """`value` with every array in it on the backend `name`."""
    if is_dict(value):
        return {key: _moved(v, name) for key, v in value.items()}
    if is_sequence(value):
        moved = [_moved(v, name) for v in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, Steps):
        return [_moved(v, name) for v in value]
    try:
        return backend.to_backend(value, name)
    except DTypeError:  # a number, a window, None
        return value
