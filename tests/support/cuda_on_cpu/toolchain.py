"""g++, the CUDA headers and the cache of compiled kernels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.cuda_on_cpu import elf
from tests.support.cuda_on_cpu.errors import CompileError, EmulatorUnavailableError

try:
    import fcntl
except ImportError:  # Windows: workers may then do the same work twice
    fcntl = None

HERE = Path(__file__).parent
REQUIRE_VARIABLE = "GPULAYERS_REQUIRE_EMULATOR"
CACHE_VARIABLE = "GPULAYERS_EMULATOR_CACHE"
OLDEST_GXX = 11

COMMON_FLAGS = (
    "-std=c++17",
    "-gdwarf-4",
    "-g1",  # lines and inlined calls, for the reports; the rest takes longer than the code
    "-fPIC",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
)
KERNEL_FLAGS = {
    "plain": ("-O1",),  # -O2 takes g++ longer than it saves these kernels
    # The sanitizers only instrument; their libraries are not linked (runtime/hooks.cpp). These
    # kernels run for milliseconds: the less g++ thinks about them, the better.
    "check": (
        "-Og",
        "-fsanitize=thread,undefined",
        "-fno-sanitize=vptr,null,object-size,return",
        "--param=tsan-instrument-func-entry-exit=0",
        "--param=tsan-distinguish-volatile=1",
    ),
}
RUNTIME_FLAGS = {"plain": ("-O2",), "check": ("-O2", "-DEMU_CHECK")}


def unavailable_reason() -> str | None:
    """Why kernels cannot run on this machine's CPU, or None if they can."""
    try:
        gxx()
        cuda_headers()
    except EmulatorUnavailableError as error:
        return str(error)
    return None


@functools.cache
def gxx() -> str:
    """Path of a g++ that is new enough.

    Raises:
        EmulatorUnavailableError: wrong platform, no g++, or too old a g++.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EmulatorUnavailableError(
            "running kernels on the CPU needs Linux on x86-64, "
            f"this is {sys.platform} on {platform.machine()}"
        )
    path = shutil.which("g++")
    if path is None:
        raise EmulatorUnavailableError(
            f"running kernels on the CPU needs g++ >= {OLDEST_GXX}, none is on PATH"
        )
    version = subprocess.run(
        [path, "-dumpfullversion"], capture_output=True, text=True
    ).stdout.strip()
    if not version or int(version.split(".")[0]) < OLDEST_GXX:
        raise EmulatorUnavailableError(
            f"running kernels on the CPU needs g++ >= {OLDEST_GXX}, {path} is {version or '?'}"
        )
    return path


def _header_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        yield from (Path(root) / name / "include" for name in ("cu13", "cuda_runtime"))
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if variable in os.environ:
            yield Path(os.environ[variable]) / "include"
    yield Path("/usr/local/cuda/include")


@functools.cache
def cuda_headers() -> Path:
    """The folder with ``vector_types.h`` and ``cuda_fp16.h``.

    Raises:
        EmulatorUnavailableError: neither the header wheels nor a CUDA toolkit is installed.
    """
    for folder in _header_folders():
        if (folder / "cuda_fp16.h").exists() and (folder / "crt" / "host_defines.h").exists():
            return folder
    raise EmulatorUnavailableError(
        "running kernels on the CPU needs the CUDA headers: "
        "pip install nvidia-cuda-runtime nvidia-cuda-crt"
    )


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept (set GPULAYERS_EMULATOR_CACHE to move it)."""
    default = Path(tempfile.gettempdir()) / f"gpulayers-emulator-{os.getuid()}"
    folder = Path(os.environ.get(CACHE_VARIABLE, default))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@functools.cache
def _toolchain_key() -> str:
    """Changes when anything does that all compiled kernels depend on."""
    digest = hashlib.sha256()
    sources = [HERE / "toolchain.py", *(path for path in HERE.glob("*/**/*") if path.is_file())]
    for path in sorted(path for path in sources if path.suffix != ".pyc"):
        digest.update(path.read_bytes())
    version = subprocess.run([gxx(), "--version"], capture_output=True, text=True).stdout
    headers = cuda_headers() / "cuda_fp16.hpp"
    digest.update(
        f"{version}{headers}{headers.stat().st_size}{headers.stat().st_mtime_ns}".encode()
    )
    return digest.hexdigest()[:16]


def cache_key(*parts: str) -> str:
    """A name for what is built from ``parts`` with this toolchain."""
    return hashlib.sha256("\0".join([_toolchain_key(), *parts]).encode()).hexdigest()[:24]


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CompileError((result.stderr or result.stdout)[:6000])
    return result.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time: workers of pytest-xdist want the same results."""
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _missing(target: Path) -> Iterator[bool]:
    """Whether `target` has to be made, by this process alone."""
    if target.exists():
        yield False
        return
    with locked(target.with_suffix(".lock")):
        yield not target.exists()


def _publish(built: Path, target: Path) -> None:
    """Moves a finished file or folder into the cache; the first of several processes wins."""
    try:
        os.replace(built, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(built)


def _include_flags() -> list[str]:
    return ["-I", str(HERE / "device"), "-isystem", str(cuda_headers())]


def runtime_library(flavour: str) -> Path:
    """The compiled ``runtime/`` that kernels of this flavour are linked against."""
    target = cache_folder() / f"libruntime-{flavour}-{_toolchain_key()}.so"
    with _missing(target) as missing:
        if missing:
            sources = [str(path) for path in sorted((HERE / "runtime").glob("*.cpp"))]
            built = target.with_suffix(f".{os.getpid()}")
            flags = [*COMMON_FLAGS, *RUNTIME_FLAGS[flavour], *_include_flags()]
            _run([gxx(), "-shared", *flags, *sources, "-lrt", "-o", str(built)])
            _publish(built, target)
    return target


def precompiled_header(flavour: str) -> Path:
    """A folder with ``cuda_on_cpu.h`` precompiled: 0.1 s instead of 0.6 s for each kernel."""
    target = cache_folder() / f"header-{flavour}-{_toolchain_key()}"
    with _missing(target) as missing:
        if missing:
            built = target.with_suffix(f".{os.getpid()}")
            built.mkdir()
            header = shutil.copy(HERE / "device" / "cuda_on_cpu.h", built)
            flags = [
                *COMMON_FLAGS,
                *KERNEL_FLAGS[flavour],
                "-fvisibility=hidden",
                *_include_flags(),
            ]
            try:
                _run([gxx(), *flags, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
            except BaseException:
                shutil.rmtree(built)  # or what is tried next would fail because of it
                raise
            _publish(built, target)
    return target


def build_kernels(unit: str, key: str, flavour: str, definitions: Sequence[str]) -> Path:
    """Compiles a translation unit to a shared library, or finds it in the cache.

    Raises:
        CompileError: g++ refused the source.
        EmulatorUnavailableError: there is no usable g++ or no CUDA headers.
    """
    target = cache_folder() / f"{key}.so"
    with _missing(target) as missing:
        if missing:
            source = cache_folder() / f"{key}.{os.getpid()}.cpp"
            source.write_text(unit)
            built = target.with_suffix(f".{os.getpid()}")
            flags = [*COMMON_FLAGS, *KERNEL_FLAGS[flavour], "-fvisibility=hidden", *definitions]
            flags += ["-I", str(precompiled_header(flavour)), *_include_flags()]
            # -nostdlib: or g++ links the sanitizers' libraries too.
            link = [
                "-shared",
                "-nostdlib",
                "-Wl,--no-undefined",
                str(runtime_library(flavour)),
                "-lm",
                "-lc",
                "-lgcc",
            ]
            try:
                _run([gxx(), *flags, str(source), *link, "-o", str(built)])
            finally:
                source.unlink()
            _publish(built, target)
    return target


def shared_variables(library: Path) -> list[tuple[int, int, str]]:
    """(offset, bytes, name) of each ``__shared__`` array: the function-local statics."""
    found = [variable for variable in elf.variables(library) if variable[2].startswith("_ZZ")]
    if not found:
        return []
    names = _run(["c++filt", *(mangled for _, _, mangled in found)]).splitlines()
    return [
        (offset, size, name.rsplit("::", 1)[-1])
        for (offset, size, _), name in zip(found, names, strict=True)
    ]


def source_line(library: Path, offset: int, source_name: str) -> str:
    """``file:line`` of an address; the innermost line of the kernel source if code was inlined."""
    if offset == 0:
        return ""
    places = _run(["addr2line", "-i", "-e", str(library), hex(offset)]).split("\n")
    places = [place.split(" ")[0].rsplit("/", 1)[-1] for place in places if place]
    ours = [place for place in places if place.startswith(f"{source_name}:")]
    return (ours or places or [""])[0]
