"""Instructions to Python functions on the registers of a block: `Binder.bind`."""

from __future__ import annotations

import numpy as np

from tests.support.ptx.arithmetic import formula
from tests.support.ptx.binding_memory import MemoryBinder
from tests.support.ptx.binding_warp import WarpBinder
from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import FaultError
from tests.support.ptx.operands import Group, Step
from tests.support.ptx.parse import (
    Immediate,
    Instruction,
    Name,
    Operand,
    Pair,
    Register,
    Vector,
)
from tests.support.ptx.types import NUMPY, size_of

__all__ = ["Binder"]

#: by an instruction's first word; the others are arithmetic
_METHODS = {
    "bra": "_branch",
    "ret": "_exit",
    "exit": "_exit",
    "bar": "_barrier",
    "barrier": "_barrier",
    "nanosleep": "_sleep",
    "membar": "_fence",
    "fence": "_fence",
    "mov": "_move",
    "ld": "_load",
    "st": "_store",
    "atom": "_atomic",
    "red": "_atomic",
    "cvta": "_to_generic",
    "cp": "_copy",
    "mma": "_product",
    "wgmma": "_of_warpgroup",
    "ldmatrix": "_matrices",
    "shfl": "_shuffle",
    "vote": "_vote",
    "redux": "_reduce",
}


def _nothing(group: Group) -> None:
    pass


class Binder(MemoryBinder, WarpBinder):
    """All instructions, for one block."""

    def bind(self, instruction: Instruction) -> Step:
        """The step of an instruction.

        Raises
        ------
        FaultError
            If it is not interpreted.
        """
        try:
            step = getattr(self, _METHODS.get(instruction.parts[0], "_compute"))(instruction)
            return self._guarded(step, instruction) if instruction.guard else step
        except (UnknownError, KeyError, ValueError, IndexError) as error:
            raise FaultError("unknown-instruction", str(error)) from error

    def _guarded(self, step: Step, instruction: Instruction) -> Step:
        predicate = self.source(Register(instruction.guard), "pred")
        if step.kind == "branch":
            step.predicate, step.negated = predicate, instruction.negated
            return step
        if step.kind != "plain":
            raise UnknownError(f"{instruction.parts[0]} with a guard")

        def run(group: Group) -> None:
            inner = group.mask & (predicate ^ instruction.negated)
            if inner.any():
                step.run(Group(inner))

        return Step("plain", run)

    def _compute(self, instruction: Instruction) -> Step:
        found = formula(instruction.parts)
        function, checked = found.function, found.checked
        target, *operands = instruction.operands
        if len(operands) != len(found.sources):
            raise UnknownError(f"takes {len(found.sources)} operands, not {len(operands)}")
        inverse = None
        if isinstance(target, Pair):  # setp p|q: the second is the opposite
            if found.result != "pred" or len(operands) > 2:
                raise UnknownError("two results")
            target, inverse = target.first, self.sink(target.second, "pred")
        write = self.sink(target, found.result)
        pairs = zip(operands, found.sources, strict=True)
        sources = [self.source(operand, kind) for operand, kind in pairs]

        def run(group: Group) -> None:
            if checked:
                wrong = checked[0](*sources) & group.mask
                if wrong.any():
                    raise FaultError("undefined-result", checked[1], np.flatnonzero(wrong))
            values = function(*sources)
            write(group, values)
            if inverse:
                inverse(group, ~values)

        return Step("plain", run)

    # ------------------------------------------------------------------------ control

    def _branch(self, instruction: Instruction) -> Step:
        (label,) = instruction.operands
        if not isinstance(label, Name) or instruction.parts[1:] not in ((), ("uni",)):
            raise UnknownError("a branch of another kind")
        return Step("branch", _nothing, self.entry.labels[label.name])

    def _exit(self, instruction: Instruction) -> Step:
        return Step("exit", _nothing)

    def _sleep(self, instruction: Instruction) -> Step:
        return Step("sleep", _nothing)

    def _barrier(self, instruction: Instruction) -> Step:
        parts = instruction.parts[1:]
        if parts == ("warp", "sync"):
            return Step(
                "warp", self._warp_barrier, members=self.source(instruction.operands[0], "u32")
            )
        words = [word for word in parts if word not in ("cta", "aligned")]
        if words != ["sync"] or instruction.operands != (Immediate(0),):
            raise UnknownError("another barrier than bar.sync 0")
        return Step("barrier", _nothing)

    def _warp_barrier(self, group: Group) -> None:
        self.shared.warp_barriers[np.unique(group.threads >> 5)] += 1

    def _fence(self, instruction: Instruction) -> Step:
        if instruction.parts[1] == "proxy":
            if instruction.parts[2:] != ("async", "shared::cta"):
                raise UnknownError("another proxy")
            return Step("plain", lambda group: self.shared.show_to_products(group.threads))
        return Step("plain", _nothing)

    # ------------------------------------------------------------------------ moves

    def _move(self, instruction: Instruction) -> Step:
        kind = instruction.parts[1]
        to, origin = instruction.operands
        if isinstance(to, Vector):
            return self._unpack(to, origin, kind)
        write = self.sink(to, kind)
        if not isinstance(origin, Vector):
            value = self.source(origin, kind)
            return Step("plain", lambda group: write(group, value))
        bits = 8 * size_of(kind) // len(origin.items)
        pieces = [self.source(item, f"u{bits}") for item in origin.items]
        word = NUMPY[f"u{8 * size_of(kind)}"]

        def pack(group: Group) -> None:
            total = np.zeros(self.threads, word)
            for place, piece in enumerate(pieces):
                total |= piece.astype(word) << word(bits * place)
            write(group, total.view(NUMPY[kind]))

        return Step("plain", pack)

    def _unpack(self, to: Vector, origin: Operand, kind: str) -> Step:
        bits = 8 * size_of(kind) // len(to.items)
        whole = self.source(origin, f"u{8 * size_of(kind)}")
        writes = [self.sink(item, f"u{bits}") for item in to.items]

        def unpack(group: Group) -> None:
            parts = [whole >> whole.dtype.type(bits * place) for place in range(len(writes))]
            for write, part in zip(writes, parts, strict=True):
                write(group, part.astype(NUMPY[f"u{bits}"]))

        return Step("plain", unpack)
