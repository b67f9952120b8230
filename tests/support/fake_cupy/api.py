"""The committed snapshot of CuPy's names and signatures (written by snapshot.py)."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

API: dict[str, Any] = json.loads(Path(__file__).with_name("api.json").read_text())
VERSION: str = API["version"]


@functools.cache
def signature_of(parameters: str, method: bool = False) -> inspect.Signature:
    """The signature of a stored parameter list, such as "(a, axis=..., out=...)"."""
    signature = inspect.signature(eval(f"lambda {parameters[1:-1]}: None"))
    if method:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    return signature


def bind(name: str, signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The given arguments by parameter name, or the TypeError that CuPy would raise."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}() {error}") from None


def members(name: str) -> dict[str, str]:
    """The snapshot entries of a class, without those that every object has."""
    return API[f"class {name}"]
