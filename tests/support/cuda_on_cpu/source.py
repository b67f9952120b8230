"""Turns a CUDA source into a C++ translation unit for g++; the text of kernels stays as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.support.cuda_on_cpu.errors import CompileError

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_SYSTEM_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<[^>]+>", re.MULTILINE)
_BOUNDS = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
_C_KERNEL = re.compile(rf'extern\s+"C"\s+{_BOUNDS}__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
    r"((?:(?:unsigned|signed)\s+)?\w+)\s+(\w+)\s*\[\s*\]\s*;"
)


_ASM = re.compile(r"\basm\s*(?:volatile\s*)?\((?=\s*\")")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|.', re.DOTALL)
_OPERAND = re.compile(r'^\s*"[^"]*"\s*\((.*)\)\s*$', re.DOTALL)


def kernel_names(code: str, name_expressions: Sequence[str]) -> dict[str, str]:
    """Each kernel that can be launched, with an identifier made from its name."""
    names = [*_C_KERNEL.findall(_COMMENT.sub("", code)), *name_expressions]
    return {
        name: f"{number}_{re.sub(r'[^0-9A-Za-z]+', '_', name)}" for number, name in enumerate(names)
    }


def translation_unit(code: str, file_name: str, kernels: dict[str, str]) -> str:
    """The C++ text for a CUDA source.

    The source goes into an unnamed namespace so that its names cannot meet those of the C library;
    system headers must stay outside. Only ``extern __shared__`` has no C++ counterpart: it becomes
    a pointer, and inline PTX calls (`device/ptx.h`). Line numbers are kept.

    Raises:
        CompileError: an asm statement is not a list of plain PTX instructions.
    """
    includes = "\n".join(include.strip() for include in _SYSTEM_INCLUDE.findall(code))
    body = _SYSTEM_INCLUDE.sub("", code)
    body = _DYNAMIC_SHARED.sub(r"\1* const \2 = (\1*)emu_dynamic_shared();", body)
    body = _without_asm(body)
    exports = "\n".join(f"EMU_EXPORT({identifier}, {name})" for name, identifier in kernels.items())
    source = f'namespace {{\n#line 1 "{file_name}"\n{body}\n}}\n'
    return f'#include "cuda_on_cpu.h"\n{includes}\n{source}{exports}\n'


def _without_asm(code: str) -> str:
    """Each ``asm volatile("op %0, %1;" : "=r"(x) : "r"(y))`` as the call ``emu_ptx_op(x, y)``."""
    done = ""
    while found := _ASM.search(code):
        end, parts = _split(code, found.end())
        statement = code[found.start() : end]
        done += code[: found.start()] + _calls(parts) + "\n" * statement.count("\n")
        code = code[end:]
    return done + code


def _split(code: str, start: int) -> tuple[int, list[str]]:
    """The place behind the bracket that closes what begins at `start`, and its parts at colons."""
    parts, depth = [""], 1
    for token in _TOKEN.finditer(code, start):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if depth == 0:
            return token.end(), parts
        if depth == 1 and token[0] == ":":
            parts.append("")
        else:
            parts[-1] += token[0]
    raise CompileError(f"an asm statement that does not end: {code[start : start + 60]!r}")


def _calls(parts: Sequence[str]) -> str:
    ptx = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', parts[0])).replace("\\n", " ")
    operands = [_operand(text) for part in parts[1:3] for text in _listed(part)]
    calls = []
    for instruction in filter(None, map(str.strip, ptx.split(";"))):
        opcode, _, rest = instruction.partition(" ")
        if not re.fullmatch(r"[a-z][\w.:]*", opcode):
            raise CompileError(f"inline PTX that is not understood here: {instruction!r}")
        numbers = re.findall(r"%(\d+)|(-?\b\d+\b)", rest)
        given = [operands[int(place)] if place else literal for place, literal in numbers]
        calls.append(f"emu_ptx_{re.sub(r'[.:]+', '_', opcode)}({', '.join(given)})")
    return f"({', '.join(calls) or 'void()'})"  # without one: a word to the compiler


def _listed(part: str) -> list[str]:
    """The operands of a part: split at the commas outside brackets."""
    texts, depth = [""], 0
    for token in _TOKEN.finditer(part):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if depth == 0 and token[0] == ",":
            texts.append("")
        else:
            texts[-1] += token[0]
    return [text for text in texts if text.strip()]


def _operand(text: str) -> str:
    found = _OPERAND.match(text)
    if found is None:
        raise CompileError(f"an operand of inline PTX that is not understood here: {text!r}")
    return f"({found[1]})"
