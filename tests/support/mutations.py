"""How mutants of the CUDA sources are made: one place of one line changes.

A barrier or a bound test goes, an atomic becomes a plain update, a comparison, a sign or a constant
changes (`tests.support.mutants` judges them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from gpulayers.cuda import table

PER_FILE = (
    2  # the tests judge so many mutants of a source, to keep their time; mutants.py tries all
)

#: name, pattern, and what stands in its place; operators have blanks around them, templates none
SWAPS: tuple[tuple[str, str, str], ...] = (
    ("< to <=", r"(?<= )<(?= )", "<="),
    ("<= to <", r"(?<= )<=(?= )", "<"),
    ("> to >=", r"(?<= )>(?= )", ">="),
    (">= to >", r"(?<= )>=(?= )", ">"),
    ("== to !=", r"(?<= )==(?= )", "!="),
    ("!= to ==", r"(?<= )!=(?= )", "=="),
    ("+ to -", r"(?<= )\+(?= )", "-"),
    ("- to +", r"(?<= )-(?= )", "+"),
    ("* to +", r"(?<= )\*(?= )", "+"),
    ("/ to *", r"(?<= )/(?= )", "*"),
    ("% to /", r"(?<= )%(?= )", "/"),
    ("^ to |", r"(?<= )\^(?= )", "|"),
    ("+= to -=", r"(?<= )\+=(?= )", "-="),
    ("+= to =", r"(?<= )\+=(?= )", "="),
    ("/= to *=", r"(?<= )/=(?= )", "*="),
    ("&& to ||", r"&&", "||"),
    ("|| to &&", r"\|\|", "&&"),
    ("drop !", r"(?<=\()!(?=\w)", ""),
    ("drop unary -", r"(?<=[(?:] )-(?=[\w.])|(?<=\()-(?=[\w.])|(?<=< )-(?=[\w.])", ""),
    ("true to false", r"\btrue\b", "false"),
    ("false to true", r"\bfalse\b", "true"),
    ("drop barrier", r"__sync(?:threads|warp)\(\);", ";"),
    ("start at 0", r"minus_infinity<Acc>\(\)", "static_cast<Acc>(0)"),
    ("drop statement", r"^\s+[\w*]+(?:\[[^\]]*\])?(?:\.\w+)? [-+*/]?= [^;]*;$", ";"),
)
#: a condition in round brackets may itself hold two levels of them
_BRACKETED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ARRAY = re.compile(r"\s*(?:__shared__ )?\w+ \w+\[(?:(\w+) / )?(\d+)\];")
_NUMBER = re.compile(
    r"(?<![\w.%])(?<!__align__\()(?:0x[0-9a-fA-F]+|\d+\.\d+|\d+)(?=u?l*\b)(?![\w.]*>)"
)


@dataclass(frozen=True)
class Mutant:
    """One change of one line of a source."""

    file: str
    function: str
    line_number: int
    line: str
    mutation: str
    becomes: str

    @property
    def key(self) -> tuple[str, ...]:
        """What an entry of the list of equivalent mutants names."""
        return (self.file, self.function, self.line, self.mutation, self.becomes)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line_number} in {self.function}"
        return f"{where}, {self.mutation}: {self.line}  ->  {self.becomes}"

    def source(self) -> str:
        """The text of the whole file with the change."""
        lines = read(self.file).split("\n")
        old = lines[self.line_number - 1]
        lines[self.line_number - 1] = old.replace(old.strip(), self.becomes)
        return "\n".join(lines)


def read(file: str) -> str:
    """Text of a source or header of gpulayers/cuda."""
    return (resources.files("gpulayers.cuda") / file).read_text(encoding="utf-8")


def files() -> tuple[str, ...]:
    """The sources and their headers, but for inline PTX, in which nothing is changed
    (tests/models/test_mega_faults.py has those of that engine)."""
    folder = resources.files("gpulayers.cuda")
    headers = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".cuh"))
    left_out = ("mega_", "fragments.cuh", "copies.cuh")
    return (*table.FILES, *(name for name in headers if not name.startswith(left_out)))


def function_bodies(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, last line) of each function; braces of functions stand in column 0, those
    of members in column 4."""
    return sorted((*_members(text), *_functions(text)), key=lambda body: body[1])


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    head = r"^    __device__ [^;{]*?(\w+)\([^;{]*\)(?: const)?\n    \{\n"
    for match in re.finditer(head + r"(.*?)^    \}", text, re.MULTILINE | re.DOTALL):
        first, last = (text.count("\n", 0, match.start(2)), text.count("\n", 0, match.end(2)))
        yield match[1], first + 1, last


def _functions(text: str) -> Iterator[tuple[str, int, int]]:
    head, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        code = line.split("//")[0]
        if code.startswith("{"):
            start = number + 1
        elif code.startswith("}"):
            names = [n for n in re.findall(r"(\w+)\s*\(", head) if not n.startswith("__")]
            if start and names:
                yield names[0], start, number - 1
            head, start = "", 0
        elif not start:
            head = "" if not code.strip() or code.startswith("#") else head + code


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    lines = read(file).split("\n")
    found = []
    for function, first, last in function_bodies(read(file)):
        for number in range(first, last + 1):
            line = lines[number - 1].split("//")[0].rstrip()
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            for mutation, becomes in _changes(line):
                full = lines[number - 1].strip()
                new = becomes.strip() + lines[number - 1][len(line) :].rstrip()
                found.append(Mutant(file, function, number, full, mutation, new))
    return list(dict.fromkeys(found))


def spread(made: Sequence[Mutant], count: int = PER_FILE) -> Sequence[Mutant]:
    """So many of them, evenly spread, or all if there are fewer."""
    count = min(count, len(made))
    return [made[(2 * k + 1) * len(made) // (2 * count)] for k in range(count)]


def _changes(line: str) -> Iterator[tuple[str, str]]:
    """(mutation, changed line) for every mutant of a line."""
    if array := _ARRAY.fullmatch(line):  # a larger one would do no harm
        smaller = int(array[2]) + (1 if array[1] else -1)
        yield "smaller array", line[: array.start(2)] + str(smaller) + line[array.end(2) :]
        return
    for name, pattern, new in SWAPS:
        for match in re.finditer(pattern, line):
            yield name, line[: match.start()] + new + line[match.end() :]
    for match in re.finditer(rf"\bif ({_BRACKETED}) (?:return|continue);", line):
        yield "drop test", line[: match.start()] + ";" + line[match.end() :]
    for match in re.finditer(rf"\bif ({_BRACKETED})(?! (?:return|continue);)", line):
        yield "always", line[: match.start(1)] + "(true)" + line[match.end(1) :]
    for match in re.finditer(rf"\batomicAdd({_BRACKETED})(;?)", line):
        target, value = _arguments(match[1])
        plain = f"*({target}) += {value}"
        plain = f"{plain};" if match[2] else f"({plain})"
        yield "no atomic", line[: match.start()] + plain + line[match.end() :]
    for match in _NUMBER.finditer(line):
        yield "constant", line[: match.start()] + _other_number(match[0]) + line[match.end() :]


def _arguments(bracketed: str) -> list[str]:
    """The arguments of a call, from the text of its brackets."""
    found, depth = [""], 0
    for character in bracketed[1:-1]:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [argument.strip() for argument in found]


def _other_number(text: str) -> str:
    if text.startswith("0x"):
        return text[:-1] + ("0" if text[-1] != "0" else "1")
    if "." in text:
        return str(float(text) * 1.5)
    return str(int(text) + 1)
