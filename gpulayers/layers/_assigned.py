"""Hyperparameters that are assigned to a layer later are checked like the constructor's."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from gpulayers.errors import GPULayersError
from gpulayers.initializers import ActivationInitializer, OptimizerInitializer

_READ = {
    "act_fn": ActivationInitializer,
    "gate_fn": ActivationInitializer,
    "optimizer": OptimizerInitializer,
}


def check_assignments(cls: Any) -> None:
    """Have a class of layers check what is assigned to its arguments (those in `_hyper`, and the
    optimizer), and to the sizes that an input tells, once the constructor is through."""
    arguments = inspect.signature(cls.__init__).parameters
    sizes = (*("n_in", "n_out", "in_ch", "out_ch"), *(cls._size or ())[:1])
    told = (name for name in dict.fromkeys(sizes) if name in cls._hyper and name not in arguments)
    cls._told = tuple(told)
    for name in (*cls._hyper, "optimizer"):
        if (name in arguments or name in cls._told) and not hasattr(cls, name):
            setattr(cls, name, Assigned(name))
    constructor: Any = cls.__dict__.get("__init__")
    if constructor is None:
        return

    @wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        constructor(self, *args, **kwargs)
        if type(self).__init__ is init:  # not that of a class in between
            self._is_built = True

    cls.__init__ = init


def same(a: Any, b: Any) -> bool:
    """Whether two values of a hyperparameter are equal; arrays are so if they are one."""
    try:
        return a is b or bool(a == b)
    except ValueError:
        return False


class Assigned:
    """An attribute in the layer's own dict (there is no `__get__`, so reading costs nothing), that
    is checked when it is assigned to a layer that is built.

    What is assigned to `act_fn`, `gate_fn` or `optimizer` may be a description. After an error the
    layer is as it was.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, layer: Any, value: Any) -> None:
        values = layer.__dict__
        if not values.get("_is_built"):  # the check itself assigns, too
            values[self.name] = value
            return
        before = dict(values)
        values["_is_built"] = False
        try:
            read = _READ.get(self.name)
            values[self.name] = value if read is None else read(value)()
            if self.name in layer._told:
                layer._check_told()
            layer._check_hyperparameters()
            if read is None and not same(values[self.name], before.get(self.name)):
                layer._refuse_resizing(self.name, before.get(self.name))
        except Exception as error:
            values.clear()
            values.update(before)
            if isinstance(error, GPULayersError) and layer._name not in str(error):
                raise type(error)(f"{layer._name}: {self.name}: {error}") from error
            raise
        values["_is_built"] = True
        layer._has_been_assigned()

    def __delete__(self, layer: Any) -> None:
        del layer.__dict__[self.name]
