"""Writers of small dataset files for the tests; they share nothing with the readers."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

CIFAR_TRAIN = [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)]
IDX = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of uint8: header, then the values."""
    header = bytes([0, 0, 8, array.ndim])
    for n in array.shape:
        header += struct.pack(">I", n)
    return header + bytes(array.reshape(-1).tolist())


def small_arrays(n_train: int = 12, n_test: int = 5, rows: int = 4, cols: int = 3) -> list:
    """Images and labels, training then test, with every label of 0..2 in the training set."""
    rng = np.random.default_rng(5)
    return [
        rng.integers(0, 256, (n_train, rows, cols), np.uint8),
        (np.arange(n_train) % 3).astype(np.uint8),
        rng.integers(0, 256, (n_test, rows, cols), np.uint8),
        (np.arange(n_test) % 3).astype(np.uint8),
    ]


def write_idx(folder: Path, arrays: list | None = None, packed: bool = True) -> list:
    """Write the four idx files into `folder`; return the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = small_arrays() if arrays is None else arrays
    for name, array in zip(IDX, arrays, strict=True):
        data = idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return arrays


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """CIFAR-10 records from images (n, 32, 32, 3), byte by byte."""
    out = bytearray()
    for image, label in zip(images, labels, strict=True):
        out.append(int(label))
        for channel in range(3):
            for row in range(32):
                out += bytes(image[row, :, channel].tolist())
    return bytes(out)


def write_cifar(folder: Path, per_file: int = 2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write the six binary files; return images and labels of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    written = {}
    for name in [*CIFAR_TRAIN, "test_batch.bin"]:
        images = rng.integers(0, 256, (per_file, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, per_file)
        written[name] = images, labels
        (folder / name).write_bytes(cifar_bytes(images, labels))
    return written
