"""``gpulayers completion``: scripts for the shells, made by shtab."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from gpulayers.cli.arguments import DEVICES, DTYPES, PRECISIONS, SHELLS, make_parser, subparsers
from gpulayers.errors import GPULayersError

__all__ = ["run"]

_FILES = ("images", "config", "out", "path", "resume", "checkpoint")
_FOLDERS = ("data_dir",)


def run(options: Namespace) -> int:
    """Print the completion script of a shell; 0."""
    try:
        import shtab
    except ImportError:
        raise GPULayersError("completion needs shtab: pip install shtab") from None
    parser, _ = make_parser()
    choices = _choices()
    for command in subparsers(parser).values():
        for action in command._actions:
            complete: Any = None
            if action.dest in _FILES:
                complete = shtab.FILE
            elif action.dest in _FOLDERS:
                complete = shtab.DIRECTORY
            elif action.dest in choices:
                action.choices = choices[action.dest]
            if complete is not None:
                action.complete = complete  # pyright: ignore[reportAttributeAccessIssue]
    print(shtab.complete(parser, shell=options.shell))
    return 0


def _choices() -> dict[str, tuple[str, ...]]:
    """The names that options take."""
    from gpulayers.models import MODELS
    from gpulayers.training import DATASETS

    return {
        "model": tuple(MODELS),
        "data": DATASETS,
        "device": DEVICES,
        "dtype": DTYPES,
        "precision": PRECISIONS,
        "shell": SHELLS,
        "optimizer": ("SGD", "AdaGrad", "RMSProp", "Adam", "AdamW"),
        "schedule": ("constant", "exponential", "cosine", "onecycle", "warmup", "noam", "king"),
    }
