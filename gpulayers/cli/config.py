"""Configuration files: the options of ``gpulayers train`` as TOML, read and written."""

from __future__ import annotations

import argparse
import json
import platform
import tomllib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpulayers.cli.arguments import RUN_OPTIONS, subparsers
from gpulayers.errors import ParameterError, suggest

__all__ = ["CONFIG_FILE", "apply_config", "config_text"]

CONFIG_FILE = "config.toml"
_KEYS = (*RUN_OPTIONS, "out")


def apply_config(options: Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in the options that the command line left open from the file ``--config`` names.

    Keys are the options' names, with dashes or underscores. Relative paths are taken from the
    current folder, as on the command line.

    Raises
    ------
    ParameterError
        If the file cannot be read, is no TOML, or a key or its value is none of an option.
    """
    path = Path(options.config)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"cannot read --config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"--config {path} is not valid TOML: {error}") from error
    actions = {action.dest: action for action in subparsers(parser)["train"]._actions}
    seen: set[str] = set()
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in _KEYS:
            known = [k.replace("_", "-") for k in _KEYS]
            raise ParameterError(
                f"--config {path}: unknown key {key!r}{suggest(name.replace('_', '-'), known)}; "
                f"known are {', '.join(known)}"
            )
        if name in seen:
            raise ParameterError(f"--config {path}: {key} is there twice, with - and with _")
        seen.add(name)
        checked = _checked(f"--config {path}: {key}", actions[name], value)
        if getattr(options, name) is None:
            setattr(options, name, checked)


def _checked(where: str, action: argparse.Action, value: Any) -> Any:
    """`value` as the option's own check returns it."""
    if action.nargs == 0:  # a flag
        if not isinstance(value, bool):
            raise ParameterError(f"{where} must be true or false, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ParameterError(f"{where} must be a string or a number, got {value!r}")
    check: Any = action.type
    if check is None:
        if not isinstance(value, str):
            raise ParameterError(f"{where} must be a string, got {value!r}")
        return value
    try:
        checked = check(str(value))
    except argparse.ArgumentTypeError as error:
        raise ParameterError(f"{where}: {error}") from error
    if isinstance(checked, str) != isinstance(value, str):
        expected = "a string" if isinstance(checked, str) else "a number, without quotes"
        raise ParameterError(f"{where} must be {expected}, got {value!r}")
    return checked


def config_text(settings: dict[str, Any], changes: Sequence[str] = ()) -> str:
    """Return the TOML of a run: every option that has a value, its origin as a comment.

    Parameters
    ----------
    settings : dict of option name to str, int, float, bool or None (left out)
    changes : how they were changed while the run went on; then they alone do not repeat it
    """
    import numpy as np

    import gpulayers

    first = ["# Repeats this run: gpulayers train --config config.toml"]
    if changes:
        first = [
            "# The last settings of a run that was resumed with others: --config with this file",
            "# trains by these from the beginning, and may end elsewhere. Changed were",
            *(f"# - {change}" for change in changes),
        ]
    lines = [
        *first,
        f"# Written by gpulayers {gpulayers.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}.",
    ]
    for name, value in settings.items():
        if value is not None:
            lines.append(f"{name.replace('_', '-')} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON
