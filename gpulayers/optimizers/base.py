"""What the optimizers share: parameters, schedule, clipping, state by parameter, checkpoints."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from gpulayers import _spec
from gpulayers._types import is_dict, is_mapping
from gpulayers.backend import Array, backend_of, home_of, is_floating, to_backend, xp_of
from gpulayers.errors import CheckpointError, ParameterError, ShapeError
from gpulayers.ops import update as checked_rules
from gpulayers.ops._kernels import kernels_for
from gpulayers.optimizers import _master
from gpulayers.optimizers._checks import check_arrays, is_writable
from gpulayers.optimizers._rate import asked, changed_schedule, recorded, schedule_for
from gpulayers.optimizers.clipping import clipped_norm, clipped_value
from gpulayers.schedulers import (
    Check,
    SchedulerBase,
    make_scheduler,
    rate_of,
)

# `gpulayers.ops.update`, which checks the arrays, or an implementation of `Kernels`, which has the
# same functions as methods and does not
Rules = Any


class OptimizerBase(ABC):
    """Base class of optimizers; one of your own defines ``update(param, grad, name, cur_loss)``.

    Parameters
    ----------
    lr : float
        The learning rate, where `scheduler` has none of its own.
    scheduler : None, SchedulerBase, str or dict
        See `gpulayers.initializers.SchedulerInitializer`.

    Attributes
    ----------
    cache : dict
        State by parameter name.
    cur_step : int
        0 before the first `step()`; a layer steps once per update of all its parameters.
    lr_scheduler : SchedulerBase
    """

    hyperparameters: Any

    def __init__(self, lr: float, scheduler: Any = None) -> None:
        self.cache: dict[str, Any] = {}
        self.cur_step = 0
        self.lr_scheduler: SchedulerBase = make_scheduler(scheduler, lr)

    def __call__(
        self, param: Array, param_grad: Array, param_name: str, cur_loss: Any = None
    ) -> Array:
        """Return the updated parameter as a new array; arguments and errors as `update_`."""
        return self.update(param, param_grad, param_name, cur_loss)

    def update_planned(
        self, kernels: Any, param: Array, grad: Array, param_name: str, cur_loss: Any
    ) -> None:
        """What a planned step calls instead of `update_`, see `BuiltIn.update_planned`."""
        self.update_(param, grad, param_name, cur_loss)

    def step(self) -> None:
        """Count one update step; the schedule sees the new number."""
        self.cur_step += 1

    def reset_step(self) -> None:
        """Set the step counter back to 0."""
        self.cur_step = 0

    def copy(self) -> Self:
        """Return an independent copy, with state and schedule."""
        return copy.deepcopy(self)

    @abstractmethod
    def update(
        self, param: Array, param_grad: Array, param_name: str, cur_loss: Any = None
    ) -> Array:
        """Return the updated parameter as a new array."""

    def update_(
        self, param: Array, param_grad: Array, param_name: str, cur_loss: Any = None
    ) -> None:
        """Update `param` in place."""
        param[...] = self.update(param, param_grad, param_name, cur_loss)


class BuiltIn(OptimizerBase):
    """What the built-in rules share: hyperparameters, clipping, state, checkpoints."""

    _fields: ClassVar[Mapping[str, Check]]
    _decoupled: ClassVar[bool] = False  # the rule itself takes care of the weight decay
    _state_names: ClassVar[tuple[str, ...]] = ()  # () = the cache entry is one bare array
    # ours, beyond numpy-ml's: told only where they are set, so that its descriptions stay the same
    _extras: ClassVar[Mapping[str, Any]] = {"clip_value": None, "weight_decay": 0.0}

    # what gradients are multiplied by first, in the master weights' dtype: one over a loss scale
    grad_scale: float = 1.0

    lr_asked: bool  # whether somebody gave the learning rate
    clip_norm: float | None
    clip_value: float | None
    weight_decay: float

    def __init__(self, lr_scheduler: Any, unknown: Mapping[str, Any], **values: Any) -> None:
        name = type(self).__name__
        _spec.refuse_unknown(name, unknown, [*self._fields, "lr_scheduler"])
        for key, value in values.items():
            setattr(self, key, self._fields[key](name, key, value))
        self.lr_asked, self._lr = asked(self._lr)
        self._check_together()
        super().__init__(self._lr, schedule_for(name, lr_scheduler, self._lr, self.lr_asked))

    def _check_together(self) -> None:
        """Raise ParameterError for values that do not go together."""

    # ---------------------------------------------------------------------------- hyperparameters

    @property
    def lr(self) -> float:
        """The learning rate, where the schedule has one the schedule's (see `SGD`); assigning one
        does what ``set_params({"lr": ...})`` does."""
        rate = rate_of(self.__dict__.get("lr_scheduler"))
        return self._lr if rate is None else rate

    @lr.setter
    def lr(self, value: float) -> None:
        if "lr_scheduler" in self.__dict__:
            self.set_params({"lr": value})
        else:  # under construction
            self._lr = value

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments and the class's name as "id": a new dict on each use.

        `clip_value`, `weight_decay` and `nesterov`, which numpy-ml does not have, are left out
        where they are off.
        """
        values = {name: getattr(self, name) for name in self._fields}
        for name, default in self._extras.items():
            if values[name] == default:
                del values[name]
        return {"id": type(self).__name__, **values, "lr_scheduler": str(self.lr_scheduler)}

    def __str__(self) -> str:
        values = {k: v for k, v in self.hyperparameters.items() if k != "id"}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in values.items())})"

    def __repr__(self) -> str:
        return f"<{self}>"

    def set_params(
        self,
        hparam_dict: Mapping[str, Any] | None = None,
        cache_dict: Mapping[str, Any] | None = None,
    ) -> Self:
        """Change hyperparameters and state; the new values are used from the next update on.

        Parameters
        ----------
        hparam_dict : dict, optional
            As `hyperparameters` returns it, or part of it. A new "lr" changes a constant schedule
            (numpy-ml shows it, and goes on with the old one), beside a new "lr_scheduler" it is
            as for a new optimizer.
        cache_dict : dict, optional
            State by parameter name, as `cache` holds it; arrays are copied.

        Raises
        ------
        ParameterError
            For an unknown name, a value out of range, the "id" of another class, or a new "lr"
            that would have no effect beside the schedule. Nothing is changed.
        """
        values = dict(hparam_dict or {})
        name = type(self).__name__
        if _spec.fold(str(values.pop("id", name))) != _spec.fold(name):
            raise ParameterError(f"{name}: got hyperparameters of {(hparam_dict or {})['id']!r}")
        known = [*self._fields, "lr_scheduler"]
        _spec.refuse_unknown(f"{name}.set_params", values, known)
        given = {key: value for key, value in values.items() if key in self._fields}
        checked = {key: self._fields[key](name, key, value) for key, value in given.items()}
        scheduler = changed_schedule(self, {**values, **checked})
        cache = self._checked_cache(cache_dict or {}, ParameterError)
        trial = copy.copy(self)
        for candidate in (trial, self):  # nothing is changed if the values do not go together
            for key, value in checked.items():
                setattr(candidate, "_lr" if key == "lr" else key, value)
            candidate._check_together()
        if "lr" in checked:
            self.lr_asked, self._lr = asked(checked["lr"])
        self.lr_scheduler = scheduler
        self.cache.update(cache)
        return self

    # ------------------------------------------------------------------------------------- update

    def update(
        self, param: Array, param_grad: Array, param_name: str, cur_loss: Any = None
    ) -> Array:
        """Return the updated parameter as a new array; arguments and errors as `update_`."""
        home_of(type(self).__name__, "param", param)
        fresh = param.copy(order="C")
        self.update_(fresh, param_grad, param_name, cur_loss)
        return fresh

    def update_(
        self, param: Array, param_grad: Array, param_name: str, cur_loss: Any = None
    ) -> None:
        """Update `param` in place; a half type by a float32 copy, see `optimizers`.

        Parameters
        ----------
        param : floating, C-contiguous, any shape
        param_grad : floating, of the parameter's shape
            The gradient of the loss; left as it is. Another floating dtype is converted.
        param_name : str
            Under which the state is kept.
        cur_loss : float, optional
            For schedules that look at the loss.

        Raises
        ------
        ShapeError
            If the shapes differ, also from that of the state kept under the name, or the parameter
            is not C-contiguous.
        ParameterError
            If it is read-only. Nothing is changed by a call that is refused.
        DTypeError, BackendError
        """
        if self._short_way(None, param, param_grad, param_name, cur_loss):
            return
        check_arrays(type(self).__name__, param, param_grad, param_name)
        xp = xp_of(param)
        state, master = _master.parts(self.cache.get(param_name))
        half = param if _master.is_half(param.dtype) else None
        if half is not None:
            if master is not None:
                master = self._fitting(master, half, param_name, np.float32)
            param = _master.adopted(half, master)
        grad = param_grad.astype(param.dtype, copy=False)
        if self.grad_scale != 1.0:
            grad = grad * self.grad_scale
        if self.clip_value is not None:
            grad = clipped_value(grad, float(self.clip_value))
        if self.clip_norm is not None:
            grad = clipped_norm(grad, float(self.clip_norm))
        if self.weight_decay and not self._decoupled:
            grad = grad + self.weight_decay * param
        # the reshape undoes that ascontiguousarray makes 0-d arrays 1-d
        grad = xp.ascontiguousarray(grad).reshape(param.shape)
        entry = self._entry(state, param, param_name)
        lr = self.lr_scheduler(self.cur_step, cur_loss)
        self._rule(checked_rules, param, grad, entry, lr)
        if half is not None:
            half[...] = param.astype(half.dtype)
            entry = _master.joined(entry, param)
        self.cache[param_name] = entry

    def update_planned(
        self, kernels: Rules, param: Array, grad: Array, param_name: str, cur_loss: Any
    ) -> None:
        """`update_` for a planned step, which gives the layer's own parameter and its gradient;
        `kernels` is the implementation for them."""
        own = type(self).update_ is not BuiltIn.update_
        if own or not self._short_way(kernels, param, grad, param_name, cur_loss):
            self.update_(param, grad, param_name, cur_loss)

    def _short_way(
        self, kernels: Rules | None, param: Array, grad: Array, param_name: str, cur_loss: Any
    ) -> bool:
        """Apply the rule and return True, where that is all there is to do: the arrays, the state
        kept among them, are plain ones that fit, and the gradient is taken as it is."""
        plain = self.clip_value is None and self.clip_norm is None and self.grad_scale == 1.0
        if not plain or (self.weight_decay and not self._decoupled):
            return False
        entry, names = self.cache.get(param_name), self._state_names
        states: list[Any] = [entry]
        if names and is_dict(entry) and _master.MASTER not in entry:
            states = [entry.get(key) for key in names]
        home_of(type(self).__name__, "param", param)  # an error for what is no array
        dtype, shape = param.dtype, param.shape
        if not is_writable(param):
            return False
        for array in (param, grad, *states):
            if type(array) is not type(param) or array.dtype != dtype or array.shape != shape:
                return False
            if not array.flags.c_contiguous:
                return False
        if not is_floating(dtype) or _master.is_half(dtype) or not dtype.isnative:
            return False
        lr = float(self.lr_scheduler(self.cur_step, cur_loss))
        self._rule(kernels or kernels_for(param), param, grad, entry, lr)
        return True

    @abstractmethod
    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None: ...

    def _entry(self, entry: Any, param: Array, param_name: str) -> Any:
        """The state kept for a parameter, made to fit; zeros at first."""
        if not self._state_names:
            return self._fitting(entry, param, param_name, param.dtype)
        entry = {"t": 0} if entry is None else entry
        for key in self._state_names:
            entry[key] = self._fitting(entry.get(key), param, param_name, param.dtype)
        return entry

    def _fitting(self, state: Array | None, param: Array, param_name: str, dtype: Any) -> Array:
        if state is None:
            return xp_of(param).zeros(param.shape, dtype=dtype)
        if state.shape != param.shape:
            raise ShapeError(
                f"{type(self).__name__}: the state kept for {param_name!r} has shape "
                f"{state.shape}, the parameter {param.shape}. One optimizer object serves one "
                "layer: give each a copy()"
            )
        # after a checkpoint, or a layer's move to another device or dtype
        return to_backend(state, backend_of(param)).astype(dtype, copy=False)

    # -------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly: plain values, and copies of the arrays."""
        return {
            "id": type(self).__name__,
            "hyperparameters": self.hyperparameters,
            "cur_step": self.cur_step,
            "scheduler": self.lr_scheduler.state_dict(),
            "cache": {name: _copied(entry) for name, entry in self.cache.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; arrays are copied.

        They may live on another backend: each moves to its parameter's at the next update.

        Raises
        ------
        CheckpointError
            If an entry is missing, wrong, or the state is another optimizer's.
        """
        name = type(self).__name__
        try:
            if state["id"] != name:
                raise CheckpointError(f"{name}: got the state of {state['id']!r}")
            step, cache = int(state["cur_step"]), dict(state["cache"])
            fresh = self.copy()
            values = recorded(type(self), state["hyperparameters"])
            fresh.set_params({**self._extras, **values})
            fresh.lr_scheduler.load_state_dict(state["scheduler"])
            fresh.cache = self._checked_cache(cache, CheckpointError)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{name}: bad state: {error!r}") from error
        fresh.cur_step = step
        for key, value in vars(fresh).items():
            setattr(self, key, value)

    def _checked_cache(self, cache: Mapping[str, Any], error: type[Exception]) -> dict[str, Any]:
        """Return a copy of a cache; raise `error` if an entry does not look like this rule's."""
        copied: dict[str, Any] = {}
        for name, entry in cache.items():
            try:
                state, master = _master.parts(entry)
                arrays = [state[key] for key in self._state_names] or [state]
                xp_of(*arrays, *([] if master is None else [master]))  # raises unless arrays
                copied[name] = _copied(entry)
                if self._state_names:
                    copied[name]["t"] = int(entry["t"])
            except (KeyError, TypeError, IndexError, ValueError) as reason:
                raise error(
                    f"{type(self).__name__}: the state of {name!r} does not fit: {reason!r}"
                ) from reason
        return copied


def _copied(entry: Any) -> Any:
    """A cache entry (an array, or a dict of arrays and numbers) with its arrays copied."""
    if is_mapping(entry):
        return {key: _copied(value) for key, value in entry.items()}
    return entry.copy() if hasattr(entry, "copy") else entry
