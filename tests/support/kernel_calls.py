"""A pytest plugin (``-p tests.support.kernel_calls``): notes which compiled kernels a run called,
and fails it when one was never called."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

from gpulayers.ops import compiled
from gpulayers.ops.compiled.library import Function

_called: set[str] = set()
_original = Function.__call__


def _noting(self: Function, *arguments: Any) -> Any:
    _called.add(self.name)
    return _original(self, *arguments)


def bound_kernels() -> set[str]:
    """Names of all kernels that the modules of `gpulayers.ops.compiled` bind."""
    names = set()
    for module in pkgutil.iter_modules(compiled.__path__):
        members = vars(importlib.import_module(f"{compiled.__name__}.{module.name}")).values()
        names |= {member.name for member in members if isinstance(member, Function)}
    return names


def pytest_configure() -> None:
    Function.__call__ = _noting


def pytest_unconfigure() -> None:
    Function.__call__ = _original


def pytest_sessionfinish(session: pytest.Session) -> None:
    missing = bound_kernels() - _called
    if missing:
        print(f"\nkernels never called: {', '.join(sorted(missing))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
