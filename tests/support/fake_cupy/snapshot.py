"""Write `api.json`: the public names and signatures of the CuPy that is installed.

    python -m tests.support.fake_cupy.snapshot

CuPy imports without a GPU, so this runs anywhere; the stand-in and its tests then need no CuPy.
A function is stored as its parameter list, defaults shown as `...`:  "(a, axis=..., out=...)".
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

PATH = Path(__file__).with_name("api.json")
MODULES = (
    "cupy",
    "cupy.cuda",
    "cupy.fft",
    "cupy.lib.stride_tricks",
    "cupy.linalg",
    "cupy.random",
    "cupyx",
)
CLASSES = (
    "cupy.ndarray",
    "cupy.RawKernel",
    "cupy.RawModule",
    "cupy.cuda.Device",
    "cupy.cuda.Event",
    "cupy.cuda.Graph",
    "cupy.cuda.Memory",
    "cupy.cuda.MemoryPool",
    "cupy.cuda.MemoryPointer",
    "cupy.cuda.PythonFunctionAllocator",
    "cupy.cuda.Stream",
    "cupy.ufunc",
)
RUNTIME = ("deviceSynchronize", "driverGetVersion", "getDevice", "getDeviceCount")
RUNTIME += ("getDeviceProperties", "memGetInfo", "runtimeGetVersion", "CUDARuntimeError")
_UNKNOWN = "(*args, **kwargs)"


def parameters_of(function: Any) -> str:
    """The parameter list of `function` with defaults written as `...`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return _parameters_from_docstring(function)
    plain = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...)
        for p in signature.parameters.values()
    ]
    return str(inspect.Signature(plain)).replace("Ellipsis", "...")


def _parameters_from_docstring(function: Any) -> str:
    """Cython functions carry their signature on the first line of the docstring."""
    first = (getattr(function, "__doc__", None) or "").strip().split("\n")[0]
    match = re.match(r"[\w.]+\((.*)\)", first)
    if not match:
        return _UNKNOWN
    parts = []
    for part in (p.strip() for p in match[1].split(",") if p.strip()):
        name, _, default = part.partition("=")
        name = name.split(":")[0].split()[-1]  # drop "int32 axis" and "axis: int"
        parts.append(f"{name}=..." if default else name)
    text = f"({', '.join(parts)})"
    try:
        eval(f"lambda {text[1:-1]}: None")
    except SyntaxError:
        return _UNKNOWN
    return text


def describe_module(module: ModuleType) -> dict[str, str]:
    """name -> "ufunc <nin> <nout>", "type", "module", "value" or a parameter list."""
    import cupy

    entries = {}
    for name in dir(module):
        if name.startswith("_"):
            continue
        member = getattr(module, name)
        if isinstance(member, cupy.ufunc):
            entries[name] = f"ufunc {member.nin} {member.nout}"
        elif isinstance(member, type):
            entries[name] = "type"
        elif inspect.ismodule(member):
            entries[name] = "module"
        elif callable(member):
            entries[name] = parameters_of(member)
        else:
            entries[name] = "value"
    return entries


def describe_class(cls: type) -> dict[str, str]:
    """member -> "attribute" or a parameter list; `__special__` ones where `object` has another."""
    entries = {}
    for name in dir(cls):
        member = getattr(cls, name)
        special = name.startswith("__") and name.endswith("__")
        if special and name in dir(object):
            if member == getattr(object, name) or name in ("__class__", "__doc__"):
                continue
        elif name.startswith("_") and not special:
            continue
        entries[name] = parameters_of(member) if callable(member) else "attribute"
    return entries


def describe_installed() -> dict[str, Any]:
    """The whole snapshot, from the CuPy of this environment."""
    import cupy

    api: dict[str, Any] = {"version": cupy.__version__}
    for name in MODULES:
        api[name] = describe_module(importlib.import_module(name))
    for name in CLASSES:
        owner, _, attribute = name.rpartition(".")
        api[f"class {name}"] = describe_class(getattr(importlib.import_module(owner), attribute))
    runtime = importlib.import_module("cupy.cuda.runtime")
    api["cupy.cuda.runtime"] = {n: "function" for n in RUNTIME if hasattr(runtime, n)}
    return api


def main() -> None:
    api = describe_installed()
    PATH.write_text(json.dumps(api, indent=0, sort_keys=True) + "\n")
    sizes = {name: len(entries) for name, entries in api.items() if name != "version"}
    print(f"{PATH.name}: CuPy {api['version']}, {PATH.stat().st_size} bytes, {sizes}")


if __name__ == "__main__":
    main()
