"""What was measured to be fastest: a JSON file in the user's cache folder, and one in the package.

An entry holds for one GPU model, NVRTC version and state of the sources. ``GPULAYERS_TUNE_DIR``
names another folder than the user's cache, to take the same choices to another machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import tempfile
from collections.abc import Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

from gpulayers._folders import cache_dir
from gpulayers.cuda.tune_key import Candidate, Key

try:
    import fcntl
except ImportError:  # Windows: of two processes that write at once, one may lose its entries
    fcntl = None

__all__ = ["Entry", "Machine", "Table", "folder", "shipped"]

_log = logging.getLogger("gpulayers")

ENVIRONMENT = "GPULAYERS_TUNE_DIR"
FORMAT = 1
#: how far a shape may be for its choice to serve another: the sum over its sizes of |log2 ratio|
FARTHEST = 2.0


class Machine(NamedTuple):
    """What times depend on, besides the kernel and the shape."""

    gpu: str
    capability: str
    nvrtc: str


class Entry(NamedTuple):
    """The fastest candidate for a key."""

    machine: Machine
    source: str
    key: Key
    kernel: str
    parts: int
    microseconds: float

    @property
    def place(self) -> tuple[Machine, str, Key]:
        """What there is one entry for."""
        return self.machine, self.source, self.key


def folder() -> Path:
    """Where measured choices and compiled candidates are kept."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen).expanduser() if chosen else cache_dir() / "tune"


class Table:
    """Entries and the file that they are in.

    A file that is missing, broken or of another program counts as empty and is written anew when
    there is something to keep; of a file with some bad entries the others count.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or folder() / "choices.json"
        self._entries: dict[tuple[Machine, str, Key], Entry] | None = None

    @property
    def entries(self) -> list[Entry]:
        """All of them."""
        return list(self._loaded().values())

    def _loaded(self) -> dict[tuple[Machine, str, Key], Entry]:
        if self._entries is None:
            self._entries = {entry.place: entry for entry in _read(self.path)}
        return self._entries

    def find(
        self, machine: Machine, source: str, key: Key, known: Sequence[Candidate]
    ) -> Candidate | None:
        """The candidate among `known` that was the fastest for exactly this; None if unknown."""
        entry = self._loaded().get((machine, source, key))
        if entry is None:
            return None
        for candidate in known:
            if (candidate.kernel, candidate.parts) == (entry.kernel, entry.parts):
                return candidate
        return None

    def nearest(
        self, machine: Machine, source: str, key: Key, known: Sequence[Candidate]
    ) -> Candidate | None:
        """The candidate among `known` that is most like the one of the nearest shape.

        Only sizes and the NVRTC version may differ; None if there is no such entry within
        `FARTHEST`.
        """
        best: tuple[float, bool] | None = None
        found: Candidate | None = None
        for entry in self._loaded().values():
            same = entry.machine._replace(nvrtc=machine.nvrtc) == machine and entry.source == source
            if not same or entry.key._replace(shape=key.shape) != key:
                continue
            far = distance(entry.key.shape, key.shape)
            rank = far, entry.machine.nvrtc != machine.nvrtc
            if far > FARTHEST or (best is not None and rank >= best):
                continue
            alike = [candidate for candidate in known if candidate.kernel == entry.kernel]
            if alike:
                best = rank
                parts = entry.parts
                found = min(alike, key=lambda c: abs(math.log2(c.parts / parts)))
        return found

    def add(self, entries: Sequence[Entry]) -> None:
        """Put entries in, in place of former ones for the same, and write the file.

        What other processes have written meanwhile is kept. Where the file cannot be written, the
        entries count for this process.
        """
        new = {entry.place: entry for entry in entries}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                kept = {entry.place: entry for entry in _read(self.path)}
                self._entries = kept | new
                write(self.path, _document(list(self._entries.values())).encode())
        except OSError as error:
            self._entries = self._loaded() | new
            _log.warning("tuned choices could not be kept: %s", error)

    def clear(self) -> None:
        """Forget everything, and remove the file."""
        self._entries = {}
        self.path.unlink(missing_ok=True)


@functools.cache
def shipped() -> Table:
    """The entries in the package, for those who have measured nothing; as yet there are none."""
    return Table(Path(str(resources.files("gpulayers.cuda") / "tune_defaults.json")))


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """How far apart two shapes are: the sum over their sizes of |log2 a/b|."""
    if len(a) != len(b):
        return math.inf
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))


def write(path: Path, content: bytes) -> None:
    """Put a file into its place at once, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------- the file


def _document(entries: Sequence[Entry]) -> str:
    """JSON, a line an entry."""
    lines: list[str] = []
    for entry in sorted(entries):
        fields = {
            **entry.machine._asdict(),
            "source": entry.source,
            **entry.key._asdict(),
            "kernel": entry.kernel,
            "parts": entry.parts,
            "microseconds": round(entry.microseconds, 3),
        }
        lines.append(json.dumps(fields))
    body = ",\n".join(lines)
    return f'{{"format": {FORMAT}, "entries": [\n{body}\n]}}\n'


def _read(path: Path) -> list[Entry]:
    """The good entries of a file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("tuned choices in %s are left out: %s", path, error)
        return []
    if not isinstance(document, dict) or cast(Any, document).get("format") != FORMAT:
        _log.warning("tuned choices in %s are left out: not a table of this version", path)
        return []
    rows: Any = cast(Any, document).get("entries")
    entries = [_entry(row) for row in cast(list[Any], rows)] if isinstance(rows, list) else []
    good = [entry for entry in entries if entry is not None]
    if len(good) < len(entries):
        _log.warning("%s: %d broken entries left out", path, len(entries) - len(good))
    return good


def _entry(row: Any) -> Entry | None:
    """An entry of the file, or None if it is none."""
    if not isinstance(row, dict):
        return None
    fields = cast(dict[str, Any], row)

    def text(name: str) -> str:
        if not isinstance(fields[name], str):
            raise TypeError(name)
        return fields[name]

    def numbers(name: str) -> tuple[int, ...]:
        values: list[Any] = fields[name]
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise TypeError(name)
        return tuple(values)

    try:
        machine = Machine(text("gpu"), text("capability"), text("nvrtc"))
        key = Key(text("op"), numbers("shape"), text("dtype"), numbers("detail"), text("precision"))
        parts, time = fields["parts"], fields["microseconds"]
        if type(parts) is not int or parts < 1 or type(time) not in (int, float):
            return None
        if not 0 < time < math.inf:
            return None
        return Entry(machine, text("source"), key, text("kernel"), parts, float(time))
    except (KeyError, TypeError):
        return None
