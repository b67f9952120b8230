"""What the lanes of a warp do together, for binding.py."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.support.ptx import warp
from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import FaultError
from tests.support.ptx.operands import Group, Operands, Step
from tests.support.ptx.parse import Immediate, Instruction, Pair, Vector
from tests.support.ptx.warpgroup import Form

__all__ = ["WarpBinder"]

Array = np.ndarray[Any, Any]
_GROUP_KINDS = (["f32", "bf16", "bf16"], ["f32", "f16", "f16"])


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

    def _of_warpgroup(self, instruction: Instruction) -> Step:
        """wgmma: a product, the end of a group, waiting for groups, a fence."""
        what, *words = instruction.parts[1:]
        if words[:2] != ["sync", "aligned"]:
            raise UnknownError("another wgmma")
        if what == "fence":
            return Step("warp", lambda group: self.products.fence(group.threads))
        if what == "commit_group":
            return Step("warp", lambda group: self.products.commit(group.threads))
        if what == "wait_group":
            (pending,) = instruction.operands
            if not isinstance(pending, Immediate):
                raise UnknownError("a number of groups that is worked out")
            return Step("warp", lambda group: self.products.wait(pending.value, group.threads))
        found = re.fullmatch(r"m64n(\d+)k16", words[2])
        if what != "mma_async" or found is None or words[3:] not in _GROUP_KINDS:
            raise UnknownError("another wgmma")
        sums, left, right, *flags = instruction.operands
        values = [flag.value for flag in flags if isinstance(flag, Immediate)]
        columns = int(found[1])
        if not isinstance(sums, Vector) or len(sums.items) * 2 != columns:
            raise UnknownError("fragments of another size")
        if len(values) != 5 or values[:3] != [1, 1, 1]:  # adds to the sums; signs
            raise UnknownError("another scale than 1")
        form = Form(words[4], columns, bool(values[3]), bool(values[4]))
        puts = [self.scattered(item, "f32") for item in sums.items]
        before = [self.source(item, "f32") for item in sums.items]
        descriptors = [self.source(item, "u64") for item in (left, right)]

        def multiply(group: Group) -> None:
            rows = np.stack([self._rows(group, array) for array in before], axis=1)
            a, b = (self._rows(group, array) for array in descriptors)
            warps = group.threads.reshape(-1, 32)
            if (a != a[:, :1]).any() or (b != b[:, :1]).any():
                raise FaultError("product-descriptor", "lanes differ in it", group.threads)
            found = [
                self.products.multiply(form, int(a[k, 0]), int(b[k, 0]), rows[k], warps[k])
                for k in range(len(warps))
            ]
            for number, put in enumerate(puts):
                put(group, np.concatenate([of_warp[number] for of_warp in found]))

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
