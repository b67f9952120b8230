"""What a captured step reads and writes, for batches of one size."""

from __future__ import annotations

from typing import Any

from gpulayers import backend
from gpulayers.optimizers._master import is_half

__all__ = ["Program"]


class Program:
    """The step for batches of one size: its inputs, its results and where its gradients lie.

    Attributes
    ----------
    source : Resident or None
        From where the step takes its batches; None if they are copied to X and labels.
    dry : bool
        It is captured only to see what memory that takes.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, source: Any = None, dry: bool = False
    ) -> None:
        xp = backend.module("cupy")
        self.source, self.dry = source, dry
        self.X = xp.empty(shape, dtype=dtype)
        self.labels = xp.empty(shape[0], dtype="int64")
        self.loss = xp.empty(1, dtype="float32" if is_half(dtype) else dtype)
        self.outputs: Any = None
        self.work: Any = None
        self.sections: Any = None
        self.grads: list[Any] = []
        self.draws = 0  # blocks of random words that it takes
        # with the update or without, and what each leaves in `outputs`
        self.graphs: dict[bool, Any] = {}
        self.results: dict[bool, Any] = {}
