"""GPU tests of which one can fail for good: a pytest plugin, ``-p tests.support.lost_device``.

After an illegal address or another fault of a kernel each call of the process fails, and so would
all tests behind. The plugin waits for the device after each GPU test, so that a fault belongs to
the test that made it, and ends a process whose device is lost, or whose test hangs: pytest-xdist
(``-n``) goes on in a fresh one with the next test. Without xdist the run ends there.

Option ``--results FILE`` adds a line of JSON for each test that ran, at once.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["LIMIT", "LOST"]

#: seconds that a test may take
LIMIT = 120
#: what the message of a test begins with that has lost the device
LOST = "the CUDA device is lost: "
_LONGEST = 2000

_lost = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", help="file to which a line of JSON is added for each test")


def why_lost() -> str:
    """What the device answers when it is waited for, if that is an error; else nothing."""
    cupy: Any = sys.modules.get("cupy")
    if cupy is None:
        return ""
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and item.get_closest_marker("gpu"):
        why = why_lost()
        if why:
            item.config.stash[_lost] = why
            if report.passed:
                report.outcome = "failed"
                report.longrepr = LOST + why
            else:
                report.longrepr = f"{LOST}{why}\n{report.longreprtext}"
    return report


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:200] + " ... " + text[-_LONGEST:]


class _Results:
    """Writes the lines; in the process that hears of all tests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        line = {
            "test": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "seconds": round(getattr(report, "duration", 0.0), 3),
        }
        if report.failed:
            message = report.longreprtext
            if message.startswith("[gw"):  # xdist says first which process it was
                message = message.partition("\n")[2]
            line["message"] = _short(message)
            line["lost"] = message.startswith(LOST)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _End:
    """Ends a process whose device is lost, after what else is done with the test's report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        why = self._config.stash.get(_lost, "")
        if why and hasattr(self._config, "workerinput"):
            os._exit(1)  # whose place another process takes
        elif why:
            pytest.exit(f"{nodeid}: {LOST}{why}", returncode=1)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_End(config))
    path = config.getoption("--results")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results(Path(path)))
