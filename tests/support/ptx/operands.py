"""The registers of a block, and what operands of instructions stand for: `Operands`.

A register is an array with a number for each thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tests.support.ptx.copies import Copies
from tests.support.ptx.formula import UnknownError
from tests.support.ptx.memory import Generic, Global, Local, Shared
from tests.support.ptx.parse import Address, Entry, Immediate, Name, Operand, Register
from tests.support.ptx.types import NUMPY, REGISTER, is_float, is_signed, size_of
from tests.support.ptx.warpgroup import Products

__all__ = ["Group", "Operands", "Step"]

Array = np.ndarray[Any, Any]
#: what a register holds before anything is written: no number of either width, as a float
_GARBAGE = {1: 1, 2: 0xFFCB, 4: 0xFFCBCBCB, 8: 0xFFFBCBCBCBCBCBCB}


class Group:
    """The threads that execute an instruction together."""

    def __init__(self, mask: Array) -> None:
        self.mask = mask
        self.full = bool(mask.all())

    @cached_property
    def threads(self) -> Array:
        """Their numbers."""
        return np.flatnonzero(self.mask)


@dataclass(slots=True)
class Step:
    """A bound instruction.

    Attributes
    ----------
    kind : str
        "plain"; "branch" (`target`, `predicate`); "exit"; "barrier"; "sleep"; "warp": lanes that
        have to come together, all of a warp's, or those that `members` (a register) names.
    """

    kind: str
    run: Callable[[Group], None]
    target: int = 0
    predicate: Array | None = None
    negated: bool = False
    members: Array | None = None


class Operands:
    """The registers and memory of one block."""

    def __init__(
        self,
        entry: Entry,
        threads: int,
        parameters: dict[str, bytes],
        special: dict[str, Array],
        outside: Global,
        shared: Shared,
        local: Local,
    ) -> None:
        self.entry, self.threads, self.parameters, self.special = (
            entry,
            threads,
            parameters,
            special,
        )
        self.outside, self.shared, self.local = outside, shared, local
        self.copies = Copies(outside, shared, threads)
        self.products = Products(shared, threads)
        self.generic = Generic(outside, shared, local)
        self.registers: dict[str, Array] = {}
        for name, kind in entry.registers.items():
            register = REGISTER[size_of(kind)] if kind != "pred" else np.bool_
            self.registers[name] = np.empty(threads, register)

    def reset(self) -> None:
        """For another block."""
        for register in self.registers.values():
            register[...] = _GARBAGE[register.itemsize]
        self.shared.reset()
        self.copies.reset()
        self.products.reset()

    def source(self, operand: Operand, kind: str) -> Array:
        """An operand as numbers of a type; of a wider register the lowest bits."""
        numpy = NUMPY[kind]
        if isinstance(operand, Register):
            register = self._register(operand.name)
            if kind == "pred" or register.dtype == np.bool_:
                if kind != "pred" or register.dtype != np.bool_:
                    raise UnknownError(f"{operand.name} is taken for a {kind}")
                return register
            times = register.itemsize // size_of(kind)
            if not times:
                raise UnknownError(f"{operand.name} is too narrow for {kind}")
            return register.view(numpy)[::times]
        if isinstance(operand, Immediate):
            return np.array(_constant(operand, kind))
        if isinstance(operand, Name):
            return np.array(self._place(operand.name), REGISTER[size_of(kind)]).view(numpy)
        raise UnknownError(f"{operand} is no source")

    def _register(self, name: str) -> Array:
        found = self.registers.get(name)
        found = self.special.get(name) if found is None else found
        if found is None:
            raise UnknownError(f"register {name}")
        return found

    def _place(self, name: str) -> int:
        if name in self.shared.places:
            return self.shared.address(name)
        if name in self.local.places:
            return self.local.address(name)
        raise UnknownError(f"variable {name}")

    def sink(self, operand: Operand, kind: str) -> Callable[[Group, Array], None]:
        """A function that writes numbers of a type, one for each thread of all, where a group is;
        a wider register takes zeros or the sign above."""
        if operand == Name("_"):
            return lambda group, values: None
        if not isinstance(operand, Register) or operand.name not in self.registers:
            raise UnknownError(f"{operand} is no register to write")
        register = self.registers[operand.name]
        if (kind == "pred") != (register.dtype == np.bool_):
            raise UnknownError(f"{operand.name} takes no {kind}")
        if kind != "pred" and register.itemsize > size_of(kind):
            if is_float(kind):
                raise UnknownError(f"{operand.name} is wider than {kind}")
            letter = "s" if is_signed(kind) else "u"
            view = register.view(NUMPY[f"{letter}{8 * register.itemsize}"])
        else:
            view = register.view(NUMPY[kind])  # refuses a narrower one below
            if register.itemsize != view.itemsize:
                raise UnknownError(f"{operand.name} is too narrow for {kind}")

        def write(group: Group, values: Array) -> None:
            if group.full:
                view[...] = values
            else:
                np.copyto(view, values, where=group.mask)

        return write

    def scattered(self, operand: Operand, kind: str) -> Callable[[Group, Array], None]:
        """The same of one number for each thread of the group."""
        write = self.sink(operand, kind)
        whole = np.zeros(self.threads, NUMPY[kind])

        def put(group: Group, values: Array) -> None:
            whole[group.threads] = values
            write(group, whole)

        return put

    def address(self, operand: Operand) -> Callable[[Group], Array]:
        """The addresses of a group's threads."""
        if not isinstance(operand, Address):
            raise UnknownError(f"{operand} is no address")
        offset = np.uint64(operand.offset % 2**64)
        base = operand.base
        if isinstance(base, Name):
            fixed = np.uint64(self._place(base.name) + operand.offset)
            return lambda group: np.full(len(group.threads), fixed)
        if isinstance(base, Immediate):
            return lambda group: np.full(len(group.threads), np.uint64(base.value) + offset)
        register = self._register(base.name)
        if register.itemsize == 8:
            return lambda group: register[group.threads] + offset
        low = np.uint64(0xFFFFFFFF)
        return lambda group: (register[group.threads].astype(np.uint64) + offset) & low


def _constant(operand: Immediate, kind: str) -> Any:
    """A constant as a number of a type."""
    numpy, bits = NUMPY[kind], 8 * size_of(kind)
    if kind == "pred":
        return np.bool_(operand.value != 0)
    if operand.width and bits != 8 * operand.width:
        raise UnknownError(f"a constant of {8 * operand.width} bits as a {kind}")
    if is_float(kind) and not operand.width:
        raise UnknownError("an integer for a float")
    return np.array(operand.value % 2**bits, REGISTER[bits // 8]).view(numpy)
