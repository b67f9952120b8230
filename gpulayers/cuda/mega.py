"""Launching the kernel that trains a small network for many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.mega_constants import CONSTANTS, NAME, RULES, THREADS
from gpulayers.cuda.rules import Numbers
from gpulayers.errors import BackendError

__all__ = ["Data", "Kernel", "Record", "bytes_between", "most_shared_bytes"]

_ALIGNED = 512  # bytes that CuPy gives at least


def most_shared_bytes() -> int:
    """Shared memory that a block can have on the current device."""
    return int(cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])


def _blocks(batch: int) -> int:
    return min(batch, int(cupy.cuda.Device().attributes["MultiProcessorCount"]))


def bytes_between(batch: int, saved: int, partial: int, classes: int) -> int:
    """Bytes of the device's memory that a `Kernel` takes for batches of this size."""
    floats = batch * classes, batch * 2, batch * saved, max(1, _blocks(batch) * partial)
    return _ALIGNED * (1 + sum(-(-4 * count // _ALIGNED) for count in floats))


class Data(NamedTuple):
    """What is trained on.

    Attributes
    ----------
    images : (n, ...) uint8 or float32
    labels : (n,) int64
    order : int32, the examples one after the other
    factors : (2, channels) float32, what bytes are multiplied by, and what is added then
    begin, total : int
        Where in the order the first step begins, and where the last one ends at most.
    """

    images: Array
    labels: Array
    order: Array
    factors: Array
    begin: int
    total: int


class Record(NamedTuple):
    """Where loss and hits go; see `gpulayers.models.resident.Resident`."""

    record: Array
    done: Array
    position: Array


class Kernel:
    """A network's kernel, with the memory that its blocks leave things in for one another.

    As many blocks as there are multiprocessors, or examples if those are fewer: all of them run at
    the same time, which their barriers need, so the launch is a cooperative one.

    Parameters
    ----------
    source : str
    shared_bytes : int
        Shared memory of a block.
    batch : int
        Examples of a step at most.
    classes : int
    saved, partial : int
        Floats that each example and each block leave for the others.

    Raises
    ------
    BackendError
        If it does not compile for this device.
    """

    def __init__(
        self, source: str, shared_bytes: int, *, batch: int, classes: int, saved: int, partial: int
    ) -> None:
        device = cupy.cuda.Device()
        self._blocks = _blocks(batch)
        self._shared = shared_bytes
        options = table.options("float32")
        self._kernel: Any = cupy.RawKernel(source, NAME, options, enable_cooperative_groups=True)
        try:
            # compiles it; `compile()` would make another one, with the usual limit
            self._kernel.max_dynamic_shared_size_bytes = self._shared
        except Exception as error:  # NVRTC and the driver each raise their own type
            raise BackendError(
                f"kernel {NAME} did not compile for device {device.id}:\n{error}"
            ) from error
        self.outputs = cupy.empty((batch, classes), dtype="float32")
        self._between = (
            cupy.empty((batch, 2), dtype="float32"),
            cupy.empty(batch * saved, dtype="float32"),
            cupy.empty(max(1, self._blocks * partial), dtype="float32"),
            cupy.zeros(1, dtype="uint32"),
        )

    def launch(
        self,
        data: Data,
        param: Array,
        states: Sequence[Array],
        rates: Array,
        record: Record,
        *,
        batch: int,
        steps: int,
        updates: int,
        numbers: Numbers,
        draws: Array,
        still: Array,
    ) -> None:
        """Train for some steps.

        Parameters
        ----------
        data : Data
        param : all parameters
        states : one or two arrays like it
        rates : (steps, count) or (1, count), the learning rates of all parameters
        record : Record
        batch : int
            Examples of a step.
        steps : int
        updates : int
            Steps that the optimizer has done before.
        numbers : Numbers
        draws : (4,) uint64
            Key and counter of dropout's random numbers; the counter is moved on.
        still : parameters that do not learn; of them the running statistics are moved on

        Raises
        ------
        BackendError
            If the driver refuses the launch.
        """
        second = states[1] if len(states) > 1 else states[0][:0]
        pitch = rates.shape[1] if len(rates) > 1 else 0
        whole = (data.begin, data.total, batch, steps, updates, pitch, len(record.record))
        rule = RULES.index(numbers.rule)
        arguments = (
            *(data.images, data.labels, data.order, data.factors),
            *(param, still, states[0], second, rates, self.outputs, *record, draws, *self._between),
            *map(np.int32, (*whole, rule)),
            *(np.float32(getattr(numbers, name)) for name in CONSTANTS),
        )
        try:
            self._kernel((self._blocks,), (THREADS,), arguments, shared_mem=self._shared)
        except Exception as error:
            if type(error).__name__ != "CUDADriverError":
                raise
            raise BackendError(
                f"kernel {NAME} could not be launched on device {cupy.cuda.Device().id}, as "
                f"{self._blocks} blocks of {THREADS} threads with {self._shared} bytes of shared "
                f"memory: {error}"
            ) from error
