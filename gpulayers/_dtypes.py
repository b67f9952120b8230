"""The dtype policy: float32 unless said otherwise; part of `gpulayers.backend`'s public face."""

from __future__ import annotations

import os
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np

from gpulayers.errors import ParameterError, suggest

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_default_dtype: ContextVar[np.dtype | None] = ContextVar("gpulayers_dtype", default=None)


@lru_cache(maxsize=256)  # asked several times in each operation; a dtype's name is slow to get
def is_floating(dtype: Any) -> bool:
    """Whether `dtype` is one of float16, bfloat16, float32, float64."""
    return np.dtype(dtype).name in _FLOATS


def float_dtype(value: Any, source: str) -> np.dtype:
    """Return the floating dtype that `value` names; ParameterError, by `source`, for any other."""
    if isinstance(value, str) and value == "bfloat16":
        try:
            import ml_dtypes  # pyright: ignore[reportMissingImports] # CuPy's own choice too
        except ImportError:
            raise ParameterError(
                f"{source}: bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)
    try:
        dtype = None if value is None else np.dtype(value)  # NumPy takes None for float64
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or not is_floating(dtype):
        raise ParameterError(
            f"{source}: expected a floating dtype ({', '.join(_FLOATS)}), got {value!r}"
            + (suggest(value, _FLOATS) if isinstance(value, str) else "")
        )
    return dtype


def set_default_dtype(dtype: Any) -> None:
    """Set the dtype in which layers create their parameters.

    The choice is a context variable, like that of `use_backend`: other threads keep theirs, and a
    new one begins with the process's, ``GPULAYERS_DTYPE`` or else float32. Call it in each thread
    that makes networks, or start the thread with ``contextvars.copy_context().run``.

    Parameters
    ----------
    dtype : str or dtype
        ``float32`` (the default), ``float64`` (gradient checks), ``float16`` or ``bfloat16``.

    Raises
    ------
    ParameterError
        If it is not a floating dtype.
    """
    _default_dtype.set(float_dtype(dtype, "set_default_dtype"))


def default_dtype() -> np.dtype:
    """Return the dtype of new parameters: as set, else ``GPULAYERS_DTYPE``, else float32."""
    dtype = _default_dtype.get()
    if dtype is None:
        name = os.environ.get("GPULAYERS_DTYPE") or "float32"
        dtype = float_dtype(name.strip().lower(), "GPULAYERS_DTYPE")
    return dtype
