"""That parameters fit: their layer's sizes, each other, and the input that meets them.

They are made in the first pass, and may be assigned later: `layer.parameters["W"] = array`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._assigned import same
from gpulayers.layers._state import LayerState, native
from gpulayers.layers._where import named


class Seen:
    """What was found when the parameters were looked at, and which arrays those were.

    They are held weakly: a plan that puts others in their place does not keep them twice. A copy of
    a layer has looked at nothing.
    """

    __slots__ = ("dtype", "home", "refs")

    def __init__(self, refs: dict[str, Any], dtype: Any, home: str | None) -> None:
        self.refs = refs
        self.dtype = dtype  # of all of them, in the machine's byte order; None without any
        self.home = home  # None without any, "" if they do not lie on one backend

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    """What a copy has seen."""


# Held while a layer has its first pass: of threads that begin together one draws the parameters. A
# lock for all layers, because one that a layer had of its own could not be copied or pickled.
_first_passes = threading.RLock()


def _forget_after_fork() -> None:
    global _first_passes
    _first_passes = threading.RLock()  # a thread that held it is not there any more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


class Fitting(LayerState):
    """A layer's state, with the checks that its parameters fit."""

    # ---- the first pass

    @contextmanager
    def _first_pass(self) -> Generator[bool]:
        """Whether this is the layer's first pass: another thread's may have come before it.

        The layer counts as initialised when the pass is through; after an error it is as it was,
        and does not hold on to sizes of an input that did not fit.
        """
        with _first_passes:
            if self.is_initialized:
                yield False
                return
            parameters, gradients = dict(self.parameters), dict(self.gradients)
            names = ("_placed", "_shapes", *self._told, *(self._size or ())[:1])
            before = {name: self.__dict__[name] for name in names if name in self.__dict__}
            try:
                yield True
            except BaseException:
                self.parameters.update(parameters)
                for name in [n for n in self.gradients if n not in gradients]:
                    del self.gradients[name]
                self.__dict__.update(_shapes={}, _seen=None)
                self.__dict__.update(before)
                raise
            self.is_initialized = True

    def _create(
        self,
        name: str,
        shape: tuple[int | None, ...],
        init: Callable[..., Array] | None = None,
        learned: bool = True,
    ) -> None:
        """Draw parameter `name` (zeros without `init`), unless it was loaded, and its gradient."""
        value = self.parameters[name]
        if value is None:
            dtype = self.dtype or backend.default_dtype()
            xp = backend.module(self.home or self._first_home)
            with named(f"{self._name}: parameter {name!r} of shape {shape} {dtype}"):
                value = xp.zeros(shape, dtype=dtype) if init is None else init(shape, dtype, xp)
            self.parameters[name] = value
        elif value.shape != shape:
            raise ShapeError(
                f"{self._name}: parameter {name!r} must have shape {shape}, got {value.shape}"
            )
        if learned and (name not in self.gradients or self.gradients[name].shape != shape):
            self.gradients[name] = backend.xp_of(value).zeros_like(value)
        self._shapes = {**self._shapes, name: shape}
        self._seen = None

    # ---- every pass

    def _check_array(self, what: str, array: Any) -> str:
        """Return the backend of a floating array."""
        return check.floating(self._name, what, array)

    def _settle(self, home: str) -> Any:
        """Return the parameters' dtype (None without any). They move to the backend of the first
        input; later inputs must come to them."""
        seen = self._looked()
        if seen.home not in (None, home):
            if self._placed:
                raise BackendError(
                    f"{self._name}: the parameters are {seen.home} arrays, the input is a {home} "
                    f"array; move one: layer.to({home!r}) or gpulayers.backend.to_backend(...)"
                )
            self.to(home)
        self._placed = True
        return seen.dtype

    def _looked(self) -> Seen:
        """What is known of the parameters; those that somebody has assigned are looked at."""
        seen, held = self._seen, self.parameters
        if seen is not None:
            for name, ref in seen.refs.items():
                if ref() is not held.get(name):
                    break
            else:
                return seen
        self._seen = seen = self._look()
        return seen

    def _look(self) -> Seen:
        """Look whether the parameters are arrays that fit (ShapeError, DTypeError, BackendError).

        All of them may be of another dtype than before; their gradients then are, too.
        """
        found: dict[str, Array] = {}
        for name in self._params:
            array, shape = self.parameters.get(name), self._shapes.get(name)
            if array is None:
                if shape is None or not self.is_initialized:
                    continue  # before the first pass
                raise DTypeError(f"{self._name}: parameter {name!r}: {check.NOT_NONE}")
            self._check_array(f"parameter {name!r}", array)
            if shape is not None and array.shape != shape:
                raise ShapeError(
                    f"{self._name}: parameter {name!r} must have shape {shape}, got {array.shape}"
                )
            found[name] = array
        if not found:
            return Seen({}, None, None)
        return Seen(
            {name: weakref.ref(array) for name, array in found.items()},
            self._one_dtype(found),
            self._one_home(found),
        )

    def _one_dtype(self, found: dict[str, Array]) -> Any:
        dtypes = {name: native(array.dtype) for name, array in found.items()}
        own = next((native(grad.dtype) for grad in self.gradients.values()), None)
        if len(set(dtypes.values())) > 1:
            own = own or next(iter(dtypes.values()))
            name = next(name for name, dtype in dtypes.items() if dtype != own)
            shape = found[name].shape
            raise DTypeError(
                f"{self._name}: parameter {name!r} must be {shape} {own}, got {shape} "
                f"{dtypes[name]}; convert it, or give all parameters that dtype"
            )
        dtype = next(iter(dtypes.values()))
        if own not in (None, dtype):
            for name, grad in self.gradients.items():
                self.gradients[name] = grad.astype(dtype)
        return dtype

    def _one_home(self, found: dict[str, Array]) -> str:
        homes = {name: backend.backend_of(array) for name, array in found.items()}
        own = next(
            (backend.backend_of(g) for g in self.gradients.values()), homes[next(iter(homes))]
        )
        for name, home in homes.items():
            if home == own:
                continue
            if not self._placed:
                return ""  # as they were loaded: they go where the first input is
            raise BackendError(
                f"{self._name}: parameter {name!r} is a {home} array, the layer's are {own} arrays;"
                f" move it with gpulayers.backend.to_backend(...), or first the layer: "
                f"layer.to({home!r})"
            )
        return own

    def _refuse_resizing(self, name: str, before: Any) -> None:
        """Raise ParameterError if a hyperparameter was given a value (it was `before`) that the
        parameters, which are there already, do not fit."""
        if not self._is_complete():
            return
        value, gradients = getattr(self, name), dict(self.gradients)
        try:
            self._init_params()  # nothing is left to draw: it checks the shapes
            fits = same(getattr(self, name), value)
        except ShapeError:
            fits = False
        if not fits:
            self.gradients.update(gradients)
            raise ParameterError(
                f"{self._name}: {name} is {before}, and the parameters are made for it, so it "
                f"cannot become {value}; make another {self._name}, or give set_params the "
                "parameters too"
            )
