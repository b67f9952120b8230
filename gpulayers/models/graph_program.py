"""What a captured step reads and writes, for batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.models.graph_node import Fused
from gpulayers.models.graph_nodes import leaves, places_of
from gpulayers.models.graph_sections import Sections
from gpulayers.models.plan_node import Node
from gpulayers.optimizers._master import is_half

__all__ = ["Program"]


class Program:
    """The step for batches of one size: its inputs, its results and where its gradients lie.

    Attributes
    ----------
    labels : array
        What the loss takes of each example.
    source : Resident or None
        From where the step takes its batches; None if they are copied to X and labels.
    dry : bool
        It is captured only to see what memory that takes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        labels: Array,
        source: Any = None,
        dry: bool = False,
    ) -> None:
        xp = backend.module("cupy")
        self.source, self.dry = source, dry
        self.X = xp.empty(shape, dtype=dtype)
        self.labels = labels
        self.loss = xp.empty(1, dtype="float32" if is_half(dtype) else dtype)
        self.outputs: Any = None
        self.work: Any = None
        self.sections: Any = None
        self.grads: list[Any] = []
        self.draws = 0  # blocks of random words that it takes
        # with the update or without, and what each leaves in `outputs`
        self.graphs: dict[bool, Any] = {}
        self.results: dict[bool, Any] = {}

    def make_room(self, nodes: Sequence[Node], layout: Sections) -> None:
        """Memory for the gradients of a batch that has gone forward through the nodes, and where
        each lies in it."""
        offset = 0
        regions: list[tuple[int, int, int]] = []
        rows: list[tuple[int, ...]] = []
        places = iter(range(len(layout.places)))
        for node in leaves(nodes):
            count = len(places_of(node))
            if not count:
                continue
            sizes = [next(places) for _ in range(count)]
            parts = node.parts() if isinstance(node, Fused) else 1
            stride = sum(layout.sizes[i] for i in sizes)
            regions.append((offset, parts, stride))
            start = offset
            for i in sizes:
                rows.append(layout.section(i, start, parts, stride))
                start += layout.sizes[i]
            offset += parts * stride
        xp = backend.module("cupy")
        self.work = xp.empty(offset, dtype=layout.wide)
        self.sections = xp.empty((len(rows), 5), dtype="int64")
        if not self.dry:
            self.sections[...] = xp.asarray(np.array(rows, dtype=np.int64))
        self.grads = [
            self.work[start : start + parts * stride].reshape(parts, stride)
            for start, parts, stride in regions
        ]
