"""cupy.cuda: simulated devices, streams with capture, graphs, events."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from tests.support.fake_cupy import memory
from tests.support.fake_cupy.state import CUDARuntimeError, DeviceRuleError, Recording, state

DRIVER_VERSION = 13020
PROPERTIES = {
    "name": b"CPU stand-in",
    "major": 9,
    "minor": 0,
    "totalGlobalMem": memory.TOTAL_MEMORY,
    "multiProcessorCount": 132,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerMultiProcessor": 2048,
    "sharedMemPerBlock": 48 << 10,
    "sharedMemPerBlockOptin": 227 << 10,
    "sharedMemPerMultiprocessor": 228 << 10,
    "regsPerBlock": 65536,
    "regsPerMultiprocessor": 65536,
    "warpSize": 32,
    "l2CacheSize": 50 << 20,
    "maxBlocksPerMultiProcessor": 32,
}
ATTRIBUTES = {
    "MultiProcessorCount": 132,
    "MaxThreadsPerBlock": 1024,
    "MaxSharedMemoryPerBlock": 48 << 10,
    "MaxSharedMemoryPerBlockOptin": 227 << 10,
    "WarpSize": 32,
}


class Graph:
    """What a capture recorded; `launch` runs it again on the same memory."""

    def __init__(self, *args: Any) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via "
            "stream capture"
        )

    @classmethod
    def _of(cls, recording: Recording) -> Graph:
        graph = object.__new__(cls)
        graph._recording = recording
        graph._device = state.device
        return graph

    def launch(self, stream: Any = None) -> None:
        state.note("graph_launch", "Graph.launch")
        if state.device != self._device:
            raise CUDARuntimeError(400, "cudaErrorInvalidResourceHandle", "invalid resource handle")
        for fault in self._recording.faults():
            raise DeviceRuleError(f"Graph.launch: the graph uses {fault}")
        for work in self._recording.work:
            work()

    def upload(self, stream: Any = None) -> None:
        """Nothing to upload here."""

    def debug_dot_str(self, flags: int = 0) -> str:
        names = (f"  n{i};" for i in range(self._recording.launches))
        return "digraph {\n" + "\n".join(names) + "\n}"


class Stream:
    """A queue of work. Everything runs at once here; only the capture rules are kept."""

    null: Stream
    ptds: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        *,
        priority: int | None = None,
    ) -> None:
        self.is_non_blocking = bool(non_blocking)
        self.priority = priority
        self.ptr = 0 if null else id(self)
        self._legacy = bool(null)
        self._recording: Recording | None = None
        self._outer: list[Stream] = []

    def __enter__(self) -> Stream:
        self._outer.append(state.stream)
        state.stream = self
        return self

    def __exit__(self, *error: Any) -> None:
        state.stream = self._outer.pop()

    def use(self) -> Stream:
        state.stream = self
        return self

    def _no_capture(self, what: str) -> None:
        if self._recording is not None:
            self._recording.invalid = what
            raise CUDARuntimeError(
                900,
                "cudaErrorStreamCaptureUnsupported",
                f"operation not permitted when stream is capturing ({what})",
            )

    def synchronize(self) -> None:
        self._no_capture("synchronize")
        state.note("sync", "Stream.synchronize")

    @property
    def done(self) -> bool:
        self._no_capture("done")
        return True

    def wait_event(self, event: Any) -> None:
        """Order is kept anyway: everything runs at once."""

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def launch_host_func(self, callback: Any, arg: Any) -> None:
        callback(arg)

    def begin_capture(self, mode: Any = None) -> None:
        if self._legacy:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._recording is not None:
            raise CUDARuntimeError(
                901, "cudaErrorIllegalState", "the operation cannot be performed in this state"
            )
        self._recording = Recording()

    def is_capturing(self) -> bool:
        return self._recording is not None

    def end_capture(self) -> Graph:
        recording = self._recording
        if recording is None:
            raise CUDARuntimeError(
                901, "cudaErrorIllegalState", "the operation cannot be performed in this state"
            )
        self._recording = None
        recording.rewind()
        if recording.invalid:
            raise CUDARuntimeError(
                901,
                "cudaErrorStreamCaptureInvalidated",
                "operation failed due to a previous error during capture",
            )
        return Graph._of(recording)


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)
state.stream = Stream.null


class Event:
    """A mark in a stream; keeps the host's clock for get_elapsed_time."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.time = 0.0
        self.done = True

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        state.note("sync", "Event.synchronize")


class Device:
    """One of the devices, all alike: the current one unless given."""

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = state.device if device is None else int(device)
        self._outer: list[int] = []
        if not 0 <= self.id < state.devices:
            raise CUDARuntimeError(101, "cudaErrorInvalidDevice", "invalid device ordinal")

    compute_capability = "90"
    attributes = ATTRIBUTES
    pci_bus_id = "0000:00:00.0"

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __enter__(self) -> Device:
        self._outer.append(state.device)
        return self.use()

    def __exit__(self, *error: Any) -> None:
        state.device = self._outer.pop()

    @property
    def mem_info(self) -> tuple[int, int]:
        held = memory.default_pool.total_bytes() + memory.unpooled.used_bytes()
        return memory.TOTAL_MEMORY - held, memory.TOTAL_MEMORY

    def use(self) -> Device:
        state.device = self.id
        return self

    def synchronize(self) -> None:
        device_synchronize()


def device_synchronize() -> None:
    if state.recording is not None:
        state.stream._no_capture("deviceSynchronize")
    state.note("sync", "Device.synchronize")


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    return 1e3 * (end_event.time - start_event.time)


def make_runtime() -> ModuleType:
    runtime = ModuleType("cupy.cuda.runtime")
    runtime.__dict__.update(
        CUDARuntimeError=CUDARuntimeError,
        deviceSynchronize=device_synchronize,
        driverGetVersion=lambda: DRIVER_VERSION,
        getDevice=lambda: state.device,
        getDeviceCount=lambda: state.devices,
        getDeviceProperties=lambda device: dict(PROPERTIES),
        memGetInfo=lambda: Device().mem_info,
        runtimeGetVersion=lambda: DRIVER_VERSION,
    )
    return runtime


def make_memory() -> ModuleType:
    module = ModuleType("cupy.cuda.memory")
    module.__dict__.update(
        MemoryPool=memory.MemoryPool,
        MemoryPointer=memory.MemoryPointer,
        OutOfMemoryError=memory.OutOfMemoryError,
        alloc=memory.alloc,
        get_allocator=memory.get_allocator,
        set_allocator=memory.set_allocator,
        using_allocator=memory.using_allocator,
    )
    return module


def make_nvrtc() -> ModuleType:
    module = ModuleType("cupy.cuda.nvrtc")
    module.__dict__["getVersion"] = lambda: (DRIVER_VERSION // 1000, DRIVER_VERSION % 1000 // 10)
    return module


def make_cuda() -> ModuleType:
    """The module `cupy.cuda` with its submodules."""
    cuda = ModuleType("cupy.cuda")
    cuda.__dict__.update(
        Device=Device,
        Event=Event,
        Graph=Graph,
        Memory=memory.Memory,
        MemoryPointer=memory.MemoryPointer,
        MemoryPool=memory.MemoryPool,
        PythonFunctionAllocator=memory.PythonFunctionAllocator,
        Stream=Stream,
        alloc=memory.alloc,
        get_allocator=memory.get_allocator,
        get_current_stream=lambda device_id=-1: state.stream,
        get_device_id=lambda: state.device,
        get_elapsed_time=get_elapsed_time,
        get_local_runtime_version=lambda: DRIVER_VERSION,
        is_available=lambda: True,
        memory=make_memory(),
        nvrtc=make_nvrtc(),
        runtime=make_runtime(),
        set_allocator=memory.set_allocator,
        using_allocator=memory.using_allocator,
    )
    return cuda
