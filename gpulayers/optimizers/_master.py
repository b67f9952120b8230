"""Master weights: float32 copies of half-precision parameters, which the rules are applied to.

A float16 number has 11 significant bits and a bfloat16 number 8, so that a step below a 2048th, or
a 256th, of a parameter is lost in it. The rule therefore changes a float32 copy, whose state is
float32 too, and the parameter is that copy rounded. (Micikevicius et al., "Mixed precision
training", ICLR 2018, section 3.1.)

The copy lies in the parameter's cache entry as "master": with the names of the rule's state where
it has names, else beside "state". Entries of float32 and float64 parameters are as in numpy-ml.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers._types import is_dict
from gpulayers.backend import Array, xp_of

__all__ = ["MASTER", "STATE", "adopted", "is_half", "joined", "parts"]

MASTER, STATE = "master", "state"


def is_half(dtype: Any) -> bool:
    """Whether a floating dtype is float16 or bfloat16."""
    return dtype.itemsize < 4


def parts(entry: Any) -> tuple[Any, Array | None]:
    """A cache entry as the rule's state and the master weights; None where there are none."""
    if not is_dict(entry) or MASTER not in entry:
        return entry, None
    state = {key: value for key, value in entry.items() if key != MASTER}
    return state.get(STATE, state), entry[MASTER]


def joined(state: Any, master: Array) -> dict[str, Any]:
    """The inverse of `parts`."""
    return {**state, MASTER: master} if is_dict(state) else {STATE: state, MASTER: master}


def adopted(param: Array, master: Array | None) -> Array:
    """The master weights of `param`, as a new contiguous float32 array.

    Where the parameter is not the master rounded, somebody has changed it (loaded weights), and it
    counts itself. A GPU is not waited for.
    """
    xp = xp_of(param)
    wide = param.astype(np.float32)
    if master is not None:
        rounded = master.astype(param.dtype).astype(np.float32)
        wide = xp.where(rounded == wide, master, wide)
    return xp.ascontiguousarray(wide).reshape(param.shape)
