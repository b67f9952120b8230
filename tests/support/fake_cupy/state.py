"""What a GPU would feel, and the rules a captured stream imposes.

Every operation of the stand-in reports here: `note("sync")`, `note("h2d")`, ... The events are

    launch            an operation that starts at least one kernel   kernel:<name>  a RawKernel
    kernel_bytes      sizes of the arrays that RawKernels get
    alloc             a new array from the memory pool               alloc_bytes    its size
    alloc:<dtype>     the same by dtype
    sync              the host waits for the device                  iterate        `for x in array`
    h2d, d2h          copies between host and device                 graph_launch   a graph replay

`count()` counts them, `forbid(...)` turns them into errors.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class DeviceRuleError(RuntimeError):
    """Something happened inside `forbid(...)`, or something a device leaves undefined was asked."""


class CaptureError(RuntimeError):
    """An operation that CuPy refuses while the current stream is being captured."""


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError."""

    def __init__(self, status: int, name: str = "", text: str = "") -> None:
        super().__init__(f"{name}: {text}" if name else f"CUDA error {status}")
        self.status = status


def owner_of(array: np.ndarray) -> np.ndarray:
    """The NumPy array that owns the memory `array` looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


POISON = {"float16": 0x7EAD, "bfloat16": 0x7FDE, "float32": 0x7FC0DEAD}
POISON |= {"float64": 0x7FF8_DEAD_DEAD_BEEF}  # NaNs that arithmetic does not make


def _bits(array: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The array as unsigned integers, and the pattern that stands for "never written"."""
    if array.dtype.name in POISON:
        return array.view(f"u{array.itemsize}"), POISON[array.dtype.name]
    if array.dtype.kind in "iu":
        return array, np.iinfo(array.dtype).max // 3
    return array, None


def poison(array: np.ndarray) -> None:
    """Fill with what nobody may rely on: NaN, or a large odd integer."""
    bits, pattern = _bits(array)
    bits.fill(True if pattern is None else pattern)


def is_poisoned(array: np.ndarray) -> bool:
    """Whether every element still is what `poison` left (small integer arrays: unknown, False)."""
    bits, pattern = _bits(array)
    if pattern is None or not array.size or (array.itemsize < 4 and array.size < 16):
        return False
    return bool((bits == pattern).all())


class Recording:
    """The operations of one stream capture.

    CUDA runs nothing while it captures. Here the operations do run (the host code needs their
    shapes), so what they wrote is put back at the end and what they allocated is poisoned; the
    values appear when the graph is launched, as on a device.

    A graph keeps addresses, not arrays. `uses` notes the memory behind each array that is written
    or made, and behind each that a kernel of ours gets, so that a launch can say when it is not the
    graph's any more. (What NumPy's functions only read is not followed.)
    """

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.invalid = ""
        self.launches = 0
        self._before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._fresh: dict[int, np.ndarray] = {}
        self._holds: dict[int, Any] = {}

    def uses(self, array: np.ndarray) -> None:
        from tests.support.fake_cupy import memory

        owner = owner_of(array)
        block = memory.blocks.get(id(owner))
        if block is not None and id(owner) not in self._holds:
            # the owner is kept too: its identity must not go to another array
            self._holds[id(owner)] = (memory.Hold(block), owner)

    def faults(self) -> list[str]:
        """What is wrong with the memory that a launch would use."""
        found = (hold.fault() for hold, _ in self._holds.values())
        return [fault for fault in found if fault is not None]

    def will_write(self, array: np.ndarray) -> None:
        self.uses(array)
        owner = owner_of(array)
        if id(owner) not in self._fresh and id(owner) not in self._before:
            self._before[id(owner)] = (owner, owner.copy())

    def produced(self, array: np.ndarray) -> None:
        self.uses(array)
        owner = owner_of(array)
        self._fresh[id(owner)] = array

    def rewind(self) -> None:
        for owner, before in self._before.values():
            owner[...] = before
        for array in self._fresh.values():
            poison(array)
        for hold, _ in self._holds.values():
            hold.captured()


class State:
    """The bookkeeping of the simulated devices."""

    def __init__(self) -> None:
        # how kernels are built: "check" (all checks), "plain" (fast), or "ptx" (tests.support.ptx)
        self.flavour = "check"
        self.lacks_cublas: Callable[[], bool] = lambda: False
        self.seed = 0  # order in which the emulator runs threads
        self.launch_options: dict[str, Any] = {}  # further arguments for every kernel launch
        self.kernel_attributes: dict[str, dict[str, int]] = {}  # by name, of RawKernel.attributes
        self.sources: dict[str, str] = {}  # kernel source -> file name shown in reports
        self.launch_log: deque[tuple[str, Any]] = deque(maxlen=1000)
        self.devices = 1  # how many there are; tests of several change it
        self.device = 0  # the current one
        self.stream: Any = None  # the current stream; cuda.py puts the null stream here
        self._counters: list[Counter[str]] = []
        self._forbidden: list[frozenset[str]] = []

    # -- events ----------------------------------------------------------------------------
    def note(self, event: str, detail: str = "", n: int = 1) -> None:
        """Count `event`; raise if it is forbidden here or during a capture."""
        for counter in self._counters:
            counter[event] += n
        for forbidden in self._forbidden:
            if event in forbidden:
                raise DeviceRuleError(f"{event} ({detail}) inside a region that forbids it")
        if event in ("sync", "h2d", "d2h") and self.recording is not None:
            raise CaptureError(
                f"{event} ({detail}): the current stream is capturing, so synchronous API calls "
                "and host/device copies are disallowed"
            )

    def note_alloc(self, nbytes: int, dtype: np.dtype) -> None:
        if nbytes:
            self.note("alloc", f"{nbytes} bytes of {dtype}")
            self.note(f"alloc:{dtype}")
            self.note("alloc_bytes", n=nbytes)

    @contextlib.contextmanager
    def count(self) -> Iterator[Counter[str]]:
        """Count the events inside the `with` block; an event that did not happen counts 0."""
        counter: Counter[str] = Counter()
        self._counters.append(counter)
        try:
            yield counter
        finally:
            self._counters[:] = [c for c in self._counters if c is not counter]

    @contextlib.contextmanager
    def forbid(self, *events: str) -> Iterator[None]:
        """Raise DeviceRuleError when one of `events` happens inside the `with` block."""
        unknown = set(events) - {"launch", "alloc", "sync", "h2d", "d2h", "iterate"}
        if unknown:
            raise ValueError(f"forbid: no such event: {', '.join(sorted(unknown))}")
        forbidden = frozenset(events)
        self._forbidden.append(forbidden)
        try:
            yield
        finally:
            self._forbidden.pop()

    # -- doing and recording work ------------------------------------------------------------
    @property
    def recording(self) -> Recording | None:
        return getattr(self.stream, "_recording", None)

    def write(self, target: np.ndarray, work: Callable[[], Any], detail: str = "") -> None:
        """Run `work`, which writes into `target`; a launch."""
        self.note("launch", detail)
        recording = self.recording
        if recording is not None:
            recording.will_write(target)
            recording.work.append(work)
            recording.launches += 1
        with np.errstate(all="ignore"):  # a device raises no floating-point warnings
            work()

    def created(self, arrays: list[np.ndarray], again: Callable[[], list[np.ndarray]]) -> None:
        """Tell a running capture that `arrays` are new; `again()` computes their values anew."""
        recording = self.recording
        if recording is None:
            return
        for array in arrays:
            recording.produced(array)

        def replay() -> None:
            for old, new in zip(arrays, again(), strict=True):
                old[...] = new

        recording.work.append(replay)
        recording.launches += 1


state = State()
