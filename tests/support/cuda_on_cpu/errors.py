"""What can go wrong when a kernel is built or run on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EmulatorUnavailableError(RuntimeError):
    """This machine cannot build kernels for the CPU; the message says what is missing."""


class CompileError(RuntimeError):
    """g++ refused a kernel source; the message is its output."""


class LaunchError(TypeError):
    """A launch that CuPy or the driver would refuse, or whose arguments it would misread."""


@dataclass(frozen=True)
class Problem:
    """One finding of the checker.

    ``kind`` is one of: out-of-bounds, out-of-bounds-shared, null-pointer, wild-pointer,
    misaligned-access, race-in-block, race-between-blocks, uninitialised-shared,
    uninitialised-global, barrier-divergence, barrier-deadlock, grid-deadlock,
    warp-deadlock, warp-mask, shuffle-source, undefined-behaviour, assert, trap, timeout.
    """

    kind: str
    site: str
    other_site: str
    thread: str
    text: str

    def __str__(self) -> str:
        other = f" (at {self.other_site})" if self.other_site else ""
        return f"{self.kind} at {self.site or '?'}, {self.thread}: {self.text}{other}"


class KernelError(RuntimeError):
    """A kernel misbehaved; ``problems`` lists how and where."""

    def __init__(self, kernel: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} problem(s) in kernel {kernel}:\n{lines}")

    @property
    def kinds(self) -> set[str]:
        """The kinds of problem found."""
        return {problem.kind for problem in self.problems}
