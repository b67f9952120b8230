"""What `tune` chooses by, and among what; needs no CuPy."""

from __future__ import annotations

from typing import NamedTuple

from gpulayers.cuda import table

__all__ = ["Candidate", "Key"]


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
