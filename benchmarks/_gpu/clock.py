"""How long something takes: wall clock over many steps, between two waits; and what is left."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

WARM_UP, STEPS, REPEATS = 20, 200, 7
_LONGEST = 0.5  # seconds of one repeat: of slow steps there are fewer in it
_LEAST = 10
_BYTES, _COPIES = 1 << 26, 100  # which a GPU takes milliseconds for


class Budget:
    """Seconds that are left of a run."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def wall(
    run: Callable[[int], object],
    wait: Callable[[], object],
    warm_up: int = WARM_UP,
    steps: int = STEPS,
    repeats: int = REPEATS,
    multiple: int = 1,
) -> dict[str, Any]:
    """Time steps by the host's clock: ``run(n)`` launches n of them, `wait` waits for the device.

    Parameters
    ----------
    multiple : int
        The number of steps in a repeat is one of this.

    Returns
    -------
    median_us, min_us, max_us : of one step, over the repeats
    steps, repeats : int
        Steps in a repeat: fewer than asked for if one repeat would take over half a second.
    """
    run(warm_up)
    wait()
    few = multiple * -(-max(1, min(3, steps)) // multiple)
    begin = time.perf_counter()
    run(few)
    wait()
    guess = max((time.perf_counter() - begin) / few, 1e-9)
    steps = max(1, min(steps, max(_LEAST, int(_LONGEST / guess))))
    steps = multiple * -(-steps // multiple)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(steps)
        wait()
        times.append(1e6 * (time.perf_counter() - begin) / steps)
    return {
        "median_us": statistics.median(times),
        "min_us": min(times),
        "max_us": max(times),
        "steps": steps,
        "repeats": repeats,
    }


class Times(NamedTuple):
    """Of one call: the median of several measurements, the least, the most."""

    median: float
    least: float
    most: float

    def each(self, factor: float) -> Times:
        """In another unit, or of a part of the call."""
        return Times(*(factor * time for time in self))

    def told(self, name: str) -> dict[str, float]:
        return {name: self.median, f"{name}, least": self.least, f"{name}, most": self.most}


def milliseconds(
    xp: Any,
    run: Callable[[], Any],
    launches: int = 20,
    groups: int = 7,
    ahead: Callable[[], Any] | None = None,
) -> Times:
    """Time of one call, between events on CuPy's current stream.

    `ahead` keeps the device busy while the calls are queued: else a kernel that takes less time
    than its call is timed as the call.
    """
    for _ in range(3):
        run()
    times = []
    for _ in range(groups):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        if ahead is not None:
            ahead()
        start.record()
        for _ in range(launches):
            run()
        end.record()
        end.synchronize()
        times.append(xp.cuda.get_elapsed_time(start, end) / launches)
    return Times(statistics.median(times), min(times), max(times))


def alone(xp: Any, runs: Sequence[Callable[[], Any]], launches: int = 20) -> Times:
    """Milliseconds that the device takes for one of these calls, which take turns: they are
    launched as one graph, or, where that cannot be captured, behind what keeps it busy."""
    from gpulayers.cuda.graph import Recorder, launch
    from gpulayers.errors import BackendError

    for run in runs:  # kernels are compiled and chosen
        run()

    def several() -> None:
        for i in range(launches):
            runs[i % len(runs)]()

    recorder = Recorder()
    try:
        graph = recorder.capture("the calls", several)
    except BackendError:  # CuPy's cuBLAS
        return milliseconds(xp, several, launches=1, ahead=_busy(xp)).each(1 / launches)
    return milliseconds(xp, lambda: launch(graph), launches=1).each(1 / launches)


@functools.cache
def _busy(xp: Any) -> Callable[[], None]:
    """Launches copies that keep the device busy for some milliseconds."""
    from gpulayers.cuda.graph import Recorder, launch

    recorder, (source, target) = Recorder(), (xp.zeros(_BYTES, "uint8") for _ in range(2))

    def copy() -> None:
        for _ in range(_COPIES):
            xp.copyto(target, source)

    graph = recorder.capture("copies", copy)
    return lambda _=(recorder, source, target): launch(graph)  # with what the graph needs
