"""Settings of a module are its components', so they cannot be assigned to it later."""

from __future__ import annotations

from functools import wraps
from typing import Any

from gpulayers.errors import ParameterError


def fix_settings(cls: type) -> None:
    """Have a class of modules refuse what is assigned to its `_settings` once the constructor is
    through; those that are properties look after themselves."""
    for name in getattr(cls, "_settings", ()):
        if not hasattr(cls, name):
            setattr(cls, name, Fixed(name))
    constructor: Any = cls.__dict__.get("__init__")
    if constructor is None:
        return

    @wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self._is_built = False  # `set_params` may build a module anew
        constructor(self, *args, **kwargs)
        if type(self).__init__ is init:  # not that of a class in between
            self._is_built = True

    cls.__init__ = init


class Fixed:
    """An attribute in the module's own dict (there is no `__get__`, so reading costs nothing), that
    the constructor alone sets."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, module: Any, value: Any) -> None:
        values = module.__dict__
        if values.get("_is_built"):
            raise ParameterError(
                f"{module._name}: {self.name} is a setting of the components and cannot be "
                f"assigned to the module; it is {values.get(self.name)}, got {value!r}. Build "
                f"another {module._name}, or assign to a component: "
                f"{', '.join(module.component_ids)}"
            )
        values[self.name] = value

    def __delete__(self, module: Any) -> None:
        del module.__dict__[self.name]
