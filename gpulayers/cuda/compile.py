"""Sources to kernels: inlined headers, one compile an instance on first use, launches checked.

A source is compiled for the one instance that is asked for (NVRTC skips what is not instantiated),
so the first use of a layer costs little; CuPy keeps the machine code on disk, in
``~/.cupy/kernel_cache`` or ``CUPY_CACHE_DIR``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Generator, Sequence
from importlib import resources
from typing import Any

from gpulayers.cuda import table
from gpulayers.cuda.cubins import Job, Store, compile_all, processors
from gpulayers.errors import BackendError

_log = logging.getLogger("gpulayers")
#: what CuPy adds to the options of every RawModule
_OPTIONS_OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
# bytes of shared memory that any block may have, 48 KB, less what kernels have of their own
_USUAL_SHARED = 40 << 10
_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.M)


@functools.cache
def load_source(file: str) -> str:
    """Return the text of a source of this folder with its own headers put in.

    ``#line`` directives keep compiler messages at the right file and line.
    """
    folder = resources.files("gpulayers.cuda")
    text = (folder / file).read_text(encoding="utf-8")

    def inline(match: re.Match[str]) -> str:
        header = (folder / match[1]).read_text(encoding="utf-8")
        following = text.count("\n", 0, match.end()) + 2
        return f'#line 1 "{match[1]}"\n{header}#line {following} "{file}"'

    return _INCLUDE.sub(inline, text)


_kernels: dict[tuple[int, str, str, str, str], Callable[..., None]] = {}
Launch = tuple[str, str, str, str]  # name, dtype, index and constants, as `get_kernel` takes them


class _Gathering(threading.local):
    launches: list[Launch] | None = None  # None: they are launched


_gathering = _Gathering()


@contextlib.contextmanager
def gathered() -> Generator[list[Launch]]:
    """Launch nothing for a ``with`` block, in this thread: the list says what it would be."""
    before, found = _gathering.launches, list[Launch]()
    _gathering.launches = found
    try:
        yield found
    finally:
        _gathering.launches = before


def side_by_side(launches: Sequence[Launch]) -> None:
    """Compile the kernels of these launches at the same time, if there are several that are neither
    loaded nor on disk, and processors for them. What does not compile is left to `get_kernel`."""
    import cupy

    device = cupy.cuda.Device().id
    jobs = [job_of(*each) for each in dict.fromkeys(launches) if (device, *each) not in _kernels]
    store = Store()
    missing = [job for job in jobs if store.find(job) is None]
    if min(len(missing), processors()) > 1:
        compile_all(missing, store)


def get_kernel(
    name: str, dtype: str, index: str = "int32", constants: str = ""
) -> Callable[..., None]:
    """Return the compiled kernel for the current device; the first call compiles.

    Parameters
    ----------
    name : str
        A key of `table.KERNELS`.
    dtype : str
        Name of the storage dtype.
    index : str
        ``"int32"`` or ``"int64"``.
    constants : str
        ``"rows=28,cols=28"``: parameters that always have these values, whatever is passed, so
        that the compiler works with them (for sources with ``SPECIALISE``). Behind them may stand
        macros, each after a semicolon: ``";FUSED=6"``.

    Raises
    ------
    BackendError
        If the compile fails; it names the kernel and holds the compiler's log.
    """
    import cupy

    key = (cupy.cuda.Device().id, name, dtype, index, constants)
    kernel = _kernels.get(key)
    if kernel is None:
        job = job_of(name, dtype, index, constants)
        together = table.KERNELS[name].cooperative
        kernel = _loaded(job, together)
        if kernel is None and table.KERNELS[name].only and _takes_one_architecture():
            compile_all([job], Store(), 1)
            kernel = _loaded(job, together)
        if kernel is None:
            try:
                options = _options(dtype, constants)
                if table.KERNELS[name].only:  # CuPy says what every such device has
                    options = (*options, f"-arch={job.architecture}")
                kernel = _compiled(job, options, together)
            except OSError as error:
                raise BackendError(
                    f"kernel {job.expression}: CuPy's cache cannot be used ({error}); set "
                    "CUPY_CACHE_DIR to a folder that can be written"
                ) from error
            except Exception as error:  # NVRTC, header search and driver each raise their own type
                raise BackendError(
                    f"kernel {job.expression} ({job.file}) did not compile for device {key[0]}:"
                    f"\n{error}"
                ) from error
        _kernels[key] = kernel
    return kernel


def _options(dtype: str, constants: str) -> tuple[str, ...]:
    return (*table.options(dtype), *defines(constants))


def defines(constants: str) -> tuple[str, ...]:
    """The constants of `get_kernel` as options of the compiler."""
    special, *macros = constants.split(";")
    found = [f"SPECIALISE={special}", *macros] if special else macros
    return tuple(f"-D{macro}" for macro in found)


def _architecture(spec: table.KernelSpec) -> str:
    """That of the current device, with what no other has if a kernel needs it."""
    import cupy

    return f"sm_{cupy.cuda.Device().compute_capability}{'a' if spec.only else ''}"


def _takes_one_architecture() -> bool:
    """Whether the compiler takes ``-arch`` only once: CuPy names one, too."""
    import cupy

    return cupy.cuda.nvrtc.getVersion() < (12, 9)


def job_of(name: str, dtype: str, index: str = "int32", constants: str = "") -> Job:
    """What there is to compile for `get_kernel` with these arguments, on the current device."""
    import cupy

    spec = table.KERNELS[name]
    return Job(
        code=load_source(spec.file),
        file=spec.file,
        expression=spec.expression(dtype, index),
        options=(*_options(dtype, constants), *_OPTIONS_OF_CUPY),
        architecture=_architecture(spec),
        nvrtc=".".join(str(part) for part in cupy.cuda.nvrtc.getVersion()),
    )


def _loaded(job: Job, together: bool) -> Callable[..., None] | None:
    """The kernel from the machine code that `tune` has compiled, if there is any of use.
    `together`: all its blocks run at the same time."""
    import cupy

    store = Store()
    found = store.find(job)
    if found is None:
        return None
    try:
        module = cupy.RawModule(path=str(found.path), enable_cooperative_groups=together)
        kernel = module.get_function(found.symbol)
        _ = kernel.attributes  # which loads it now
    except Exception as error:  # not for this driver: each has an error of its own
        _log.debug("%s: its stored machine code is left out: %s", job.expression, error)
        store.forget(job)
        return None
    return kernel


def _compiled(job: Job, options: tuple[str, ...], together: bool) -> Callable[..., None]:
    """The kernel from CuPy's cache, or compiled."""
    import cupy

    how: dict[str, Any] = {
        "name_expressions": [job.expression],
        "enable_cooperative_groups": together,
    }
    module = cupy.RawModule(code=job.code, options=options, **how)
    try:
        return module.get_function(job.expression)
    except Exception as error:
        if type(error).__name__ != "CUDADriverError":
            raise
        # The driver refuses the machine code: CuPy's cache holds that of something else, or what
        # another program left. A define that nobody reads makes it another entry of the cache.
        _log.warning("kernel %s is compiled anew, the driver refuses it: %s", job.expression, error)
        options = (*options, "-DGPULAYERS_COMPILED_ANEW")
        module = cupy.RawModule(code=job.code, options=options, **how)
        return module.get_function(job.expression)


def launch(
    name: str,
    dtype: Any,
    grid: tuple[int, ...],
    args: Sequence[Any],
    index: str,
    constants: str = "",
    block: int = 0,
    shared: int = 0,
) -> None:
    """Launch a kernel on the current stream.

    Parameters
    ----------
    name : str
        A key of `table.KERNELS`.
    dtype : dtype
        The storage dtype.
    grid : tuple of int
        Blocks along x and y.
    args : sequence
        Arrays and numbers in the kernel's order; numbers are converted to its parameter types.
    index : str
        ``"int32"`` or ``"int64"``.
    constants : str
        See `get_kernel`.
    block, shared : int
        Threads of a block and bytes of its dynamic shared memory, where they are not the table's.

    Raises
    ------
    BackendError
        If the kernel cannot be compiled, an argument or the grid does not fit, or an array is not
        C-contiguous or on another device than the current one (a kernel sees only the pointer).
    """
    import cupy

    spec = table.KERNELS[name]
    device = cupy.cuda.get_device_id()
    for kind, arg in zip(spec.parameters, args, strict=False):
        if kind != table.ARRAY:
            continue
        if not (isinstance(arg, cupy.ndarray) and arg.flags.c_contiguous):
            raise BackendError(
                f"kernel {name}: expected C-contiguous CuPy arrays, got {_what(arg)}"
            )
        if arg.data.device_id != device and arg.size:
            raise BackendError(
                f"kernel {name}: expected arrays on CUDA device {device}, the current one, got one "
                f"of shape {arg.shape} on device {arg.data.device_id}"
            )
    spec.check_grid(grid)
    packed = spec.pack(dtype.name, index, args)
    if _gathering.launches is not None:
        _gathering.launches.append((name, dtype.name, index, constants))
        return
    kernel: Any = get_kernel(name, dtype.name, index, constants)
    shared = shared or spec.shared
    try:
        # Beyond the usual size only what was asked for; asking costs a call of the driver.
        if shared >= _USUAL_SHARED and shared >= kernel.max_dynamic_shared_size_bytes:
            kernel.max_dynamic_shared_size_bytes = shared
        kernel(grid, (block or spec.block,), packed, shared_mem=shared)
    except Exception as error:  # the driver's; CUDA_LAUNCH_BLOCKING=1 makes it this kernel's own
        block = block or spec.block
        error.add_note(
            f"at the launch of kernel {name} for {dtype.name}: {grid} blocks of {block} threads, "
            f"{shared} bytes of shared memory"
        )
        raise


def _what(arg: Any) -> str:
    name = f"{type(arg).__module__}.{type(arg).__name__}"
    if not hasattr(arg, "strides"):
        return name
    return f"{name} of shape {arg.shape} with strides {arg.strides}"


def launch_elements(
    name: str, dtype: Any, total: int, args: Sequence[Any], index: str, constants: str = ""
) -> None:
    """Launch a kernel with one thread for each of `total` elements; nothing to do for none."""
    if total:
        block = table.KERNELS[name].block
        launch(name, dtype, (-(-total // block),), args, index, constants)
