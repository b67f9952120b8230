"""Blocks of threads that run a kernel's PTX.

All threads of a block at the lowest instruction run it together, so that those that went different
ways meet again. Lanes of a warp that must come together wait for one another; `bar.sync` waits for
all threads of the block. Nothing here depends on how fast anything is: a thread that sleeps lets
all others go on, and the blocks of a cooperative launch take turns whenever all of one are waiting.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.support.ptx.binding import Binder, Group, Step
from tests.support.ptx.memory import FaultError, Global, Local, Shared
from tests.support.ptx.parse import Entry

__all__ = ["Block", "PtxError"]

Array = np.ndarray[Any, Any]
_READY, _BARRIER, _WARP, _ASLEEP, _EXITED, _ABSENT = range(6)
_END = 1 << 30
MOST_STEPS = 2_000_000


class PtxError(RuntimeError):
    """A kernel did what PTX does not allow, or holds what is not interpreted; `kind` says which."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Block:
    """The registers, shared memory and code of a block, to be run as one or more of a grid."""

    def __init__(
        self,
        entry: Entry,
        outside: Global,
        parameters: dict[str, bytes],
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
    ) -> None:
        count = int(np.prod(block))
        self.entry, self.count, self.threads = entry, count, -(-count // 32) * 32
        variables = {"shared": [], "local": []}
        for variable in sorted(entry.variables.values(), key=lambda v: v.count is None):
            size = shared_bytes if variable.count is None else variable.count
            variables[variable.space].append((variable.name, variable.align, size))
        self.shared = Shared(self.threads, variables["shared"])
        local = Local(self.threads, variables["local"])
        self.special = _special(self.threads, grid, block)
        self.binder = Binder(
            entry, self.threads, parameters, self.special, outside, self.shared, local
        )
        self.code = [self._bound(place) for place in range(len(entry.instructions))]
        self.next, self.state = np.zeros(self.threads, np.int64), np.zeros(self.threads, np.int64)
        self.steps = 0

    def _bound(self, place: int) -> Step:
        try:
            return self.binder.bind(self.entry.instructions[place])
        except FaultError as fault:
            raise self._error(fault, place) from None

    def _error(self, fault: FaultError, place: int) -> PtxError:
        where = self.entry.instructions[place].place
        who = f", threads {fault.threads[:8]}" if fault.threads else ""
        return PtxError(fault.kind, f"{fault.text}{who}\n  {where}\n  in {self.entry.name}")

    def run(self, number: Sequence[int]) -> Iterator[None]:
        """Runs the block of this place in the grid to its end; yields whenever nobody but sleepers
        could go on."""
        for axis, value in zip("xyz", number, strict=True):
            self.special[f"%ctaid.{axis}"][:] = value
        self.binder.reset()
        self.next[:], self.state[:], self.steps = 0, _READY, 0
        self.state[self.count :] = _ABSENT
        with np.errstate(all="ignore"):
            while True:
                ready = self.state == _READY
                if ready.any():
                    self._advance(ready)
                elif (self.state == _ASLEEP).any():
                    yield
                    self.state[self.state == _ASLEEP] = _READY
                elif not self._pass_barrier():
                    return

    def _advance(self, ready: Array) -> None:
        """The threads at the lowest instruction go on, up to where others are."""
        places = self.next[ready]
        place = int(places.min())
        mask = ready & (self.next == place)
        others = places[places > place]
        stop = int(others.min()) if len(others) else _END
        group = Group(mask)
        try:
            while place < stop:
                step = self.code[place]
                self.steps += 1
                if step.kind == "plain":
                    step.run(group)
                    place += 1
                elif step.kind == "branch":
                    taken = self._taken(step, group.mask)
                    if not (taken.all() or not taken.any()):
                        self.next[group.mask] = np.where(taken, step.target, place + 1)
                        return
                    place = step.target if taken[0] else place + 1
                elif step.kind == "warp":
                    together = self._together(step, group, place)
                    if together is None:
                        return
                    group, place = together, place + 1
                else:
                    self._stop(step, group.mask, place)
                    return
                if self.steps > MOST_STEPS:
                    raise FaultError("timeout", f"more than {MOST_STEPS} instructions")
        except FaultError as fault:
            raise self._error(fault, place) from None
        self.next[group.mask] = place

    def _taken(self, step: Step, mask: Array) -> Array:
        """Of the threads of the mask."""
        if step.predicate is None:
            return np.ones(1, np.bool_)
        return step.predicate[mask] ^ step.negated

    def _stop(self, step: Step, mask: Array, place: int) -> None:
        if step.kind == "exit":  # nobody waits for those any more
            left = np.repeat(mask.reshape(-1, 32).any(axis=1), 32)
            self.state[left & (self.state == _WARP)] = _READY
        self.next[mask] = place + (step.kind == "sleep")
        self.state[mask] = {"exit": _EXITED, "barrier": _BARRIER, "sleep": _ASLEEP}[step.kind]

    def _together(self, step: Step, group: Group, place: int) -> Group | None:
        """Runs what lanes do together; who goes on, or None where some have to wait for others."""
        mask = group.mask | ((self.state == _WARP) & (self.next == place))
        here = mask.reshape(-1, 32)
        wanted = self._wanted(step, mask)
        complete = (here | ~wanted).all(axis=1)
        done = np.repeat(complete, 32) & mask
        if done.any():
            step.run(group if group.full else Group(done))
        left = mask & ~done
        self.state[done] = _READY
        if not left.any():
            return Group(done)
        self.next[done], self.next[left] = place + 1, place
        self.state[left] = _WARP
        return None

    def _wanted(self, step: Step, mask: Array) -> Array:
        """Which lanes have to come: (warps, 32)."""
        here = mask.reshape(-1, 32)
        if step.members is None:  # .aligned: all
            wanted = np.repeat(here.any(axis=1)[:, None], 32, axis=1)
            gone = wanted & (self.state >= _EXITED).reshape(-1, 32)
            if gone.any():
                text = "lanes that have left do not take part"
                raise FaultError("warp-divergence", text, np.flatnonzero(gone))
            return wanted
        members = np.broadcast_to(step.members, self.threads).reshape(-1, 32)
        first = np.take_along_axis(members, here.argmax(axis=1)[:, None], axis=1)
        bits = (first >> np.arange(32, dtype=np.uint32)) & np.uint32(1) > 0
        wrong = here & ((members != first) | ~bits)
        if wrong.any():
            text = "lanes name others than those that come, or not themselves"
            raise FaultError("warp-mask", text, np.flatnonzero(wrong))
        gone = (self.state >= _EXITED).reshape(-1, 32)
        return bits & ~gone & here.any(axis=1)[:, None]

    def _pass_barrier(self) -> bool:
        """All threads that wait there go on; False if all have left."""
        state = self.state[: self.count]
        waiting = state == _BARRIER
        if (state == _EXITED).all():
            return False
        if (state == _WARP).any():
            thread = int(np.flatnonzero(state == _WARP)[0])
            raise self._error(
                FaultError("warp-divergence", "waits for lanes that do not come", [thread]),
                int(self.next[thread]),
            )
        thread = int(np.flatnonzero(waiting)[0])
        place = int(self.next[thread])
        if not waiting.all():
            gone = np.flatnonzero(~waiting)
            fault = FaultError("barrier-divergence", "some have left, others wait", gone)
            raise self._error(fault, place)
        places = np.full(self.threads, -1)
        places[: self.count] = self.next[: self.count]
        rows = places.reshape(-1, 32)
        if ((rows != rows[:, :1]) & (rows >= 0)).any():
            text = "lanes of a warp wait at different barriers"
            raise self._error(FaultError("barrier-divergence", text), place)
        self.next[: self.count] += 1
        self.state[: self.count] = _READY
        self.shared.barriers += 1
        return True


def _special(threads: int, grid: Sequence[int], block: Sequence[int]) -> dict[str, Array]:
    """The registers that say where a thread is, but for the block's number."""
    ids = np.arange(threads)
    found = {"%laneid": ids % 32, "%tid.x": ids % block[0]}
    found["%tid.y"] = ids // block[0] % block[1]
    found["%tid.z"] = ids // (block[0] * block[1])
    sizes = {"%ntid": block, "%ctaid": (0, 0, 0), "%nctaid": grid}
    for (name, values), (place, axis) in itertools.product(sizes.items(), enumerate("xyz")):
        found[f"{name}.{axis}"] = np.full(threads, values[place])
    return {name: values.astype(np.uint32) for name, values in found.items()}
