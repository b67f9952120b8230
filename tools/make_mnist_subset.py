"""Make the MNIST subset that ships with gpulayers from a folder with the full MNIST.

    python tools/make_mnist_subset.py FOLDER [--out FILE]

FOLDER holds the four published files (train-images-idx3-ubyte, ... plain or .gz); their contents
are checked against the published digests. The content of the result is the same bit for bit
wherever it is made; its compressed form may differ between versions of liblzma.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import struct
import sys
from pathlib import Path

import numpy as np

from gpulayers.errors import DataError
from gpulayers.training.datasets import bundled
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.readers import find_idx, read_idx
from gpulayers.training.datasets.registry import MNIST

TRAIN_PER_CLASS, TEST_PER_CLASS = 1000, 200

# Of plain zlib, bz2 and xz, each on pixels and on differences of rows or columns, xz on plain
# pixels gives the smallest file; lc=4 and pb=0 suit bytes that depend on the byte before them.
XZ_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": 4,
        "lp": 0,
        "pb": 0,
        "dict_size": 1 << 24,
        "nice_len": 273,
    }
]


def choose(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return the indices of `per_class` examples of each class, evenly spaced, in order.

    Even spacing covers the whole set: MNIST's test set has two halves, drawn by different groups
    of writers, so that its first examples do not stand for it.
    """
    chosen = []
    for label in range(10):
        where = np.flatnonzero(labels == label)
        steps = (2 * np.arange(per_class) + 1) * len(where) // (2 * per_class)
        chosen.append(where[steps])
    return np.sort(np.concatenate(chosen))


def idx(array: np.ndarray) -> bytes:
    """Return `array` of uint8 as the bytes of an idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_payload(train: Split, test: Split) -> bytes:
    """Return the unpacked content of the subset: four idx files, one after the other."""
    payload = b""
    for split, per_class in ((train, TRAIN_PER_CLASS), (test, TEST_PER_CLASS)):
        chosen = choose(split.labels, per_class)
        payload += idx(split.images[chosen, ..., 0])
        payload += idx(split.labels[chosen].astype(np.uint8))
    return payload


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the bundled MNIST subset.")
    parser.add_argument("folder", type=Path, help="folder with the four files of the full MNIST")
    default = Path(bundled.__file__).with_name(bundled.FILE)
    parser.add_argument("--out", type=Path, default=default, help=f"file to write ({default})")
    options = parser.parse_args(arguments)
    try:
        files, missing = find_idx(options.folder)
        if missing:
            raise DataError(f"{options.folder}: lacks {', '.join(missing)}")
        payload = make_payload(*read_idx(files, MNIST.digests))
        packed = lzma.compress(payload, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=XZ_FILTERS)
        options.out.write_bytes(packed)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(packed)} bytes, {len(payload)} unpacked")
    print(f"content sha256:{hashlib.sha256(payload).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
