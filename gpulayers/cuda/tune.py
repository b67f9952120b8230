"""Which kernel works out a product, and how its sums are cut up: one place for all such choices.

A launcher lists the `Candidate` s that it knows for its shape, the rule's own first, and asks
`choose`. Without anything measured that is the first one, which depends on the shape alone, so that
results are the same on every GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

from gpulayers.cuda import table

__all__ = ["Candidate", "Key", "choose", "pinned"]


class Key(NamedTuple):
    """What is to be worked out.

    Attributes
    ----------
    op : str
        Name of the operation.
    shape : tuple of int
        Its sizes; a choice made for similar ones may serve.
    dtype : str
        Of the storage.
    detail : tuple of int
        What else its kernels depend on; a choice for another detail never serves.
    precision : str
        Of the multiplications, where that is not the dtype's own.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    detail: tuple[int, ...] = ()
    precision: str = ""


class Candidate(NamedTuple):
    """One way to work out a product.

    Attributes
    ----------
    kernel : str
        A key of `table.KERNELS`.
    rows, cols : int
        The tile of the product that a block works out.
    parts, span : int
        How many blocks share the terms of a tile's sums, and how many terms each has.
    """

    kernel: str
    rows: int
    cols: int
    parts: int = 1
    span: int = 0

    @property
    def deterministic(self) -> bool:
        """Whether its results have the same bits in every run."""
        return not table.KERNELS[self.kernel].atomics

    @property
    def label(self) -> str:
        """Its name in tables: ``gemm_narrow, 4 parts``."""
        return self.kernel if self.parts == 1 else f"{self.kernel}, {self.parts} parts"


class _Scope(NamedTuple):
    choices: dict[Key, Candidate]
    deterministic: bool


_scope: ContextVar[_Scope | None] = ContextVar("gpulayers_tune_scope", default=None)


class pinned:  # noqa: N801 - read as an adjective, like contextlib.suppress
    """Within a ``with`` block every choice is made once: what `choices` holds is taken, and what is
    chosen anew goes there. A plan keeps them, so that all its steps have the same bits.

    Parameters
    ----------
    choices : dict
        Filled with what is chosen.
    deterministic : bool
        Leave out candidates whose results differ in the last bits from run to run.
    """

    def __init__(self, choices: dict[Key, Candidate], deterministic: bool = True) -> None:
        self._token = _scope.set(_Scope(choices, deterministic))

    def __enter__(self) -> pinned:
        return self

    def __exit__(self, *exc: object) -> None:
        _scope.reset(self._token)


def choose(key: Key, candidates: Callable[[], Sequence[Candidate]]) -> Candidate:
    """Return the candidate for `key`; `candidates` is called only if that is not known yet.

    The same key gives the same candidate again within `pinned`, and within a process as long as
    nothing is measured anew.
    """
    scope = _scope.get()
    choices = _made if scope is None else scope.choices
    found = choices.get(key)
    if found is None:
        deterministic = scope is None or scope.deterministic
        known = [c for c in candidates() if c.deterministic or not deterministic]
        found = choices[key] = known[0]
    return found


_made: dict[Key, Candidate] = {}
