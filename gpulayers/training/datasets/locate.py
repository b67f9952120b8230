"""Finding a published dataset on this machine, or downloading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpulayers._folders import cache_dir
from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.cifar import read_cifar
from gpulayers.training.datasets.readers import (
    IDX_FILES,
    digest,
    find_idx,
    is_folder,
    list_folder,
    read_bytes,
    read_idx,
    reason,
)
from gpulayers.training.datasets.registry import Download, Published

if TYPE_CHECKING:
    from types import ModuleType

ENVIRONMENT = "GPULAYERS_DATA"


def data_roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look in: `data_dir`, ``GPULAYERS_DATA``, the cache folder.

    Raises
    ------
    DataError
        If `data_dir` or ``GPULAYERS_DATA`` is set and is no readable folder.
    """
    roots: list[Path] = []
    for source, value in (("data_dir", data_dir), (ENVIRONMENT, os.environ.get(ENVIRONMENT))):
        if value:
            root = Path(value).expanduser()
            try:
                list_folder(root)
            except DataError as error:
                raise DataError(f"{source}: {error}") from error
            roots.append(root)
    return [*roots, cache_dir()]


def load_published(
    spec: Published, data_dir: str | os.PathLike[str] | None, download: bool
) -> tuple[Split, Split]:
    """Return the splits of a published dataset, found on this machine or else downloaded.

    Each root is searched for the dataset's own folders, then directly. Contents are checked
    against the published digests. Downloads go to the first root.

    Raises
    ------
    DataError
        If it is not found and cannot be downloaded, or its files are damaged.
    """
    roots = data_roots(data_dir)
    looked: list[str] = []
    for root in roots:
        for folder in (*(root / name for name in spec.folders), root):
            found = _find(spec, folder, direct=folder == root, looked=looked)
            if found is not None:
                return found
    if not download:
        raise DataError(f"{spec.name}: not found on this machine. {_advice(spec, looked)}")
    folder = roots[0] / spec.folders[0]
    _fetch(spec, folder, looked)
    found = _find(spec, folder, direct=False, looked=looked)
    if found is None:
        raise DataError(f"{spec.name}: incomplete after its download into {folder}")
    return found


def _find(
    spec: Published, folder: Path, direct: bool, looked: list[str]
) -> tuple[Split, Split] | None:
    """Read the dataset from `folder` if it is there, else note in `looked` why not."""
    if not is_folder(folder):
        looked.append(f"{folder} (no such folder)")
        return None
    if spec.cifar is not None:
        present = list_folder(folder)
        if present.issuperset(spec.cifar.files):
            return read_cifar(folder, spec.digests, spec.cifar)
        if spec.cifar.archive in present:
            return read_cifar(folder / spec.cifar.archive, spec.digests, spec.cifar)
        looked.append(str(folder))
        return None
    files, missing = find_idx(folder)
    if missing:
        lacks = f" (lacks {', '.join(missing)})" if files else ""
        looked.append(f"{folder}{lacks}")
        return None
    labels = IDX_FILES[1]
    # A folder not named after the dataset may well hold another one of the same file names.
    expected = spec.digests[labels]
    if direct and digest(read_bytes(files[labels]), expected) != expected:
        looked.append(f"{folder} (holds another dataset)")
        return None
    return read_idx(files, spec.digests)


def _advice(spec: Published, looked: list[str]) -> str:
    files = ", ".join(item.name for item in spec.downloads)
    return (
        f"Put {files} into a folder and give it as data_dir or in {ENVIRONMENT}. "
        f"Looked in: {'; '.join(looked)}"
    )


def _fetch(spec: Published, folder: Path, looked: list[str]) -> None:
    """Download the files that `folder` lacks; each is checked before it gets its name."""
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"{spec.name}: not found on this machine, and to download it needs the package pooch: "
            f"pip install pooch. Or: {_advice(spec, looked)}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = list_folder(folder)
    except OSError as error:
        raise DataError(
            f"{spec.name}: cannot write downloads to {folder}: {reason(error)}. "
            f"Give another folder as data_dir or in {ENVIRONMENT}"
        ) from error
    have = {name.removesuffix(".gz").replace(".idx", "-idx") for name in present}
    for item in spec.downloads:
        if item.name.removesuffix(".gz") not in have:
            _fetch_one(pooch, spec, item, folder, looked)


def _fetch_one(
    pooch: ModuleType, spec: Published, item: Download, folder: Path, looked: list[str]
) -> None:
    failures: list[str] = []
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # the progress bar says it already
    try:
        for url in item.urls:
            try:
                with _Progress(f"{spec.name}: {item.name}") as bar:
                    # Without "identity" a server may send .gz as an encoding, which is unpacked.
                    get = pooch.HTTPDownloader(
                        progressbar=bar, chunk_size=1 << 16, headers={"Accept-Encoding": "identity"}
                    )
                    pooch.retrieve(url, item.digest, item.name, folder, downloader=get)
                return
            except (OSError, ValueError) as error:  # connection, HTTP status, disk; digest
                failures.append(f"{url}: {error}")
    finally:
        logger.setLevel(level)
    raise DataError(
        f"{spec.name}: {item.name} could not be downloaded (offline?). "
        f"{_advice(spec, looked)}. Tried: {'; '.join(failures)}"
    )


class _Progress:
    """A progress bar with pooch's protocol, drawn by rich on stderr; silent without rich."""

    def __init__(self, description: str) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
        except ImportError:
            self._progress = None
            return
        self._progress = Progress(
            "{task.description}",
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(description, total=None)

    def __enter__(self) -> _Progress:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def total(self) -> float | None:
        """Bytes to come, None while unknown."""
        return None if self._progress is None else self._progress.tasks[0].total

    @total.setter
    def total(self, total: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, total=total or None)

    def update(self, size: int) -> None:
        """Advance by `size` bytes."""
        if self._progress is not None:
            self._progress.advance(self._task, size)

    def reset(self) -> None:
        """Go back to zero; pooch does so before it fills the bar at the end."""
        if self._progress is not None:
            self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Do nothing: leaving the context stops the bar."""
