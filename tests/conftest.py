"""Shared fixtures and options.

Which array library a test runs on
----------------------------------
A test that takes the fixture `backend` runs once on NumPy, once on the CuPy stand-in ("emulated":
CUDA kernels run on the CPU, host arrays and hidden copies are errors), and with a GPU once on
CuPy. gpulayers is switched to that library for the length of the test:

    def test_doubles(backend):
        x = backend.asarray(np.arange(6.0, dtype=np.float32))  # host array -> array of the backend
        y = layer.forward(x)                                    # computes there
        np.testing.assert_allclose(backend.asnumpy(y), ...)     # and back

    def test_no_hidden_sync(backend):
        with backend.count() as events, backend.forbid("sync", "h2d", "d2h"):
            layer.forward(x)
        if backend.observed:                    # only the stand-in sees what happens
            assert events["launch"] <= 3        # also alloc, alloc_bytes, kernel:<name>, ...

On NumPy it runs twice where the compiled kernels are built: with them, and in pure NumPy.
`backend.xp` is the module (numpy, the stand-in, cupy), `backend.name` is "numpy", "emulated" or
"cupy", `backend.engine` is "numpy", "compiled" or "auto", `backend.library` is what gpulayers calls
it ("numpy" or "cupy"). Fixture `emulated` is the same object for the stand-in alone,
`numpy_backend` for pure NumPy alone.

Options and variables
---------------------
--require-gpu                   a missing GPU is an error, not a skip, for tests marked `gpu`
GPULAYERS_REQUIRE_EMULATOR=1    a missing g++ or header wheel is an error for `emulated` tests
GPULAYERS_REQUIRE_COMPILED=1    a missing build of the C kernels is an error, not left out
GPULAYERS_REQUIRE_BROWSER=1     a missing browser is an error for the tests of the demo page
GPULAYERS_SANITIZERS=all        every case under the sanitizers, not a third of those of large tests
GPULAYERS_EMULATOR=check        kernels in layer tests run with all checks (slower); default plain
GPULAYERS_TEST_CASES=all        every case on every backend (see `_sample`); default: all on a GPU,
                                a third of those of large tests on NumPy, one in twelve with the C
                                kernels and on the stand-in
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Two workers with a pool of threads each, of BLAS or PyTorch, wait for one another; must be set
# before these load.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What somebody measured on this machine must not change what the tests see; nothing is there.
os.environ["GPULAYERS_TUNE_DIR"] = os.path.join(tempfile.gettempdir(), f"gpulayers-{os.getpid()}")
os.environ.pop("GPULAYERS_TUNE", None)

import numpy as np
import pytest

import gpulayers.backend
import gpulayers.ops._kernels
import gpulayers.random
from gpulayers.ops import use_engine
from gpulayers.ops.compiled import unavailable_reason as compiled_reason
from tests.support import fake_cupy, stand_in
from tests.support.cuda_on_cpu.toolchain import REQUIRE_VARIABLE, unavailable_reason
from tests.support.fair import fair_part

ROOT = Path(__file__).parents[1]
FLAVOUR_VARIABLE = "GPULAYERS_EMULATOR"
REQUIRE_COMPILED = "GPULAYERS_REQUIRE_COMPILED"
CASES = "GPULAYERS_TEST_CASES"

# A shell that starts the tests in the background makes them ignore Ctrl-C, and their children too;
# the tests of Ctrl-C send it themselves.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ------------------------------------------------------------------------------- options, skips


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="fail instead of skipping the tests marked gpu when no CUDA device answers",
    )


@functools.cache
def no_gpu_reason() -> str | None:
    """Why CuPy cannot compute here, or None; asks the driver without importing CuPy."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver ({library} is not there)"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "an NVIDIA driver, but no CUDA device"
    return None


# Of the cases of a test one in k runs, if there are more than so many of them: on engines beside
# NumPy's, which share the code above the operations; else, in the folders whose tests are products
# of layers or operations with shapes, dtypes and mistakes.
_BESIDE, _FEW = 12, 6
_OWN, _MANY = 3, 60
_PRODUCTS = ("tests/layers/", "tests/ops/", "tests/functional/", "tests/modules/")

_SAMPLED = pytest.StashKey[int]()
_NO_GPU = pytest.StashKey[int]()
_NOT_BUILT = pytest.StashKey[str]()


class Case:
    """A call of a test that is to be: its id and its arguments."""

    def __init__(self, nodeid: str, callspec: Any) -> None:
        self.nodeid, self.callspec = nodeid, callspec


def _sample(cases: list[Any]) -> tuple[list[Any], list[Any]]:
    """Split into what runs and what is left out."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for case in cases:
        engine = str(case.callspec.params.get("backend"))
        if engine in ("compiled", "emulated") or case.nodeid.startswith(_PRODUCTS):
            groups[case.nodeid.partition("[")[0], engine].append(case)
    out: set[Any] = set()
    for (_, engine), group in groups.items():
        beside = engine in ("compiled", "emulated")
        every, most = (_BESIDE, _FEW) if beside else (_OWN, _MANY)
        if len(group) > most and engine != "cupy":
            kept = fair_part([(case.nodeid, case.callspec.params) for case in group], every)
            out.update(case for place, case in enumerate(group) if place not in kept)
    return [c for c in cases if c not in out], [c for c in cases if c in out]


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Iterator[None]:
    """Leave cases out before pytest makes objects of them, which takes longer than some tests.

    Of a test that is given with its arguments, `test_x.py::test_y[...]`, none is left out.
    """
    yield
    config = metafunc.config
    name = metafunc.definition.nodeid
    calls = getattr(metafunc, "_calls", [])  # pytest's own; without it every case runs
    cases = [Case(f"{name}[{spec.id}]", spec) for spec in calls]
    if "gpu" not in (config.option.markexpr or "").replace("not gpu", "") and no_gpu_reason():
        kept = [c for c in cases if all(mark.name != "gpu" for mark in c.callspec.marks)]
        if kept:  # without any case there would be one without arguments
            config.stash[_NO_GPU] = config.stash.get(_NO_GPU, 0) + len(cases) - len(kept)
            cases = kept
    if not os.environ.get(CASES) and not any("[" in given for given in config.args):
        cases, left_out = _sample(cases)
        config.stash[_SAMPLED] = config.stash.get(_SAMPLED, 0) + len(left_out)
    calls[:] = [case.callspec for case in cases]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not os.environ.get(CASES):  # with pytest-xdist the workers counted, not this process
        count = config.stash.get(_SAMPLED, 0) or "some"
        line = f"{count} cases left out, most on other engines than NumPy; {CASES}=all runs them"
        if count != "some" or getattr(config.option, "numprocesses", None):
            terminalreporter.write_line(line)
    if _NOT_BUILT in config.stash:
        terminalreporter.write_line(f"left out: {config.stash[_NOT_BUILT]}")
    count = config.stash.get(_NO_GPU, 0)
    if count:
        line = f"{count} tests need a CUDA device, left out: {no_gpu_reason()}"
        terminalreporter.write_line(line)
    elif getattr(config.option, "numprocesses", None) and not config.option.markexpr:
        reason = no_gpu_reason()  # pytest-xdist: the workers collected, this process did not
        if reason:
            terminalreporter.write_line(f"tests that need a CUDA device were left out: {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(CASES, "") not in ("", "all"):
        raise pytest.UsageError(f"{CASES}={os.environ[CASES]}: expected all, or nothing")
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = no_gpu_reason() if on_gpu or config.getoption("--require-gpu") else None
    if reason and config.getoption("--require-gpu"):
        raise pytest.UsageError(f"--require-gpu: {reason}")
    if reason and "gpu" in (config.option.markexpr or ""):
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device: {reason}"))
    elif reason:  # half of all tests have a GPU variant: one line instead of thousands of skips
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        config.stash[_NO_GPU] = config.stash.get(_NO_GPU, 0) + len(on_gpu)
    on_compiled = [item for item in items if item.get_closest_marker("compiled")]
    not_built = compiled_reason() if on_compiled else None
    if not_built and os.environ.get(REQUIRE_COMPILED) == "1":
        raise pytest.UsageError(f"{REQUIRE_COMPILED}=1: {not_built}")
    if not_built:  # as for a GPU, one line instead of thousands of skips
        items[:] = [item for item in items if not item.get_closest_marker("compiled")]
        config.hook.pytest_deselected(items=on_compiled)
        config.stash[_NOT_BUILT] = f"{len(on_compiled)} tests of the compiled kernels: {not_built}"
    on_emulator = [item for item in items if item.get_closest_marker("emulated")]
    missing = unavailable_reason() if on_emulator else None
    if missing and os.environ.get(REQUIRE_VARIABLE) == "1":
        raise pytest.UsageError(f"{REQUIRE_VARIABLE}=1: {missing}")
    if missing:
        for item in on_emulator:
            item.add_marker(pytest.mark.skip(reason=missing))


def pytest_collection_finish(session: pytest.Session) -> None:
    _settle()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        _settle()


def _settle() -> None:
    """Leave what is there, the tests and what their files keep, out of what the garbage collector
    looks through: hundreds of thousands of objects, and some tests collect garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """A fresh checkout has no byte code, and pytest's costs three times what collecting does: each
    process of pytest-xdist begins with files of its own, and finds those of the others done."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    for file in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        # What is wrong with a file, or missing for it, its own collection tells.
        with contextlib.suppress(BaseException):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


@pytest.fixture(autouse=True)
def own_random_numbers(request: pytest.FixtureRequest) -> None:
    """Each test draws its own, whichever ran before it in the same process."""
    gpulayers.random.seed(zlib.crc32(request.node.nodeid.encode()))


# ------------------------------------------------------------------------------------- backends


class Backend:
    """One array library, with gpulayers switched to it (see the top of this file)."""

    def __init__(self, name: str, xp: Any, engine: str) -> None:
        self.name = name
        self.engine = engine
        self.xp = xp
        self.library = "numpy" if name == "numpy" else "cupy"
        self.observed = name == "emulated"

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, {self.engine!r})"

    def asarray(self, array: Any, dtype: Any = None) -> Any:
        """A host array (or list) as an array of this backend, with its memory layout kept."""
        return self.xp.asarray(array, dtype=dtype)

    def asnumpy(self, array: Any) -> np.ndarray:
        """An array of this backend as a host array; anything else is an error."""
        if not isinstance(array, self.xp.ndarray):
            raise TypeError(f"expected an array on {self.name}, got {type(array)}")
        return array if self.name == "numpy" else array.get()

    @contextlib.contextmanager
    def count(self) -> Iterator[Counter[str]]:
        """Count launches, allocations, copies and synchronisations (all 0 if not `observed`)."""
        if not self.observed:
            yield Counter()
            return
        with fake_cupy.count() as events:
            yield events

    @contextlib.contextmanager
    def forbid(self, *events: str) -> Iterator[None]:
        """Make `events` ("sync", "h2d", "d2h", "alloc", ...) an error (if `observed`)."""
        if not self.observed:
            yield
            return
        with fake_cupy.forbid(*events):
            yield


@contextlib.contextmanager
def switched_to(name: str) -> Iterator[Backend]:
    """gpulayers on "numpy" (pure), "compiled", "emulated" or "cupy" for a `with` block."""
    engine = name if name in ("numpy", "compiled") else "auto"
    name = "numpy" if name == "compiled" else name
    before = gpulayers.backend._cupy_status
    with contextlib.ExitStack() as stack:
        if name == "emulated":
            flavour = os.environ.get(FLAVOUR_VARIABLE, "plain")
            xp: Any = stack.enter_context(stand_in.installed(flavour))
        elif name == "cupy":
            import cupy as xp
        else:
            xp = np
        if name != "numpy":
            gpulayers.backend.reset()
            stack.callback(_restore, before)
        stack.enter_context(gpulayers.backend.use_backend("numpy" if name == "numpy" else "cupy"))
        stack.enter_context(use_engine(engine))
        yield Backend(name, xp, engine)


def _restore(status: Any) -> None:
    gpulayers.backend.reset()
    gpulayers.backend._cupy_status = status
    if status is not None and status.module is not None:
        gpulayers.backend._module_of_type[status.module.ndarray] = status.module


_STAND_IN = pytest.param("emulated", marks=pytest.mark.emulated)
_DEVICES = [_STAND_IN, pytest.param("cupy", marks=pytest.mark.gpu)]
_HOSTS = ["numpy", pytest.param("compiled", marks=pytest.mark.compiled)]


@pytest.fixture(params=[*_HOSTS, *_DEVICES])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """NumPy, NumPy with the compiled kernels, the CuPy stand-in, and CuPy where there is a GPU."""
    with switched_to(request.param) as chosen:
        yield chosen


@pytest.fixture(params=[_STAND_IN])
def emulated(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CuPy stand-in alone."""
    with switched_to(request.param) as chosen:
        yield chosen


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CuPy stand-in, and CuPy where there is a GPU."""
    with switched_to(request.param) as chosen:
        yield chosen


@pytest.fixture
def numpy_backend() -> Iterator[Backend]:
    """NumPy alone."""
    with switched_to("numpy") as chosen:
        yield chosen
