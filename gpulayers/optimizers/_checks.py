"""What an optimizer looks at before it changes anything."""

from __future__ import annotations

from gpulayers.backend import Array, home_of, is_floating
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.ops._checks import one_library


def check_arrays(name: str, param: Array, grad: Array, param_name: str) -> None:
    """Raise unless they are floating arrays of one shape and library, and the parameter can be
    changed in place; `name` is the optimizer's."""
    for what, array in (("param", param), ("param_grad", grad)):
        home_of(name, what, array)
        if not is_floating(array.dtype):
            raise DTypeError(f"{name}: {what} must be a floating array, got {array.dtype}")
    one_library(name, param, grad)
    if param.shape != grad.shape:
        raise ShapeError(
            f"{name}: the gradient of {param_name!r} must have the parameter's shape "
            f"{param.shape}, got {grad.shape}"
        )
    if not is_writable(param):
        raise ParameterError(
            f"{name}: {param_name!r} is read-only and cannot be changed in place; copy it"
        )
    if not param.flags.c_contiguous:
        raise ShapeError(f"{name}: {param_name!r} must be C-contiguous, it is changed in place")


def is_writable(array: Array) -> bool:
    """Whether it may be written to; CuPy's arrays, which have no such flag, always."""
    return getattr(array.flags, "writeable", True)
