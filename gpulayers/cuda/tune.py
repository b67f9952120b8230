"""Which kernel works out a product, and how its sums are cut up: one place for all such choices.

A launcher lists the `Candidate` s that it knows for its shape, the rule's own first, and asks
`choose`. That takes, in this order, what a plan has chosen before (`pinned`), what was measured on
this GPU for the shape (`tune_table`), with ``GPULAYERS_TUNE=1`` in a plan or within `tuning` what
it measures now, what was measured for a similar shape, and the first candidate.

By itself nothing is measured (``GPULAYERS_TUNE=0``): that takes seconds, and other cuts of a sum
have other last bits, whereas the rules depend on the shape alone and give the same bits on every
GPU. Who has measured once (``gpulayers tune``) gets those choices in every later process.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source
from gpulayers.cuda.tune_key import Candidate, Key
from gpulayers.cuda.tune_table import Entry, Machine, Table, folder, shipped
from gpulayers.errors import ParameterError

__all__ = ["Candidate", "Key", "choose", "describe", "forget", "pinned", "switched_on", "tuning"]

_log = logging.getLogger("gpulayers")

ENVIRONMENT = "GPULAYERS_TUNE"
# choices outside plans that are kept in mind; with so many shapes they are no longer the same ones
_MOST = 4096


class _Scope(NamedTuple):
    choices: dict[Key, Candidate]
    deterministic: bool
    measures: bool


_scope: ContextVar[_Scope | None] = ContextVar("gpulayers_tune_scope", default=None)
_tuning: ContextVar[tuning | None] = ContextVar("gpulayers_tuning", default=None)


def enabled() -> bool:
    """Whether plans measure shapes that are new: ``GPULAYERS_TUNE``, or `tuning`.

    Raises
    ------
    ParameterError
        If the variable is neither 0 nor 1.
    """
    return switched_on(ENVIRONMENT) or _tuning.get() is not None


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment is 1; 0 or nothing is no.

    Raises
    ------
    ParameterError
        If it is anything else.
    """
    value = os.environ.get(variable) or "0"
    if value not in ("0", "1"):
        raise ParameterError(f"{variable}={value}: expected 0 (off) or 1 (on)")
    return value == "1"


class pinned:  # noqa: N801 - read as an adjective, like contextlib.suppress
    """Within a ``with`` block every choice is made once: what `choices` holds is taken, and what is
    chosen anew goes there. A plan keeps them, so that all its steps have the same bits.

    Parameters
    ----------
    choices : dict
        Filled with what is chosen.
    deterministic : bool
        Leave out candidates whose results differ in the last bits from run to run.
    measure : bool
        Whether shapes that are new may be measured, if that is `enabled`; not in a capture.

    Raises
    ------
    ParameterError
        As `enabled`.
    """

    def __init__(
        self, choices: dict[Key, Candidate], deterministic: bool = True, measure: bool = False
    ) -> None:
        self._scope = _Scope(choices, deterministic, measure and enabled())

    def __enter__(self) -> pinned:
        self._token = _scope.set(self._scope)
        return self

    def __exit__(self, *exc: object) -> None:
        _scope.reset(self._token)


class tuning:  # noqa: N801 - read as a verb
    """Within a ``with`` block shapes that are new are measured, in plans and outside.

    Attributes
    ----------
    found : list of (Key, tune_measure.Result)
        What was measured in the block.
    """

    def __init__(self) -> None:
        self.found: list[tuple[Key, Any]] = []

    def __enter__(self) -> tuning:
        self._token = _tuning.set(self)
        forget()
        return self

    def __exit__(self, *exc: object) -> None:
        _tuning.reset(self._token)


def choose(key: Key, candidates: Callable[[], Sequence[Candidate]]) -> Candidate:
    """Return the candidate for `key`; `candidates` is called only if that is not known yet.

    The same key gives the same candidate again within `pinned`, and within a process as long as
    nothing is measured.
    """
    scope = _scope.get()
    choices = _of_device() if scope is None else scope.choices
    found = choices.get(key)
    if found is None:
        if len(choices) >= _MOST and scope is None:
            choices.clear()
        found = choices[key] = _decide(key, candidates(), scope)
    return found


def _decide(key: Key, candidates: Sequence[Candidate], scope: _Scope | None) -> Candidate:
    if scope is None or scope.deterministic:
        candidates = [candidate for candidate in candidates if candidate.deterministic]
    if len(candidates) == 1:
        return candidates[0]
    own = own_table()
    run = _tuning.get()
    measures = (run is not None if scope is None else scope.measures) and not _capturing()
    tables = [known for known in (own, shipped()) if known.entries]
    if not tables and not measures:
        return candidates[0]
    place, source = machine(), source_hash(candidates)
    for known in tables:
        found = known.find(place, source, key, candidates)
        if found is not None:
            return found
    if measures:
        from gpulayers.cuda import tune_measure  # which needs the launchers, and they this module

        with pinned({}):
            result = tune_measure.measure(key, candidates)
        if run is not None:
            run.found.append((key, result))
        if result.microseconds is not None:
            choice = result.choice
            entry = Entry(place, source, key, choice.kernel, choice.parts, result.microseconds)
            own.add([entry])
            forget()
            return choice
    near = (known.nearest(place, source, key, candidates) for known in tables)
    return next((found for found in near if found is not None), candidates[0])


def _capturing() -> bool:
    """Whether what is launched now is recorded, so that nothing can be measured."""
    import cupy

    return cupy.cuda.get_current_stream().is_capturing()


# ---------------------------------------------------------------------------------- what is known

_made: dict[int, dict[Key, Candidate]] = {}


def _of_device() -> dict[Key, Candidate]:
    """What was chosen outside plans for the current device."""
    import cupy

    return _made.setdefault(cupy.cuda.Device().id, {})


def forget() -> None:
    """Choose anew from now on, except in plans: something was measured."""
    _made.clear()


@functools.cache
def _table(place: str) -> Table:
    """The user's own entries in that folder, read once."""
    return Table()


def own_table() -> Table:
    """The user's own entries, in `tune_table.folder`."""
    return _table(str(folder()))


def describe() -> dict[str, Any]:
    """Whether plans measure, how many choices there are for which GPUs, and where; needs no GPU.

    Raises
    ------
    ParameterError
        As `enabled`.
    """
    entries = own_table().entries
    return {
        "measures": enabled(),
        "choices": len(entries),
        "gpus": sorted({entry.machine.gpu for entry in entries}),
        "shipped": len(shipped().entries),
        "folder": str(folder()),
    }


def machine() -> Machine:
    """What is measured on: the current device and NVRTC."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = found["name"].decode() if isinstance(found["name"], bytes) else found["name"]
    version = ".".join(str(part) for part in cupy.cuda.nvrtc.getVersion())
    return Machine(name, f"{found['major']}.{found['minor']}", version)


def source_hash(candidates: Sequence[Candidate]) -> str:
    """A digest of the sources of their kernels: what was measured with others does not count."""
    files = sorted({table.KERNELS[candidate.kernel].file for candidate in candidates})
    text = "\0".join(load_source(file) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
