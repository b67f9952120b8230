"""What the lanes of a warp do together, for binding.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.ptx import warp
from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import FaultError
from tests.support.ptx.operands import Group, Operands, Step
from tests.support.ptx.parse import Instruction, Pair, Vector

__all__ = ["WarpBinder"]

Array = np.ndarray[Any, Any]


class WarpBinder(Operands):
    """Instructions of kind "warp"."""

    def _rows(self, group: Group, array: Array) -> Array:
        """Of whole warps: (warps, 32)."""
        return np.broadcast_to(array, self.threads)[group.threads].reshape(-1, 32)

    def _product(self, instruction: Instruction) -> Step:
        parts = instruction.parts[1:]
        if parts[:2] != ("sync", "aligned") or parts[3:6] != ("row", "col", "f32"):
            raise UnknownError("another mma")
        left, right, total = parts[6:]
        shape = warp.PRODUCTS.get((parts[2], left))
        if shape is None or right != left or total != "f32":
            raise UnknownError("another mma")
        vectors = [item.items for item in instruction.operands if isinstance(item, Vector)]
        if [len(items) for items in vectors] != [4, 4, 2, 4]:
            raise UnknownError("fragments of another size")
        puts = [self.scattered(item, "f32") for item in vectors[0]]
        a, b = ([self.source(item, "b32") for item in items] for items in vectors[1:3])
        c = [self.source(item, "f32") for item in vectors[3]]

        def multiply(group: Group) -> None:
            parts = ([self._rows(group, array) for array in arrays] for arrays in (a, b, c))
            for put, values in zip(puts, warp.multiply(shape, *parts), strict=True):
                put(group, values.reshape(-1))

        return Step("warp", multiply)

    def _matrices(self, instruction: Instruction) -> Step:
        words = list(instruction.parts[1:])
        transposed = "trans" in words
        words = [word for word in words if word != "trans"]
        count = {"x1": 1, "x2": 2, "x4": 4}[words.pop(3)]
        if words != ["sync", "aligned", "m8n8", "shared", "b16"]:
            raise UnknownError("another ldmatrix")
        to, where = instruction.operands
        items = to.items if isinstance(to, Vector) else (to,)
        if len(items) != count:
            raise UnknownError("another number of matrices")
        puts, address = [self.scattered(item, "b32") for item in items], self.address(where)

        def load(group: Group) -> None:
            rows = address(group).reshape(-1, 32)
            found = warp.gather_matrices(self.shared, rows, count, transposed, group.threads)
            for put, values in zip(puts, found, strict=True):
                put(group, values.reshape(-1))

        return Step("warp", load)

    def _whole(self, group: Group, array: Array) -> Array:
        """All lanes, also those that are not in the group: (all warps, 32)."""
        return np.broadcast_to(array, self.threads).reshape(-1, 32)

    def _shuffle(self, instruction: Instruction) -> Step:
        _, sync, mode, kind = instruction.parts
        if sync != "sync" or kind != "b32" or mode not in ("up", "down", "bfly", "idx"):
            raise UnknownError("another shfl")
        to, *operands = instruction.operands
        pair = to if isinstance(to, Pair) else None
        write = self.sink(pair.first if pair else to, "b32")
        tell = self.sink(pair.second, "pred") if pair else None
        value, by, clamp, members = (self.source(item, "u32") for item in operands)

        def shuffle(group: Group) -> None:
            rows = [self._whole(group, array) for array in (value, by, clamp)]
            lanes, inside = warp.source_lanes(mode, rows[1], rows[2])
            here = group.mask.reshape(-1, 32)
            away = here & ~np.take_along_axis(here, lanes, axis=1)
            if away.any():
                text = "takes a value of a lane that is not there"
                raise FaultError("shuffle-source", text, np.flatnonzero(away))
            write(group, np.take_along_axis(rows[0], lanes, axis=1).reshape(-1))
            if tell:
                tell(group, inside.reshape(-1))

        return Step("warp", shuffle, members=members)

    def _vote(self, instruction: Instruction) -> Step:
        _, sync, mode, kind = instruction.parts
        to, origin, members = instruction.operands
        if sync != "sync" or (mode == "ballot") != (kind == "b32"):
            raise UnknownError("another vote")
        write, asked = self.sink(to, kind), self.source(origin, "pred")
        everyone = self.source(members, "u32")

        def vote(group: Group) -> None:
            here = group.mask.reshape(-1, 32)
            yes = self._whole(group, asked) & here
            bits = (yes.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=1)
            result = {
                "ballot": bits.astype(np.uint32),
                "any": yes.any(axis=1),
                "all": (yes | ~here).all(axis=1),
                "uni": (yes | ~here).all(axis=1) | ~yes.any(axis=1),
            }[mode]
            write(group, np.repeat(result, 32))

        return Step("warp", vote, members=everyone)

    def _reduce(self, instruction: Instruction) -> Step:
        _, sync, name, kind = instruction.parts
        to, origin, members = instruction.operands
        if sync != "sync":
            raise UnknownError("another redux")
        write, value = self.sink(to, kind), self.source(origin, kind)

        def reduce(group: Group) -> None:
            rows = self._whole(group, value)
            write(group, warp.reduce(name, rows, group.mask.reshape(-1, 32)).reshape(-1))

        return Step("warp", reduce, members=self.source(members, "u32"))
