"""Small data and networks, so that a training run takes a fraction of a second."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpulayers import random
from gpulayers.training.data import Dataset, Split, load_data


@pytest.fixture(autouse=True)
def _seeded():
    """Tests do not depend on the numbers drawn by those before them."""
    random.seed(0)


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_data("mnist-10k")


@pytest.fixture(scope="session")
def digits(mnist: Dataset) -> Dataset:
    """300 + 100 real digits shrunk to 10 x 10 pixels; 300 is no multiple of the batch sizes."""

    def part(split: Split, n: int) -> Split:
        images = split.images[:n, 4:24, 4:24].reshape(n, 10, 2, 10, 2, 1).astype(np.float64)
        return Split(images.mean(axis=(2, 4)).round().astype(np.uint8), split.labels[:n])

    return Dataset("digits", part(mnist.train, 300), part(mnist.test, 100), mnist.classes)


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder for whose files permissions count: root is set aside for the test."""
    if sys.platform == "win32":
        pytest.skip("no POSIX permissions")
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if user == 0:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)
