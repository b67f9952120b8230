"""cupy.ufunc: element-wise functions with CuPy's keywords, limits and messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.fake_cupy.api import members
from tests.support.fake_cupy.arrays import created, host, ndarray
from tests.support.fake_cupy.state import state

# What CuPy 14 implements, by ufunc; `at` also depends on the dtype.
REDUCE = {"reduce": {"add", "multiply"}, "accumulate": {"add", "multiply"}, "reduceat": {"add"}}
AT = {
    "add": "ilILefdqQ",
    "subtract": "iI",
    "maximum": "ilILfdqQ",
    "minimum": "ilILfdqQ",
    "bitwise_and": "ilILqQ",
    "bitwise_or": "ilILqQ",
    "bitwise_xor": "ilILqQ",
}


class ufunc:  # noqa: N801 - CuPy's name
    """One element-wise function."""

    def __init__(self, name: str, nin: int, nout: int) -> None:
        self.name, self.__name__ = f"cupy_{name}", name
        self.nin, self.nout, self.nargs = nin, nout, nin + nout
        self._numpy = getattr(np, name)
        self.types = list(getattr(self._numpy, "types", ()))

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(
        self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind", **kw: Any
    ) -> Any:
        if kw:
            raise TypeError(f"Wrong arguments {kw}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or "
                f"{self.nargs} (with outputs), but given {len(args)}."
            )
        for argument in args:
            if isinstance(argument, (list, tuple, str, type(None))):
                raise TypeError(f"Unsupported type {type(argument)} (cupy.{self.__name__})")
        if len(args) > self.nin:
            if out is not None:
                raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
            out = args[self.nin] if self.nout == 1 else args[self.nin :]
        inputs = tuple(host(x, self.__name__) for x in args[: self.nin])
        options: dict[str, Any] = {}
        if isinstance(self._numpy, np.ufunc):
            options["casting"] = casting
            if dtype is not None:
                options["dtype"] = dtype
        if out is not None:
            return self._into(out, inputs, options)
        return created(self.__name__, lambda: self._numpy(*inputs, **options), [])

    def _into(self, out: Any, inputs: tuple, options: dict[str, Any]) -> Any:
        outs = out if isinstance(out, tuple) else (out,)
        if not all(isinstance(o, ndarray) for o in outs):
            raise TypeError("return arrays must be of ArrayType")
        target = outs[0]._a if len(outs) == 1 else tuple(o._a for o in outs)

        def work() -> None:
            self._numpy(*inputs, out=target, **options)

        for extra in outs[1:]:
            if state.recording is not None:
                state.recording.will_write(extra._a)
        state.write(outs[0]._a, work, self.__name__)
        return out if len(outs) > 1 else outs[0]

    # -- methods -----------------------------------------------------------------------------
    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        """Unbuffered in-place operation; atomics on a device."""
        if self.__name__ not in AT:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        target, where = host(a, "at"), host(indices, "at")
        if target.dtype.char not in AT[self.__name__]:
            raise TypeError(f"`{self.name}.at` does not support {target.dtype}")
        values = host(b, "at")
        state.write(target, lambda: self._numpy.at(target, where, values), f"{self.__name__}.at")

    def outer(self, a: ndarray, b: ndarray, **kwargs: Any) -> Any:
        x, y = host(a, "outer"), host(b, "outer")
        return created(f"{self.__name__}.outer", lambda: self._numpy.outer(x, y, **kwargs), [])

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        return self._reduction("reduce", args, kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        return self._reduction("accumulate", args, kwargs)

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        return self._reduction("reduceat", args, kwargs)

    def _reduction(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if method not in members("cupy.ufunc") or self.__name__ not in REDUCE[method]:
            raise NotImplementedError(f"`{self.name}.{method}` is not supported yet")
        out = kwargs.pop("out", None)
        values = [host(x, method) for x in args]
        run = getattr(self._numpy, method)
        if out is None:
            return created(method, lambda: run(*values, **kwargs), [])
        target = host(out, method)
        state.write(target, lambda: run(*values, out=target, **kwargs), method)
        return out
