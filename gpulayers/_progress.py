"""What is shown while something trains: a bar on a terminal or in a notebook, lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import IO, Any, Self

_LOOK_SECONDS = 0.2  # drawing takes time from the training; on a GPU so does reading the loss


class Display:
    """Shows nothing; what the others share. Leaving its ``with`` block takes the bar away."""

    def start(self, total: int, done: int = 0, label: str = "") -> None:
        """`total` steps begin, `done` of which lie behind already."""

    def due(self) -> bool:
        """Whether enough time has passed for another `show`."""
        return False

    def show(self, done: int, label: str, figures: str = "", total: int | None = None) -> None:
        """`done` steps are made; what and how well; a better known `total`."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def stop(self) -> None:
        """The end, in whatever way."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Lines(Display):
    """Messages only, one line each: for logs, files and pipes.

    Parameters
    ----------
    stream : text stream, optional
        Standard output if None.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream

    def message(self, text: str) -> None:
        print(text, file=self.stream or sys.stdout, flush=True)


class Bar(Display):
    """A bar of rich's with a label, the steps, figures and the time left; messages stay above it.

    Parameters
    ----------
    console : rich.console.Console
    """

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.rich = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=not console.is_jupyter,  # there it would make HTML of each line
        )
        self._task: Any = None
        self._shown = time.perf_counter()

    def start(self, total: int, done: int = 0, label: str = "") -> None:
        self._task = self.rich.add_task(label, total=total, completed=done, figures="")
        self.rich.start()

    def due(self) -> bool:
        return time.perf_counter() - self._shown > _LOOK_SECONDS

    def show(self, done: int, label: str, figures: str = "", total: int | None = None) -> None:
        self._shown = time.perf_counter()
        self.rich.update(
            self._task, total=total, completed=done, description=label, figures=figures
        )

    def message(self, text: str) -> None:
        if self.console.is_jupyter:
            print(text, flush=True)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        self.rich.stop()


def make_display(stream: IO[str] | None = None) -> Display:
    """Return a `Bar` where there is rich and a terminal or a notebook, else `Lines`.

    A notebook also needs ipywidgets for a bar: rich draws with it.

    Parameters
    ----------
    stream : text stream, optional
        Standard output if None. Another one is never taken for the notebook.
    """
    notebook = stream is None and in_notebook()
    stream = stream or sys.stdout
    if notebook and not importlib.util.find_spec("ipywidgets"):
        return Lines(stream)
    if not notebook and not getattr(stream, "isatty", lambda: False)():
        return Lines(stream)
    try:
        from rich.console import Console
    except ImportError:
        lines = Lines(stream)
        lines.message("no progress bar: rich is not installed (pip install rich)")
        return lines
    console = Console(file=stream, force_jupyter=notebook)
    if notebook or (console.is_terminal and not console.is_dumb_terminal):
        return Bar(console)
    return Lines(stream)


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
