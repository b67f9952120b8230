"""The MNIST subset that ships with the package: 10,000 training and 2,000 test digits.

The file is one xz stream of four idx files: training images, training labels, test images, test
labels. ``tools/make_mnist_subset.py`` makes it from the full MNIST.
"""

from __future__ import annotations

import lzma
from importlib import resources

import numpy as np

from gpulayers.errors import DataError
from gpulayers.training.datasets.arrays import Split
from gpulayers.training.datasets.readers import check_digest, reason, take_idx

FILE = "mnist-10k.idx.xz"
# Of the unpacked content, which does not depend on the version of the compressor.
DIGEST = "sha256:35663c7b6c8a1fcb11b6ccdd2735cb660c2012002dc435ec105663aa554d1376"


def read_bundled() -> tuple[Split, Split]:
    """Return the training and the test split of the bundled digits.

    Raises
    ------
    DataError
        If the file is missing, damaged, or not the one that was shipped.
    """
    source = f"the bundled {FILE}"
    repair = "install gpulayers again"
    try:
        packed = resources.files("gpulayers.training.datasets").joinpath(FILE).read_bytes()
        payload = lzma.decompress(packed, format=lzma.FORMAT_XZ)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {reason(error)}; {repair}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{source} is damaged: {error}; {repair}") from error
    check_digest(payload, DIGEST, f"{source} ({repair})")
    return unpack(payload, source)


def unpack(payload: bytes, source: str) -> tuple[Split, Split]:
    """Split the four idx arrays in `payload` into the training and the test split."""
    arrays: list[np.ndarray] = []
    offset = 0
    for ndim in (3, 1, 3, 1):
        array, offset = take_idx(payload, offset, ndim, source)
        arrays.append(array)
    return (
        Split(arrays[0][..., None], arrays[1], f"{source} (train)"),
        Split(arrays[2][..., None], arrays[3], f"{source} (test)"),
    )
