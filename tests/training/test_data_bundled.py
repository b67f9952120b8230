"""The MNIST subset in the package: its facts, its checksum, its origin in the full MNIST."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import os
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gpulayers.errors import DataError
from gpulayers.training.data import load_data
from gpulayers.training.datasets import bundled
from tests.training.dataset_files import IDX, idx_bytes

ROOT = Path(__file__).parents[2]
PACKAGE = "gpulayers.training.datasets"
MNIST_FOLDERS = [ROOT.parent / "shared" / "data" / "mnist"]
if os.environ.get("GPULAYERS_DATA"):
    given = Path(os.environ["GPULAYERS_DATA"])
    MNIST_FOLDERS += [given / "mnist", given]


def tool() -> ModuleType:
    """tools/make_mnist_subset.py as a module."""
    path = ROOT / "tools" / "make_mnist_subset.py"
    if not path.exists():
        pytest.skip("tools/ is not part of this distribution")
    spec = importlib.util.spec_from_file_location("make_mnist_subset", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mnist_folder() -> Path:
    for folder in MNIST_FOLDERS:
        if (folder / f"{IDX[0]}.gz").exists():
            return folder
    pytest.skip("the full MNIST is not on this machine")


def full_mnist(folder: Path) -> list[np.ndarray]:
    """The four arrays of the full MNIST, read by their known offsets."""
    arrays = []
    for name, offset in zip(IDX, (16, 8, 16, 8), strict=True):
        raw = gzip.decompress((folder / f"{name}.gz").read_bytes())
        array = np.frombuffer(raw, np.uint8, offset=offset)
        arrays.append(array.reshape(-1, 28, 28) if offset == 16 else array)
    return arrays


def packed_bytes() -> bytes:
    return resources.files(PACKAGE).joinpath(bundled.FILE).read_bytes()


def test_facts() -> None:
    data = load_data()
    assert data.name == "mnist-10k"
    assert data.classes == tuple("0123456789")
    assert data.train.images.shape == (10_000, 28, 28, 1)
    assert data.test.images.shape == (2_000, 28, 28, 1)
    assert data.train.images.dtype == data.test.images.dtype == np.uint8
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64
    assert np.bincount(data.train.labels).tolist() == [1000] * 10
    assert np.bincount(data.test.labels).tolist() == [200] * 10
    assert data.train.images.min() == 0 and data.train.images.max() == 255
    # MNIST's own mean and std are 0.1307 and 0.3081; a fair sample of it must come close.
    assert data.train.images.mean() / 255 == pytest.approx(0.1307, abs=0.003)
    assert data.train.images.std() / 255 == pytest.approx(0.3081, abs=0.003)


def test_digits_are_in_the_order_of_mnist_not_sorted_by_class() -> None:
    labels = load_data().train.labels
    assert len(set(labels[:100].tolist())) == 10


def test_no_image_is_in_both_splits_or_twice() -> None:
    data = load_data()
    train = {image.tobytes() for image in data.train.images}
    test = {image.tobytes() for image in data.test.images}
    assert len(train) == 10_000 and len(test) == 2_000
    assert not train & test


def test_describe() -> None:
    assert load_data("mnist-10k").describe().splitlines() == [
        "mnist-10k: 10000 training and 2000 test images, 28 x 28 x 1 uint8",
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "training images per class: 1000 to 1000",
        "test images per class: 200 to 200",
    ]


def test_size_and_digest() -> None:
    packed = packed_bytes()
    assert len(packed) < 1_700_000
    content = hashlib.sha256(lzma.decompress(packed)).hexdigest()
    assert f"sha256:{content}" == bundled.DIGEST


def test_licence_note_lies_beside_it() -> None:
    text = resources.files(PACKAGE).joinpath("LICENSE-MNIST.txt").read_text(encoding="utf-8")
    for fact in (bundled.FILE, "Yann LeCun", "Corinna Cortes", "ShareAlike 3.0", "1998"):
        assert fact in text


def test_name_is_not_case_sensitive() -> None:
    assert load_data("MNIST_10k").name == "mnist-10k"


# --------------------------------------------------------------------------- a damaged installation


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a copy of the bundled file that load_data reads instead."""
    monkeypatch.setattr(bundled.resources, "files", lambda package: tmp_path)
    path = tmp_path / bundled.FILE
    path.write_bytes(packed_bytes_of_package())
    return path


def packed_bytes_of_package() -> bytes:
    return (Path(bundled.__file__).parent / bundled.FILE).read_bytes()


def test_copy_is_sound(installed: Path) -> None:
    assert len(load_data().train) == 10_000


@pytest.mark.parametrize("position", [0, 3, 5_000, 1_000_000, -20])
def test_flipped_byte(installed: Path, position: int) -> None:
    data = bytearray(installed.read_bytes())
    data[position] ^= 0x10
    installed.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"bundled mnist-10k.*install gpulayers again"):
        load_data()


@pytest.mark.parametrize("keep", [0, 10, 800_000, -1])
def test_truncated(installed: Path, keep: int) -> None:
    installed.write_bytes(installed.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"bundled mnist-10k.*damaged.*install gpulayers again"):
        load_data()


def test_missing(installed: Path) -> None:
    installed.unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file.*install gpulayers again"):
        load_data()


def test_one_other_pixel_fails_the_checksum(installed: Path) -> None:
    content = bytearray(lzma.decompress(installed.read_bytes()))
    content[5_000_000] ^= 1
    installed.write_bytes(lzma.compress(bytes(content), preset=0))
    with pytest.raises(DataError, match=r"not the published one: expected sha256:.* got sha256:"):
        load_data()


# ---------------------------------------------------------------------------- the full MNIST beside


def test_every_digit_is_one_of_the_full_mnist(mnist_folder: Path) -> None:
    full = full_mnist(mnist_folder)
    data = load_data()
    for split, images, labels in ((data.train, *full[:2]), (data.test, *full[2:])):
        where = {image.tobytes(): i for i, image in enumerate(images)}
        found = np.array([where[image.tobytes()] for image in split.images])
        np.testing.assert_array_equal(labels[found], split.labels)
        assert (np.diff(found) > 0).all(), "MNIST's order must be kept"
        assert found[0] < len(images) * 0.01 and found[-1] > len(images) * 0.99


def test_subset_is_made_again_bit_for_bit(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again.xz"
    module = tool()
    # Only the content is compared: the packed bytes may depend on the version of liblzma.
    module.XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 0}]  # fast
    assert module.main([str(mnist_folder), "--out", str(out)]) == 0
    assert lzma.decompress(out.read_bytes()) == lzma.decompress(packed_bytes())
    assert bundled.DIGEST in capsys.readouterr().out


def test_tool_refuses_other_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tool()
    assert module.main([str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "lacks train-images-idx3-ubyte" in capsys.readouterr().err
    for name in IDX:
        shape = (3, 28, 28) if "images" in name else (3,)
        (tmp_path / name).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    assert module.main([str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "not the published one" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_choice_is_balanced_and_even() -> None:
    labels = np.repeat(np.arange(10), [20, 20, 20, 20, 20, 20, 20, 20, 20, 41])
    chosen = tool().choose(labels, 4)
    assert chosen[:4].tolist() == [2, 7, 12, 17]
    assert (chosen[-4:] - 180).tolist() == [5, 15, 25, 35]
    assert np.bincount(labels[chosen]).tolist() == [4] * 10


if sys.platform != "win32":

    def test_works_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        assert len(load_data("mnist-10k").test) == 2_000
