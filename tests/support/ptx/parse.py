"""PTX text to instructions, operands and variables, as the PTX ISA's chapter on syntax has them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

__all__ = [
    "Address",
    "Entry",
    "Immediate",
    "Instruction",
    "Name",
    "Operand",
    "Pair",
    "Register",
    "Variable",
    "Vector",
    "parse_entry",
]

#: bytes of a value of each type, by the type's letters and digits
WIDTH = {"pred": 1, **{f"{kind}{8 * n}": n for kind in "bsuf" for n in (1, 2, 4, 8)}}


@dataclass(frozen=True)
class Register:
    """A register, or a special one such as %tid.x, which has no type of its own."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float of `width` bytes (0f3F800000, 0d...)."""

    value: int
    width: int = 0


@dataclass(frozen=True)
class Name:
    """A label, or a variable's address."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Register | Name | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}: the first one is that of the lowest bits, or of the lowest address."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """d|p: two results."""

    first: Register
    second: Register


Operand = Register | Immediate | Name | Address | Vector | Pair


@dataclass(frozen=True)
class Instruction:
    """One instruction. `line` of the PTX, `source` of the CUDA code ("pipeline.cuh:140")."""

    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str
    negated: bool
    line: int
    source: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"PTX line {self.line} ({self.source}): {self.text}"


@dataclass(frozen=True)
class Variable:
    """A variable of a state space; `count` bytes, None for dynamic shared memory."""

    name: str
    space: str
    align: int
    count: int | None


@dataclass
class Entry:
    """A kernel: its parameters (name -> bytes), registers (name -> type), and code."""

    name: str
    parameters: dict[str, int]
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_VARIABLE = re.compile(
    r"(?:\.extern\s+)?\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.[a-z]\w*\s+|\d+\s+)*)?"
    r"([\w$]+)(?:\[(\d+)\])?"
)
_ITEM = re.compile(
    r"(?P<blank>\s+|//[^\n]*)|(?P<scope>[{}])|(?P<label>[\w$]+):"
    r"|\.loc\s+(?P<file>\d+)\s+(?P<row>\d+)[^\n]*|(?P<statement>[^;]+;)"
)
_DECLARED = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?")
_GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")


def parse_entry(ptx: str, name: str) -> Entry:
    """The kernel of this (mangled) name.

    Raises
    ------
    ValueError
        If there is none, or something in it is not understood.
    """
    head = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)([^{{]*)\{{", ptx)
    if head is None:
        raise ValueError(f"no kernel {name}")
    sizes = _PARAMETER.findall(head[1])
    entry = Entry(name, {n: WIDTH[kind] * int(count or 1) for kind, n, count in sizes})
    files = {number: path.rpartition("/")[2] for number, path in _files(ptx)}
    _Body(ptx, head.end(), files, entry).parse()
    used = {word for i in entry.instructions for word in re.findall(r"[A-Za-z_$][\w$]*", i.text)}
    for found in _VARIABLE.finditer(ptx):
        variable = _variable(found)
        outside = ptx.rfind("\n}", 0, found.start()) >= ptx.rfind(".entry ", 0, found.start())
        if outside and variable.name in used:
            entry.variables[variable.name] = variable
    return entry


def _files(ptx: str) -> list[tuple[str, str]]:
    return re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', ptx, re.MULTILINE)


def _variable(found: re.Match[str]) -> Variable:
    space, align, kind, name, count = found.groups()
    size = WIDTH[kind]
    total = None if count == "" else size * int(count or 1)
    return Variable(name, space, int(align or size), total)


class _Body:
    """What stands between the braces of a kernel; registers of inner scopes get names of their
    own."""

    def __init__(self, ptx: str, start: int, files: dict[str, str], entry: Entry) -> None:
        self.ptx, self.position, self.files, self.entry = ptx, start, files, entry
        self.scopes: list[dict[str, str]] = [{}]
        self.line, self.counted = 1 + ptx.count("\n", 0, start), start
        self.source, self.opened = "?", 0

    def parse(self) -> None:
        while self.scopes:
            found = _ITEM.match(self.ptx, self.position)
            if found is None:
                raise ValueError(f"{self.entry.name}: does not end")
            self.position = found.end()
            if found["scope"]:
                self._scope(found["scope"])
            elif found["label"]:
                self.entry.labels[found["label"]] = len(self.entry.instructions)
            elif found["file"]:
                self.source = f"{self.files.get(found['file'], '?')}:{found['row']}"
            elif found["statement"]:
                self._statement(found["statement"][:-1].strip(), found.start())

    def _scope(self, brace: str) -> None:
        if brace == "}":
            self.scopes.pop()
            return
        self.opened += 1
        self.scopes.append({})

    def _statement(self, text: str, start: int) -> None:
        self.line += self.ptx.count("\n", self.counted, start)
        self.counted = start
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".shared", ".local")):
            found = _VARIABLE.match(text + ";")
            if found is None:
                raise ValueError(f"PTX line {self.line}: not understood: {text}")
            self.entry.variables[found[4]] = _variable(found)
        elif not text.startswith(".pragma"):
            self._instruction(text)

    def _registers(self, text: str) -> None:
        kind, names = text.removeprefix(".reg").strip()[1:].split(None, 1)
        for name, count in _DECLARED.findall(names):
            for one in [f"{name}{k}" for k in range(int(count))] if count else [name]:
                inner = f"{one}@{self.opened}" if len(self.scopes) > 1 else one
                self.scopes[-1][one] = inner
                self.entry.registers[inner] = kind

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        return Register(name) if name.startswith("%") else None

    def _instruction(self, text: str) -> None:
        text = " ".join(text.split())
        guard, rest = _GUARD.match(text), text
        name, negated = "", False
        if guard:
            register = self._register(guard[2])
            if register is None:
                raise ValueError(f"PTX line {self.line}: no predicate {guard[2]}: {text}")
            name, negated, rest = register.name, bool(guard[1]), text[guard.end() :]
        opcode, _, tail = rest.partition(" ")
        operands = tuple(self._operand(word) for word in _pieces(tail))
        parts = tuple(opcode.split("."))
        self.entry.instructions.append(
            Instruction(text, parts, operands, name, negated, self.line, self.source)
        )

    def _operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self._operand(word) for word in _pieces(text[1:-1])))
        if text.startswith("["):
            base, sign, offset = re.fullmatch(
                r"\[\s*([^\s+\]]+)\s*(\+?)\s*(-?\w*)\s*\]", text
            ).groups()  # type: ignore[union-attr]
            place = self._operand(base)
            if not isinstance(place, Register | Name | Immediate):
                raise ValueError(f"PTX line {self.line}: not an address: {text}")
            return Address(place, int(offset, 0) if sign else 0)
        if "|" in text:
            first, second = (self._operand(word) for word in text.split("|"))
            if isinstance(first, Register) and isinstance(second, Register):
                return Pair(first, second)
        register = self._register(text)
        if register:
            return register
        return constant(text) or Name(text)


def constant(text: str) -> Immediate | None:
    """The constant that a word is, if it is one."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Immediate(int(text[2:], 16), 4)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", text):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
    return None


def _pieces(text: str) -> list[str]:
    """Operands between commas, but for those inside of brackets."""
    return [piece.strip() for piece in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text)]
