"""What the tests of the commands share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers.cli import main


def two_kinds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark (0) and bright (1) images of 12 x 12 pixels, and their labels."""
    labels = np.arange(n) % 2
    images = np.random.default_rng(seed).integers(0, 120, (n, 12, 12, 1))
    return (images + 100 * labels[:, None, None, None]).astype(np.uint8), labels


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one's own with the classes dark and bright."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    arrays: dict[str, Any] = {}
    for seed, (part, n) in enumerate((("train", 96), ("test", 32))):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = two_kinds(n, seed)
    np.savez(path, **arrays, classes=np.array(["dark", "bright"]))
    return path


@pytest.fixture
def tiny(tiny_set: Path, tmp_path: Path) -> str:
    """The same in the test's own folder."""
    return shutil.copy(tiny_set, tmp_path / "tiny.npz").as_posix()


@pytest.fixture(scope="session")
def trained(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["--data", str(tiny_set), "--model", "mlp", "--epochs", "2", "--batch-size", "16"]
    assert main(["train", *arguments, "--device", "cpu", "--quiet", "--out", str(out)]) == 0
    return out
