"""Loads, stores, atomics and copies, for binding.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.ptx import atomics
from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import Generic
from tests.support.ptx.operands import Group, Operands, Step
from tests.support.ptx.parse import Address, Immediate, Instruction, Name, Vector
from tests.support.ptx.types import NUMPY, size_of

__all__ = ["MemoryBinder"]

_CACHING = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "volatile", "relaxed", "gpu", "cta"}


class MemoryBinder(Operands):
    """Instructions that address memory."""

    def _access(self, instruction: Instruction) -> tuple[Any, int, str, bool]:
        """Space, count, type and whether it is the read-only way."""
        *words, kind = instruction.parts[1:]
        count, space, unchanging = 1, self.generic, False
        for word in words:
            if word in ("global", "shared", "local"):
                space = {"global": self.outside, "shared": self.shared, "local": self.local}[word]
            elif word in ("v2", "v4"):
                count = int(word[1])
            elif word == "nc":
                unchanging = True
            elif word not in _CACHING:
                raise UnknownError(f".{word}")
        return space, count, kind, unchanging

    def _load(self, instruction: Instruction) -> Step:
        to, where = instruction.operands
        if instruction.parts[1] == "param":
            return self._parameter(instruction)
        space, count, kind, unchanging = self._access(instruction)
        items = to.items if isinstance(to, Vector) else (to,)
        if len(items) != count:
            raise UnknownError("another number of results")
        address, numpy = self.address(where), NUMPY[kind]
        puts = [self.scattered(item, kind) for item in items]
        read = self.outside.read_unchanging if unchanging else space.read

        def load(group: Group) -> None:
            values = read(address(group), numpy, count, group.threads)
            for k, put in enumerate(puts):
                put(group, values[:, k])

        return Step("plain", load)

    def _parameter(self, instruction: Instruction) -> Step:
        to, where = instruction.operands
        _, _, kind = instruction.parts
        if not isinstance(where, Address) or not isinstance(where.base, Name):
            raise UnknownError("a parameter's address that is worked out")
        data = self.parameters[where.base.name][where.offset :][: size_of(kind)]
        value = np.frombuffer(data, NUMPY[kind], 1)[0]
        write = self.sink(to, kind)
        return Step("plain", lambda group: write(group, np.array(value)))

    def _store(self, instruction: Instruction) -> Step:
        where, what = instruction.operands
        space, count, kind, _ = self._access(instruction)
        items = what.items if isinstance(what, Vector) else (what,)
        if len(items) != count:
            raise UnknownError("another number of values")
        address = self.address(where)
        sources = [np.broadcast_to(self.source(item, kind), self.threads) for item in items]

        def store(group: Group) -> None:
            values = np.stack([source[group.threads] for source in sources], axis=1)
            space.write(address(group), values, group.threads)

        return Step("plain", store)

    def _atomic(self, instruction: Instruction) -> Step:
        """One thread after another."""
        *words, kind = [word for word in instruction.parts[1:] if word not in _CACHING]
        words = [
            word for word in words if word not in ("sys", "acquire", "release", "acq_rel", "noftz")
        ]
        space: Any = self.generic
        if words and words[0] in ("global", "shared"):
            space = self.outside if words.pop(0) == "global" else self.shared
        (name,) = words
        operands = list(instruction.operands)
        put = self.scattered(operands.pop(0), kind) if instruction.parts[0] == "atom" else None
        address = self.address(operands.pop(0))
        sources = [np.broadcast_to(self.source(item, kind), self.threads) for item in operands]
        change = atomics.change(name, kind, len(sources))

        def run(group: Group) -> None:
            values = [source[group.threads] for source in sources]
            old = atomics.apply(space, address(group), change, values, group.threads)
            if put:
                put(group, old)

        return Step("plain", run)

    def _to_generic(self, instruction: Instruction) -> Step:
        """cvta; `to` takes an address back to its space."""
        words = instruction.parts[1:-1]
        back, space = words[0] == "to", words[-1]
        if space not in ("global", "shared", "local") or instruction.parts[-1] != "u64":
            raise UnknownError(f".{space}")
        shift = np.uint64(Generic.to_generic(space))
        to, origin = instruction.operands
        write, value = self.sink(to, "u64"), self.source(origin, "u64")
        return Step("plain", lambda group: write(group, value - shift if back else value + shift))

    def _copy(self, instruction: Instruction) -> Step:
        """cp.async: a copy, the end of a group, waiting for groups."""
        words = instruction.parts[1:]
        if words == ("async", "commit_group"):
            return Step("plain", lambda group: self.copies.commit(group.threads))
        if words == ("async", "wait_all"):
            return Step("plain", lambda group: self.copies.wait(None, group.threads))
        if words == ("async", "wait_group"):
            (pending,) = instruction.operands
            if not isinstance(pending, Immediate):
                raise UnknownError("a number of groups that is worked out")
            return Step("plain", lambda group: self.copies.wait(pending.value, group.threads))
        if words[0] != "async" or words[1] not in ("ca", "cg") or words[2:] != ("shared", "global"):
            raise UnknownError("another cp")
        to, origin, size, *given = instruction.operands
        sizes = (16,) if words[1] == "cg" else (4, 8, 16)
        if not isinstance(size, Immediate) or size.value not in sizes:
            raise UnknownError(f"a copy of another size than {sizes}")
        target, start, count = self.address(to), self.address(origin), size.value
        source = np.broadcast_to(self.source(given[0] if given else size, "u32"), self.threads)

        def copy(group: Group) -> None:
            some = source[group.threads].astype(np.int64)
            self.copies.begin(target(group), start(group), count, some, group.threads)

        return Step("plain", copy)
