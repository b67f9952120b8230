"""``gpulayers info``: what computes here, and why."""

from __future__ import annotations

from argparse import Namespace

import gpulayers
from gpulayers import backend
from gpulayers.cli.output import print_json
from gpulayers.ops import compiled
from gpulayers.threads import thread_count

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print the report; 0."""
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
        }
        print_json(document)
    elif options.quiet:
        print(picked)
    else:
        print(report)
        print(f"threads:    {thread_count()}")
        print(f"c kernels:  {compiled.report()}")
    return 0
