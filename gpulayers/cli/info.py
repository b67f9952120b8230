"""``gpulayers info``: what computes here, and why."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpulayers import backend
from gpulayers.cli.output import print_json
from gpulayers.errors import BackendError, DataError, ParameterError
from gpulayers.ops import compiled, current_engine, workspace
from gpulayers.threads import thread_count

__all__ = ["run"]

_USAGE = 2  # as for an option that is wrong


def run(options: Namespace) -> int:
    """Print the report; return 0, or 2 where a variable of the environment is malformed."""
    from gpulayers.cuda import tune

    problems = _problems()
    report = backend.describe()
    try:
        picked = backend.current_backend()
    except BackendError:
        picked = "none"  # the report says why
    tuning = tune.describe() if _told(tune.enabled) is not None else None
    if options.json:
        facts = dict(line.split(":", 1) for line in report.splitlines())
        document = {name.strip(): text.strip() for name, text in facts.items()}
        document |= {
            "backend": picked,
            "dtype": _told(lambda: backend.default_dtype().name),
            "available": list(backend.available()),
            "threads": _told(thread_count),
            "engine": _told(current_engine),
            "c_kernels": _kernels().startswith("in use"),
            "c_kernels_report": _kernels(),
            "tuning": tuning,
            "problems": problems,
        }
        print_json(document)
    elif options.quiet:
        print(picked)
    else:
        print(report)
        print(f"threads:    {_told(thread_count) or 'unknown'}")
        print(f"engine:     {_told(current_engine) or 'unknown'}")
        print(f"c kernels:  {_kernels()}")
        print(f"tuning:     {'unknown' if tuning is None else _tuning(tuning)}")
    sys.stdout.flush()
    for problem in problems:
        print(f"gpulayers: error: {problem}", file=sys.stderr)
    return _USAGE if problems else 0


def _told(ask: Callable[[], Any]) -> Any:
    """What a function returns; None where a variable of the environment is in its way."""
    try:
        return ask()
    except (BackendError, ParameterError):
        return None


def _kernels() -> str:
    """What is with the kernels in C."""
    engine = _told(current_engine)
    if engine is None:
        return "not used: the engine is unknown"
    if engine in ("numpy", "reference"):
        return f"not used: the engine is {engine}"
    return _told(compiled.report) or "not used: the instruction set is unknown"


def _problems() -> list[str]:
    """What is wrong with each variable of the environment that holds something wrong."""
    from gpulayers.cuda import tune
    from gpulayers.cuda.tune_table import ENVIRONMENT as TUNE_FOLDER
    from gpulayers.ops.compiled.library import FOLDER_VARIABLE
    from gpulayers.training.datasets.locate import data_roots

    checks: tuple[Callable[[], Any], ...] = (
        _known_backend,
        backend.default_dtype,
        current_engine,
        thread_count,
        compiled.report,
        lambda: tune.switched_on(workspace.VARIABLE),
        tune.enabled,
        lambda: tune.switched_on("GPULAYERS_WARPGROUPS"),  # named in a module that needs CuPy
        lambda: data_roots(None),
        lambda: _folder(FOLDER_VARIABLE),
        lambda: _folder(TUNE_FOLDER, may_be_made=True),
    )
    found: list[str] = []
    for check in checks:
        try:
            check()
        except (ParameterError, BackendError, DataError) as error:
            found.append(str(error))
    return found


def _known_backend() -> None:
    """Raise if the variable names none; one that cannot start is spelled right."""
    name = os.environ.get("GPULAYERS_BACKEND", "").strip().lower()
    if name not in ("", "auto", *backend.NAMES):
        backend.current_backend()


def _folder(variable: str, may_be_made: bool = False) -> None:
    value = os.environ.get(variable)
    if value:
        path = Path(value).expanduser()
        if not path.is_dir() and not (may_be_made and not path.exists()):
            raise ParameterError(f"{variable}: {path} is no folder")


def _tuning(state: dict[str, Any]) -> str:
    """The state of `gpulayers.cuda.tune` in a line."""
    gpus = f" for {', '.join(state['gpus'])}" if state["gpus"] else ""
    return (
        f"{'on' if state['measures'] else 'off'} (GPULAYERS_TUNE); {state['choices']} measured "
        f"choices{gpus} in {state['folder']}"
    )
