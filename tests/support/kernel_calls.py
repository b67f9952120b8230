"""A pytest plugin (``-p tests.support.kernel_calls``): notes which compiled kernels a run called,
and fails it when one was never called.

Of the cases of a test a third runs, if there are many, with every value of every argument; all do
with ``GPULAYERS_TEST_CASES=all``.
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
from tests.support.fair import fair_part

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
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    out: set[pytest.Item] = set()
    for group in groups.values():
        if len(group) > MANY:
            kept = fair_part([(item.nodeid, item.callspec.params) for item in group], EVERY)
            out.update(item for place, item in enumerate(group) if place not in kept)
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]


def pytest_unconfigure() -> None:
    Function.__call__ = _original


def pytest_sessionfinish(session: pytest.Session) -> None:
    missing = bound_kernels() - _called
    if missing:
        print(f"\nkernels never called: {', '.join(sorted(missing))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
