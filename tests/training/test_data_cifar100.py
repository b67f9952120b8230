"""CIFAR-100 in its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpulayers.errors import DataError
from gpulayers.training import load_data
from tests.training.test_data_files import pack


def write_cifar100(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """train.bin and test.bin, byte by byte: coarse label, fine label, three planes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    written = {}
    for name, n in (("train.bin", 4), ("test.bin", 3)):
        images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        labels = np.array([99, 0, 57, 23][:n])
        data = bytearray()
        for image, label in zip(images, labels, strict=True):
            data += bytes([int(label) % 20, int(label)])
            for channel in range(3):
                data += bytes(image[:, :, channel].reshape(-1).tolist())
        (folder / name).write_bytes(bytes(data))
        written[name] = images, labels
    return written


@pytest.mark.parametrize("layout", ["folder", "above", "archive", "name"])
def test_cifar100(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "cifar-100-binary"
    written = write_cifar100(folder)
    archive = tmp_path / "cifar-100-binary.tar.gz"
    if layout == "archive":
        pack(archive, folder)
        data = load_data(archive)
    elif layout == "name":
        data = load_data("cifar100", data_dir=tmp_path, download=False)
    else:
        data = load_data(folder if layout == "folder" else tmp_path)
    for split, (images, labels) in zip((data.train, data.test), written.values(), strict=True):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
    assert len(data.classes) == 100
    assert [data.classes[i] for i in (0, 23, 57, 99)] == ["apple", "cloud", "pear", "worm"]


def test_damaged_cifar100(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    path = tmp_path / "test.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"test.bin: expected a positive multiple of 3074 bytes"):
        load_data(tmp_path)
    path.write_bytes(whole[:3074] + bytes([0, 100]) + whole[3076:])
    with pytest.raises(DataError, match=r"expected labels 0..99, got 100 at record 1"):
        load_data(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"the CIFAR-100 binary version lacks test.bin"):
        load_data(tmp_path)
