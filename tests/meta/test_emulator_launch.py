"""tests.support.cuda_on_cpu: launches that must be refused, launch options, single faults."""

from __future__ import annotations

import mmap
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.cuda_on_cpu import (
    CompileError,
    EmulatorUnavailableError,
    HostModule,
    KernelError,
    LaunchError,
    toolchain,
)

pytestmark = pytest.mark.emulated

SCALE = r"""
extern "C" __global__ void scale(const float* x, float* y, float factor, int n, bool negate)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = negate ? -factor * x[i] : factor * x[i];
}
"""


def scale_arguments() -> list[Any]:
    return [np.ones(6, "f4"), np.zeros(6, "f4"), np.float32(2), np.int32(6), np.bool_(False)]


def scale(**changes: Any) -> Any:
    return HostModule(SCALE, name="scale.cu", **changes)["scale"]


REFUSED = {
    "a Python float for a float": (2, 2.0, "argument 2 is float.*wrong bytes"),
    "a float64 for a float": (2, np.float64(2), "argument 2 is float64.*wrong bytes"),
    "an int for a float": (2, 2, "argument 2 is int.*wrong bytes"),
    "a narrow integer": (3, np.int16(6), "argument 3 is int16.*wrong bytes"),
    "a float for an int": (3, np.float32(6), "argument 3 is float32.*wrong bytes"),
    "an integer that does not fit": (3, 2**31, "argument 3 = 2147483648 does not fit int"),
    "an int for a bool": (4, 1, "argument 4 is int.*wrong bytes"),
    "float64 elements": (0, np.ones(6), "argument 0 has dtype float64"),
    "big-endian elements": (0, np.ones(6, ">f4"), "argument 0 has dtype >f4"),
    "every other element": (0, np.ones(12, "f4")[::2], "argument 0 is not C-contiguous"),
    "Fortran order": (0, np.ones((2, 3), "f4", order="F"), "argument 0 is not C-contiguous"),
    "a list": (0, [1.0] * 6, "argument 0 is list"),
    "a number for a pointer": (1, np.float32(1), "argument 1 is float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_argument_refused(case: str) -> None:
    position, value, message = REFUSED[case]
    arguments = scale_arguments()
    arguments[position] = value
    with pytest.raises(LaunchError, match=message):
        scale()((1,), (32,), arguments)


def test_read_only_output_refused() -> None:
    arguments = scale_arguments()
    arguments[1].flags.writeable = False
    with pytest.raises(LaunchError, match="argument 1 is a read-only array"):
        scale()((1,), (32,), arguments)
    arguments[0], arguments[1] = arguments[1], arguments[0]
    scale()((1,), (32,), arguments)


def test_overlapping_arguments_refused() -> None:
    arguments = scale_arguments()
    arguments[1] = arguments[0]
    with pytest.raises(LaunchError, match="arguments 0 and 1 overlap"):
        scale()((1,), (32,), arguments)
    scale()((1,), (32,), arguments, allow_alias=True)
    np.testing.assert_array_equal(arguments[0], np.full(6, 2, "f4"))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((1,), (1025,), 0, "1024 threads"),
        ((1,), (32, 32, 2), 0, "1024 threads"),
        ((1,), (1, 1, 65), 0, "1024 threads"),
        ((0,), (32,), 0, "empty grid"),
        ((1,), (32, 0), 0, "empty grid"),
        ((1, 65536), (32,), 0, "exceeds"),
        ((2**31,), (32,), 0, "exceeds"),
        (1, (32,), 0, "grid must be a tuple"),
        ((1,), (1, 1, 1, 1), 0, "block must be a tuple"),
        ((1,), (32,), (48 << 10) + 1, "dynamic shared memory"),
    ],
)
def test_shape_refused(grid: Any, block: Any, shared: int, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        scale()(grid, block, scale_arguments(), shared)


def test_more_shared_memory_on_request() -> None:
    kernel = scale()
    kernel.max_dynamic_shared_size_bytes = 96 << 10
    kernel((1,), (32,), scale_arguments(), 96 << 10)


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(LaunchError, match=re.escape("takes 5 arguments (const float*, float*")):
        scale()((1,), (32,), scale_arguments()[:4])


def test_a_null_pointer_is_an_argument() -> None:
    arguments = scale_arguments()
    arguments[0] = None
    with pytest.raises(KernelError, match="null-pointer"):
        scale()((1,), (32,), arguments)


@pytest.mark.parametrize("flavour", ["plain", "check"])
def test_values_and_counters(flavour: str) -> None:
    x, y, *rest = scale_arguments()
    x[:] = np.arange(6)
    counters = scale(flavour=flavour)((2,), (4,), (x, y, *rest))
    np.testing.assert_array_equal(y, 2 * x)
    assert counters.threads == 8
    if flavour == "check":
        assert (counters.global_loads, counters.global_store_bytes) == (6, 24)


def test_unknown_flavour_and_kernel() -> None:
    with pytest.raises(ValueError, match="flavour must be one of"):
        scale(flavour="fast")
    with pytest.raises(KeyError, match=r"scale\.cu has no kernel 'other'"):
        HostModule(SCALE, name="scale.cu")["other"]


def test_compile_error_names_the_line() -> None:
    with pytest.raises(CompileError, match=r"wrong\.cu:2:"):
        HostModule('extern "C" __global__ void f()\n{ undeclared(); }', name="wrong.cu")


EARLY_EXIT = r"""
extern "C" __global__ void reverse(float* x, int n)
{
    __shared__ float s[64];
    const int i = threadIdx.x;
    if (i >= n) return;
    s[i] = x[i];
    __syncthreads();
    x[i] = s[n - 1 - i];
}
"""


def test_early_exit_only_on_request() -> None:
    kernel = HostModule(EARLY_EXIT, name="early.cu")["reverse"]
    x = np.arange(50, dtype="f4")
    with pytest.raises(KernelError, match="barrier-divergence"):
        kernel((1,), (64,), (x.copy(), 50))
    kernel((1,), (64,), (x, 50), allow_early_exit=True)
    np.testing.assert_array_equal(x, np.arange(49, -1, -1))


UNCHECKED_INDEX = r"""
extern "C" __global__ void fill(float* x, int stride) { x[blockIdx.x * stride] = 1.f; }
extern "C" __global__ void divide(int* x, int by) { x[0] /= by; }
extern "C" __global__ void shift(int* x, int by) { x[0] = 1 << by; }
extern "C" __global__ void narrow(int* x, int by) { x[0] = x[0] * by; }
extern "C" __global__ void guarded(int* x, int by) { assert(by > 0); x[0] = by; }
extern "C" __global__ void stopped(int* x, int by) { if (by < 0) __trap(); x[0] = by; }
extern "C" __global__ void endless(int* x, int by) { for (volatile int i = 0; i != by;) ; }
"""


@pytest.mark.parametrize(
    ("name", "good", "bad", "kind"),
    [
        ("divide", 2, 0, "undefined-behaviour"),
        ("shift", 3, 32, "undefined-behaviour"),
        ("narrow", 3, 2**20, "undefined-behaviour"),
        ("guarded", 1, 0, "assert"),
        ("stopped", 1, -1, "trap"),
        ("endless", 0, 1, "timeout"),
    ],
)
def test_arithmetic_faults(name: str, good: int, bad: int, kind: str) -> None:
    kernel = HostModule(UNCHECKED_INDEX, name="faults.cu")[name]
    kernel((1,), (1,), (np.array([4096], "i4"), good))
    with pytest.raises(KernelError) as caught:
        kernel((1,), (1,), (np.array([4096], "i4"), bad), time_limit=0.2)
    assert caught.value.kinds == {kind}
    assert "faults.cu:" in str(caught.value)


def test_plain_flavour_stops_endless_loops_too() -> None:
    kernel = HostModule(UNCHECKED_INDEX, name="faults.cu", flavour="plain")["endless"]
    with pytest.raises(KernelError, match="timeout"):
        kernel((1,), (1,), (np.zeros(1, "i4"), 1), time_limit=0.2)


def test_index_overflow_on_an_array_that_does_not_exist() -> None:
    no_reserve = 0x4000  # MAP_NORESERVE: 12 GB of address space, of which a few pages are touched
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    x = np.frombuffer(mmap.mmap(-1, 12 << 30, flags), np.float32)
    launch = {"grid": (3 << 10,), "block": (1,), "only_blocks": 16}
    wide = HostModule(UNCHECKED_INDEX.replace("fill(float* x, int", "fill(float* x, long long"))
    wide["fill"](args=(x, 1 << 20), **launch)
    narrow = HostModule(UNCHECKED_INDEX.replace("[blockIdx.x *", "[(int)blockIdx.x *"))
    with pytest.raises(KernelError, match="mul_overflow"):
        narrow["fill"](args=(x, np.int32(1 << 20)), **launch)


def test_shared_memory_starts_as_garbage() -> None:
    code = r"""
    extern "C" __global__ void peek(unsigned* out)
    {
        __shared__ unsigned own[4];
        extern __shared__ unsigned given[];
        out[threadIdx.x] = own[threadIdx.x] | given[threadIdx.x];
    }
    """
    out = np.zeros(4, "u4")
    HostModule(code, flavour="plain")["peek"]((2,), (4,), (out,), 16)
    np.testing.assert_array_equal(out, 0xCBCBCBCB)
    with pytest.raises(KernelError, match="uninitialised-shared"):
        HostModule(code)["peek"]((1,), (4,), (out,), 16)


def test_preempt_needs_the_checker_and_shows_lost_updates() -> None:
    code = 'extern "C" __global__ void count(int* x) { x[0] = x[0] + 1; }'
    with pytest.raises(ValueError, match="preempt needs"):
        HostModule(code, flavour="plain")["count"]((1,), (32,), (np.zeros(1, "i4"),), preempt=0.5)
    kernel, x = HostModule(code)["count"], np.zeros(1, "i4")
    with pytest.raises(KernelError, match="race-in-block"):
        kernel((1,), (64,), (x,), preempt=0.5)
    assert 0 < x[0] < 64


def test_same_seed_same_run() -> None:
    code = r"""
    extern "C" __global__ void arrivals(int* order, int* count)
    {
        order[atomicAdd(count, 1)] = threadIdx.x;
    }
    """
    kernel = HostModule(code)["arrivals"]

    def run(**options: Any) -> list[int]:
        order, count = np.zeros(64, "i4"), np.zeros(1, "i4")
        kernel((1,), (64,), (order, count), **options)
        return order.tolist()

    assert run(seed=3) == run(seed=3) != run(seed=4)
    assert run(order="asc") == list(range(64)) == run(order="desc")[::-1]


def test_reports_are_limited_and_can_be_ignored() -> None:
    code = 'extern "C" __global__ void f(int* x) { x[0] = 1; x[1] = 2; x[2] = 3; }'
    kernel, x = HostModule(code)["f"], np.zeros(3, "i4")
    with pytest.raises(KernelError) as caught:
        kernel((1,), (2,), (x,), max_reports=2)
    assert len(caught.value.problems) == 2
    kernel((1,), (2,), (x,), ignore={"race-in-block"})


def test_reason_where_the_emulator_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    toolchain.gxx.cache_clear()
    try:
        reason = toolchain.unavailable_reason()
        assert reason == "running kernels on the CPU needs g++ >= 11, none is on PATH"
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        assert "x86-64" in str(toolchain.unavailable_reason())
        with pytest.raises(EmulatorUnavailableError):
            toolchain.gxx()
    finally:
        monkeypatch.undo()
        toolchain.gxx.cache_clear()
    assert toolchain.unavailable_reason() is None


def test_two_threads_may_launch() -> None:
    kernel, failures = scale(), []

    def work(factor: int) -> None:
        for _ in range(20):
            x, y, *_ = scale_arguments()
            kernel((1,), (32,), (x, y, np.float32(factor), 6, np.bool_(True)))
            if not (y == -factor).all():
                failures.append(y)

    workers = [threading.Thread(target=work, args=(factor,)) for factor in (2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_what_several_workers_want_is_built_once(tmp_path: Path) -> None:
    """Each opens the lock's file for itself, as processes do."""
    target, built = tmp_path / "kernel.so", []

    def want(worker: int) -> None:
        with toolchain._missing(target) as missing:
            if missing:
                time.sleep(0.05)  # long enough for the others to ask
                built.append(worker)
                target.touch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(want, range(4)))
    assert len(built) == 1
    with toolchain._missing(target) as missing:
        assert not missing
