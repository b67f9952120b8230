"""The command ``gpulayers``: info, train, evaluate, predict, export, bench, tune, demo, completion.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from gpulayers.cli.arguments import make_parser, parse
from gpulayers.cli.output import set_up_logging, show_warnings
from gpulayers.cli.threads import limit_threads
from gpulayers.errors import GPULayersError, ParameterError, suggest

__all__ = ["main"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_OF_THE_GPU = ("CUDARuntimeError", "CUDADriverError")  # CuPy's, which is not imported here


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own if None); return the exit code.

    Errors are one message on standard error; ``--debug`` lets them through with a traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = make_parser()
    if not arguments:
        parser.print_help()
        return USAGE
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        parser.error(f"unknown command {arguments[0]!r}{suggest(arguments[0], commands)}")
    options = parse(parser, arguments)
    if options.debug:
        return _run(options, parser)
    try:
        return _run(options, parser)
    except ParameterError as error:
        return _complain(str(error), USAGE)
    except GPULayersError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "stopped", INTERRUPTED, "")
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError as error:
        return _complain(f"out of memory; try a smaller --batch-size or --model. {error}", FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", FAILED)
    except Exception as error:
        if type(error).__name__ in _OF_THE_GPU:
            return _complain(
                f"the GPU or its driver failed: {error}; a training that was under way goes on "
                "from its last checkpoint with --resume",
                FAILED,
            )
        text = f"{type(error).__name__}: {error} (unexpected; --debug shows the traceback)"
        return _complain(text, FAILED)


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if getattr(options, "config", None) is not None:
        from gpulayers.cli.config import apply_config

        apply_config(options, parser)
    limit_threads(options)
    set_up_logging(options)
    with warnings.catch_warnings():
        show_warnings()
        return importlib.import_module(f"gpulayers.cli.{options.command}").run(options)


def _complain(text: str, code: int, label: str = "error: ") -> int:
    print(f"gpulayers: {label}{text}", file=sys.stderr, flush=True)
    return code
