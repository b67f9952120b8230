"""``gpulayers info``: what computes here, and why."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import gpulayers
from gpulayers import backend
from gpulayers.cli.output import print_json
from gpulayers.ops import compiled
from gpulayers.threads import thread_count

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print the report; 0."""
    from gpulayers.cuda import tune

    report = backend.describe()
    try:
        picked = backend.current_backend()
    except gpulayers.errors.BackendError:
        picked = "none"  # the report says why
    if options.json:
        facts = dict(line.split(":", 1) for line in report.splitlines())
        document = {name.strip(): text.strip() for name, text in facts.items()}
        missing = compiled.unavailable_reason()
        document |= {
            "backend": picked,
            "dtype": backend.default_dtype().name,
            "available": list(backend.available()),
            "threads": thread_count(),
            "c_kernels": missing is None,
            "c_kernels_report": compiled.report(),
            "tuning": tune.describe(),
        }
        print_json(document)
    elif options.quiet:
        print(picked)
    else:
        print(report)
        print(f"threads:    {thread_count()}")
        print(f"c kernels:  {compiled.report()}")
        print(f"tuning:     {_tuning(tune.describe())}")
    return 0


def _tuning(state: dict[str, Any]) -> str:
    """The state of `gpulayers.cuda.tune` in a line."""
    gpus = f" for {', '.join(state['gpus'])}" if state["gpus"] else ""
    return (
        f"{'on' if state['measures'] else 'off'} (GPULAYERS_TUNE); {state['choices']} measured "
        f"choices{gpus} in {state['folder']}"
    )
