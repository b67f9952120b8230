"""What commands print: the result on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from typing import Any

from gpulayers._types import is_dict, is_sequence
from gpulayers.errors import ImageScaleWarning

__all__ = ["note", "print_json", "set_up_logging", "show_warnings", "verbose"]


def print_json(document: Any) -> None:
    """Print the one JSON document of ``--json``; NaN and infinity, which JSON lacks, as null."""
    import json

    print(json.dumps(_plain(document), indent=1))


def _plain(value: Any) -> Any:
    if is_dict(value):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if is_sequence(value):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def note(options: Namespace, text: str) -> None:
    """Say something on standard error, unless ``--quiet``."""
    if not options.quiet:
        print(text, file=sys.stderr, flush=True)


def verbose(options: Namespace, text: str) -> None:
    """Say something on standard error with ``--verbose``."""
    if options.verbose:
        print(text, file=sys.stderr, flush=True)


def set_up_logging(options: Namespace) -> None:
    """With ``--verbose`` the library's log messages go to standard error."""
    if getattr(options, "verbose", False):
        import logging  # not before a help text: it takes as long as all the rest

        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", force=True)
        logging.getLogger("gpulayers").setLevel(logging.DEBUG)


def show_warnings() -> None:
    """Show the library's own as one line; for within `warnings.catch_warnings`."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, ImageScaleWarning):
            print(f"gpulayers: warning: {message}", file=sys.stderr, flush=True)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
