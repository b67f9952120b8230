"""Turns a CUDA source into a C++ translation unit for g++; the text of kernels stays as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_SYSTEM_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<[^>]+>", re.MULTILINE)
_BOUNDS = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
_C_KERNEL = re.compile(rf'extern\s+"C"\s+{_BOUNDS}__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
    r"((?:(?:unsigned|signed)\s+)?\w+)\s+(\w+)\s*\[\s*\]\s*;"
)


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
    a pointer. Line numbers are kept.
    """
    includes = "\n".join(include.strip() for include in _SYSTEM_INCLUDE.findall(code))
    body = _SYSTEM_INCLUDE.sub("", code)
    body = _DYNAMIC_SHARED.sub(r"\1* const \2 = (\1*)emu_dynamic_shared();", body)
    exports = "\n".join(f"EMU_EXPORT({identifier}, {name})" for name, identifier in kernels.items())
    source = f'namespace {{\n#line 1 "{file_name}"\n{body}\n}}\n'
    return f'#include "cuda_on_cpu.h"\n{includes}\n{source}{exports}\n'
