"""Compiles the C kernels beside this file; the packaging hook and users call the same function.

Standard library only, and nothing of gpulayers: the hook loads this file before the package is
installed. ``python -m gpulayers.ops.compiled`` builds in place, e.g. after a compiler was
installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "src"
LIBRARIES = HERE / "lib"
RECORD = LIBRARIES / "build.json"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

# -ffp-contract=fast: a*b+c may become one fused multiply-add. No -ffast-math: NaN, infinities and
# signed zeros must come out as NumPy's do.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]
SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    # what every processor has that computes with it fast, and `gl_instruction_set` asks for
    "avx512": [f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")]
    + ["-mfma", "-mprefer-vector-width=512"],
}
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-Og"]


class BuildError(Exception):
    """The kernels could not be built; the message says why."""


def sources_digest() -> str:
    """Return a digest of the sources and flags: a library built from others must not be used."""
    digest = hashlib.sha256(repr((FLAGS, SETS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def instruction_sets(compiler: list[str]) -> list[str]:
    """Return the sets to build for on this kind of machine: those that the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["baseline"]
    return [name for name in SETS if not SETS[name] or _takes(compiler, SETS[name])]


def _takes(compiler: list[str], flags: list[str]) -> bool:
    """Whether the compiler has these flags."""
    command = [*compiler, *flags, "-fsyntax-only", "-x", "c", os.devnull]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:  # building says it
        return False


def find_compiler() -> list[str]:
    """Return the command of a C compiler: ``$CC``, else cc, gcc or clang on the path."""
    if os.environ.get("CC"):
        return os.environ["CC"].split()
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildError("no C compiler was found (looked for $CC, cc, gcc and clang)")


def build(
    target: Path = LIBRARIES, sanitize: bool = False, sets: Sequence[str] | None = None
) -> dict[str, object]:
    """Compile every ``src/*.c`` for every instruction set, in float and double, and link.

    Parameters
    ----------
    target : path of a folder
        Gets ``kernels-<set>.so`` and ``build.json``; nothing is left there of a failed build.
    sanitize : bool
        Build with AddressSanitizer and UndefinedBehaviorSanitizer, for tests.
    sets : names of instruction sets, optional
        By default `instruction_sets`; the baseline must be among them.

    Returns
    -------
    record : dict
        What ``build.json`` holds: compiler, flags, instruction sets.

    Raises
    ------
    BuildError
        If there is no compiler, it fails, or the platform is not supported.
    """
    if sys.platform == "win32":
        raise BuildError("the compiled kernels need POSIX threads; Windows computes with NumPy")
    compiler = find_compiler()
    extra = CHECKS if sanitize else []
    sources = sorted(SOURCES.glob("*.c"))
    built: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sets or instruction_sets(compiler):
            jobs: list[tuple[list[str], Path]] = []
            for source in sources:
                # the pool is the same for both scalar types
                kinds: list[list[str]] = [[]] if source.stem == "threads" else [[], ["-DGL_DOUBLE"]]
                for k, kind in enumerate(kinds):
                    out = Path(folder) / f"{source.stem}-{name}-{k}.o"
                    command = [*compiler, *FLAGS, *WARNINGS, *SETS[name], *extra, *kind]
                    jobs.append(([*command, "-c", str(source), "-o", str(out)], out))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, [command for command, _ in jobs]))
            library = Path(folder) / f"kernels-{name}{SUFFIX}"
            objects = [str(out) for _, out in jobs]
            shared = [*compiler, "-shared", *extra, *objects, "-o", str(library)]
            _run([*shared, "-lm", "-pthread"])
            built[name] = library
        target.mkdir(parents=True, exist_ok=True)
        for library in built.values():
            _put(library, target / library.name)
        record = _record(compiler, FLAGS + extra, list(built))
        written = Path(folder) / RECORD.name
        written.write_text(json.dumps(record, indent=1) + "\n")
        _put(written, target / RECORD.name)
    return record


def is_current(target: Path = LIBRARIES) -> bool:
    """Return whether `target` holds what `build` would make there now."""
    try:
        made = json.loads((target / RECORD.name).read_text())
        compiler = find_compiler()
        sets = instruction_sets(compiler)
        wanted = _record(compiler, FLAGS, sets)
    except (OSError, ValueError, BuildError):
        return False
    libraries = [target / f"kernels-{name}{SUFFIX}" for name in sets]
    return made == wanted and all(library.is_file() for library in libraries)


def _record(compiler: list[str], flags: list[str], sets: list[str]) -> dict[str, object]:
    """What ``build.json`` says of a build."""
    return {
        "compiler": _version(compiler),
        "flags": flags,
        "sets": sets,
        "sources": sources_digest(),
    }


def _put(source: Path, target: Path) -> None:
    """Move a finished file into place in one step: a library in use is never half written."""
    near = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(source, near)
    os.replace(near, target)


def record_failure(reason: str, target: Path = LIBRARIES) -> None:
    """Leave the reason of a failed build for ``gpulayers info``."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    (target / RECORD.name).write_text(json.dumps({"failed": reason}, indent=1) + "\n")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the C compiler {command[0]!r} could not be run: {error}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line] or lines
        raise BuildError(f"{' '.join(command[:1])} failed: {' | '.join(errors[:3])}")


def _version(compiler: list[str]) -> str:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()[0]
