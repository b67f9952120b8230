"""A pytest plugin (``-p tests.support.kernel_calls``): notes which compiled kernels a run called,
and fails it when one was never called.

Of the cases of a test every third runs, if there are many, unless ``GPULAYERS_TEST_CASES=all``:
three has no factor in common with most numbers of dtypes and of threads, so each shape is met.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections import defaultdict
from typing import Any

import pytest

from gpulayers.ops import compiled
from gpulayers.ops.compiled.library import Function

EVERY, MANY = 3, 12
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


@pytest.hookimpl(trylast=True)  # when the marks have been asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("GPULAYERS_TEST_CASES"):
        return
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    chosen = [case for g in groups.values() for case in g[:: EVERY if len(g) > MANY else 1]]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def pytest_unconfigure() -> None:
    Function.__call__ = _original


def pytest_sessionfinish(session: pytest.Session) -> None:
    missing = bound_kernels() - _called
    if missing:
        print(f"\nkernels never called: {', '.join(sorted(missing))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
