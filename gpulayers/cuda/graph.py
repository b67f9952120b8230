"""Capturing what a function launches, to be launched again as one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import cupy

from gpulayers.cuda.arena import Arena
from gpulayers.errors import BackendError

__all__ = ["Recorder", "launch"]


class Recorder:
    """Captures on a stream of its own, in memory of its own.

    What a captured function allocates and lets go of is used by every replay, so it must not go to
    anybody else: the recorder's arena serves captures alone. Keep the recorder as long as its
    graphs, and of each graph the arrays that are to be read: let go of, they go to the next one.
    """

    def __init__(self) -> None:
        self._arena = Arena()
        self._mark = self._arena.mark()  # what came later is of a capture that failed
        self._stream = cupy.cuda.Stream(non_blocking=True)

    @property
    def nbytes(self) -> int:
        """Bytes that the captures take."""
        return self._arena.nbytes

    def tidy(self) -> None:
        """Give the device back what a capture that failed has left."""
        self._arena.back_to(self._mark)

    def capture(self, what: str, run: Callable[[], object]) -> Any:
        """Return the graph of what `run` launches; nothing is computed meanwhile.

        Raises
        ------
        BackendError
            If `run` raises, or does what a captured stream may not; the stream can be used again.
        MemoryError
            If there is not enough memory, even after CuPy's pool gave back what it keeps for reuse.
        """
        self.tidy()
        try:
            found = self._captured(what, run)
        except MemoryError:
            cupy.get_default_memory_pool().free_all_blocks()
            found = self._captured(what, run)
        self._mark = self._arena.mark()
        return found

    def _captured(self, what: str, run: Callable[[], object]) -> Any:
        with cupy.cuda.using_allocator(self._arena.malloc), self._stream:
            self._stream.begin_capture()
            try:
                run()
            except BaseException as error:
                self._end_broken()
                if isinstance(error, Exception) and not isinstance(error, MemoryError):
                    raise BackendError(f"{what} could not be captured: {error}") from error
                raise
            try:
                return self._stream.end_capture()
            except Exception as error:  # something in `run` was refused, and nobody said so
                self._renew()
                raise BackendError(f"{what} could not be captured: {error}") from error

    def _end_broken(self) -> None:
        """A stream goes on capturing until this is called, also after an error."""
        try:
            self._stream.end_capture()
        except Exception:  # the capture was no longer valid: each driver says so in its own way
            self._renew()

    def _renew(self) -> None:
        """Another stream; a lost device refuses that too, but the first error is to be told."""
        with contextlib.suppress(Exception):
            self._stream = cupy.cuda.Stream(non_blocking=True)


def launch(graph: Any) -> None:
    """Launch a graph on the current stream, in the order of what else is launched there."""
    graph.launch(cupy.cuda.get_current_stream())
