"""How much each side's installation takes on disk: its package and all that this one requires."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["installed"]

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
#: side -> its package, and the extra that a GPU needs by the package that tells which it is
_SIDES: dict[str, tuple[str, dict[str, str]]] = {
    "gpulayers": ("gpulayers", {"cupy-cuda13x": "cuda13", "cupy-cuda12x": "cuda12"}),
    "torch": ("torch", {}),
    "jax": ("jax", {"jax-cuda13-plugin": "cuda13", "jax-cuda12-plugin": "cuda12"}),
}


def installed() -> dict[str, dict[str, Any]]:
    """MiB on disk, the packages counted, and those that are required and not here.

    A package that two sides need counts for both: each would be installed alone.

    Raises
    ------
    ImportError
        If nothing here reads requirements.
    """
    found = {}
    for side, (package, extras) in _SIDES.items():
        usual = next(iter(extras.values()), None)
        extra = next((extra for sign, extra in extras.items() if _is_there(sign)), usual)
        if not _is_there(package) and importlib.util.find_spec(package) is None:
            continue
        packages, missing = closure(package, [extra] if extra else [])
        total = sum(bytes_of(name) for name in packages)
        name = package + (f"[{extra}]" if extra else "")
        found[side] = {"of": name, "MiB": total / 2**20, "packages": sorted(packages)}
        if missing:
            found[side]["missing"] = sorted(missing)
    return found


def closure(package: str, extras: Iterable[str]) -> tuple[set[str], set[str]]:
    """The packages that one needs with these extras, itself among them; those that are not here."""
    reader, normal = _packaging()
    packages: set[str] = set()
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    wanted = [(normal(package), extra) for extra in ("", *extras)]
    while wanted:
        name, extra = pair = wanted.pop()
        if pair in seen:
            continue
        seen.add(pair)
        lines = _requirements(name)
        if lines is None:
            missing.add(name)
            continue
        packages.add(name)
        for line in lines:
            needed = reader(line)
            if needed.marker is None:
                holds = not extra  # it is needed without the extra, too
            else:
                holds = needed.marker.evaluate({"extra": extra})
            if holds:
                wanted += [(normal(needed.name), more) for more in ("", *needed.extras)]
    return packages, missing


def _packaging() -> tuple[Any, Any]:
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:  # pip has a copy
        from pip._vendor.packaging.requirements import Requirement
        from pip._vendor.packaging.utils import canonicalize_name
    return Requirement, canonicalize_name


def _is_there(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _requirements(package: str) -> list[str] | None:
    """Lines of a package's metadata; ours from the checkout, where it is not installed."""
    try:
        return list(importlib.metadata.requires(package) or ())
    except importlib.metadata.PackageNotFoundError:
        if package != "gpulayers":
            return None
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, needed in project["optional-dependencies"].items():
        for name, _, marker in (line.partition(";") for line in needed):
            here = f"({marker}) and " if marker else ""
            lines.append(f'{name}; {here}extra == "{extra}"')
    return lines


def bytes_of(package: str) -> int:
    """Of a package's files on disk; ours are those of the folder it is imported from."""
    spec = importlib.util.find_spec("gpulayers") if package == "gpulayers" else None
    if spec is not None and spec.submodule_search_locations:
        return sum(_size(p) for p in Path(spec.submodule_search_locations[0]).rglob("*"))
    files = importlib.metadata.distribution(package).files or ()
    return sum(_size(Path(str(file.locate()))) for file in files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() and "__pycache__" not in path.parts else 0
    except OSError:
        return 0
