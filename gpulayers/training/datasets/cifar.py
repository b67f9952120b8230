"""The binary versions of CIFAR-10 and CIFAR-100. Every problem is a `DataError` naming the file."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.readers import check_digest, list_folder, read_bytes

__all__ = ["CIFAR10_FORMAT", "CIFAR100_FORMAT", "CifarFormat", "parse_cifar", "read_cifar"]


@dataclass(frozen=True)
class CifarFormat:
    """A layout of records: label bytes, then a 32 x 32 plane each of red, green and blue.

    (Krizhevsky, "Learning multiple layers of features from tiny images", 2009; layout: the
    datasets' home page.)

    Attributes
    ----------
    title : str
    train, test : file names
        The training files are of one length.
    archive : str
    folder : str
        Where the archive keeps the files.
    label_bytes : int
        The last one is the class.
    classes : int
    """

    title: str
    train: tuple[str, ...]
    test: str
    archive: str
    folder: str
    label_bytes: int
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    @property
    def record(self) -> int:
        """Bytes of an example."""
        return self.label_bytes + 3 * 32 * 32


CIFAR10_FORMAT = CifarFormat(
    title="CIFAR-10",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    label_bytes=1,
    classes=10,
)
# a coarse label of 20 kinds, then the fine one, which is taken
CIFAR100_FORMAT = CifarFormat(
    title="CIFAR-100",
    train=("train.bin",),
    test="test.bin",
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    label_bytes=2,
    classes=100,
)


def parse_cifar(
    data: bytes, source: Path | str, kind: CifarFormat = CIFAR10_FORMAT
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 32, 32, 3) and labels (n,) of one file of the binary version.

    Raises
    ------
    DataError
        If the length is no positive multiple of a record's, or a label is out of range.
    """
    if not data or len(data) % kind.record:
        what = "a label" if kind.label_bytes == 1 else f"{kind.label_bytes} labels"
        raise DataError(
            f"{source}: expected a positive multiple of {kind.record} bytes "
            f"({what} and 32 x 32 x 3 pixels), got {len(data)}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, kind.record)
    labels = records[:, kind.label_bytes - 1]
    if labels.max() >= kind.classes:
        at = int(np.argmax(labels))
        raise DataError(
            f"{source}: expected labels 0..{kind.classes - 1}, got {labels[at]} at record {at}"
        )
    planes = records[:, kind.label_bytes :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def read_cifar(
    folder_or_archive: Path,
    digests: Mapping[str, str] | None = None,
    kind: CifarFormat = CIFAR10_FORMAT,
) -> tuple[Split, Split]:
    """Read the ``.bin`` files from a folder, or from the ``.tar.gz``, without unpacking it.

    Raises
    ------
    DataError
        If a file is missing or unreadable, or as `parse_cifar` does; if the training files differ
        in length (one was cut); if a digest is given and differs.
    """
    if folder_or_archive.is_dir():
        contents = _folder(folder_or_archive, kind)
    else:
        contents = _archive(folder_or_archive, kind)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (data, source) in contents.items():
        parts[name] = parse_cifar(data, source, kind)
        if digests:
            check_digest(data, digests[name], source)
    batches = [parts[name] for name in kind.train]
    counts = [len(labels) for _, labels in batches]
    if len(set(counts)) > 1:
        raise DataError(
            f"{folder_or_archive}: the five data_batch files must be of one length, got {counts} "
            "images"
        )
    names = "data_batch_1..5.bin" if kind is CIFAR10_FORMAT else ", ".join(kind.train)
    train = Split(
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
        f"{folder_or_archive} ({names})",
    )
    images, labels = parts[kind.test]
    return train, Split(images, labels, f"{folder_or_archive} ({kind.test})")


def _folder(folder: Path, kind: CifarFormat) -> dict[str, tuple[bytes, str]]:
    missing = [name for name in kind.files if name not in list_folder(folder)]
    if missing:
        raise DataError(f"{folder}: the {kind.title} binary version lacks {', '.join(missing)}")
    return {name: (read_bytes(folder / name), str(folder / name)) for name in kind.files}


def _archive(path: Path, kind: CifarFormat) -> dict[str, tuple[bytes, str]]:
    # The whole file is unpacked in memory first: only so is the CRC at its end checked.
    packed = io.BytesIO(read_bytes(path))
    contents: dict[str, tuple[bytes, str]] = {}
    try:
        with tarfile.open(fileobj=packed, mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                file = archive.extractfile(member) if member.isfile() else None
                if name not in kind.files or file is None:
                    continue
                if name in contents:
                    raise DataError(f"{path}: the archive holds {name} twice")
                contents[name] = (file.read(), f"{path}:{member.name}")
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a readable tar archive: {error}") from error
    missing = [name for name in kind.files if name not in contents]
    if missing:
        raise DataError(
            f"{path}: the archive of the {kind.title} binary version lacks {', '.join(missing)}"
        )
    return {name: contents[name] for name in kind.files}
