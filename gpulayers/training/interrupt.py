"""Ctrl-C that waits until the running training step is finished."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["DeferredInterrupt"]


class DeferredInterrupt:
    """Inside the ``with`` block the first Ctrl-C only sets `requested`; the second one raises.

    A step cut in the middle would leave half of the parameters updated. Signals can be handled in
    the main thread only; elsewhere (where Ctrl-C never arrives) this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: Any = None
        self._active = False

    def __enter__(self) -> DeferredInterrupt:
        former = signal.getsignal(signal.SIGINT)
        # SIG_IGN (a background job) stays ignored; a handler not set from Python stays too
        if threading.current_thread() is threading.main_thread() and callable(former):
            self._former, self._active = former, True
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._former)
            self._active = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
