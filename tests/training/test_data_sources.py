"""Finding a published dataset offline, and downloading it: from a server on the loopback."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gpulayers.errors import DataError
from gpulayers.training.data import load_data
from gpulayers.training.datasets import locate
from gpulayers.training.datasets.registry import CIFAR10, FASHION_MNIST, MNIST, PUBLISHED, Download
from tests.training.dataset_files import CIFAR_TRAIN, IDX, idx_bytes, small_arrays, write_cifar
from tests.training.dataset_files import write_idx as write_idx_files
from tests.training.test_data_bundled import MNIST_FOLDERS
from tests.training.test_data_files import check_cifar, pack

ARRAYS = small_arrays()
CONTENT = {name: idx_bytes(array) for name, array in zip(IDX, ARRAYS, strict=True)}
SERVED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in CONTENT.items()}


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, no cache and no proxy but the test's own."""
    monkeypatch.delenv("GPULAYERS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name mnist means the small arrays, fashion-mnist others, and nothing can be fetched."""
    digests = {name: sha256(data) for name, data in CONTENT.items()}
    mnist = dataclasses.replace(MNIST, digests=digests, downloads=downloads("http://127.0.0.1:9"))
    other = {name: sha256(data + b"other") for name, data in CONTENT.items()}
    fashion = dataclasses.replace(FASHION_MNIST, digests=other, downloads=mnist.downloads)
    monkeypatch.setitem(PUBLISHED, "mnist", mnist)
    monkeypatch.setitem(PUBLISHED, "fashion-mnist", fashion)


def downloads(*mirrors: str) -> tuple[Download, ...]:
    return tuple(
        Download(name, sha256(data), tuple(f"{mirror}/{name}" for mirror in mirrors))
        for name, data in SERVED.items()
    )


def write_idx(folder: Path, packed: bool = True) -> None:
    write_idx_files(folder, ARRAYS, packed)


def check(data) -> None:
    assert data.name == "mnist" and data.classes == tuple("0123456789")
    np.testing.assert_array_equal(data.train.images[..., 0], ARRAYS[0])
    np.testing.assert_array_equal(data.train.labels, ARRAYS[1])
    np.testing.assert_array_equal(data.test.images[..., 0], ARRAYS[2])
    np.testing.assert_array_equal(data.test.labels, ARRAYS[3])


@pytest.mark.usefixtures("tiny")
class TestOffline:
    @pytest.mark.parametrize("subfolder", ["", "mnist", "MNIST/raw"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_data_dir(self, tmp_path: Path, subfolder: str, packed: bool) -> None:
        write_idx(tmp_path / "data" / subfolder, packed)
        check(load_data("mnist", data_dir=tmp_path / "data", download=False))
        check(load_data("MNIST", data_dir=str(tmp_path / "data")))

    @pytest.mark.parametrize("subfolder", ["", "mnist"])
    def test_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str
    ) -> None:
        write_idx(tmp_path / "data" / subfolder)
        with pytest.raises(DataError, match="mnist: not found on this machine"):
            load_data("mnist", download=False)
        monkeypatch.setenv("GPULAYERS_DATA", str(tmp_path / "data"))
        check(load_data("mnist", download=False))

    def test_data_dir_goes_before_environment_and_environment_before_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("first", "second"):
            write_idx(tmp_path / name)
        write_idx(locate.cache_dir() / "mnist")
        monkeypatch.setenv("GPULAYERS_DATA", str(tmp_path / "second"))
        for folder in (tmp_path / "first", tmp_path / "second", locate.cache_dir() / "mnist"):
            check(load_data("mnist", data_dir=tmp_path / "first", download=False))
            (folder / f"{IDX[1]}.gz").write_bytes(b"broken")
            with pytest.raises(DataError, match=f"{folder.name}.*expected gzip data"):
                load_data("mnist", data_dir=tmp_path / "first", download=False)
            shutil.rmtree(folder)
            folder.mkdir()

    def test_home_sign_in_data_dir(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "home" / "data" / "mnist")
        check(load_data("mnist", data_dir="~/data"))

    def test_folder_that_holds_another_dataset_is_passed_over(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "data")
        with pytest.raises(DataError, match=r"data \(holds another dataset\)"):
            load_data("fashion-mnist", data_dir=tmp_path / "data", download=False)

    def test_changed_content_under_the_name_of_the_dataset(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "data" / "mnist", packed=False)
        path = tmp_path / "data" / "mnist" / IDX[2]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=f"{IDX[2]}: the content is not the published one"):
            load_data("mnist", data_dir=tmp_path / "data")
        assert len(load_data(tmp_path / "data" / "mnist").test) == 5  # as a path it is the user's

    def test_message_says_what_is_missing_and_where_it_looked(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "data" / "mnist")
        (tmp_path / "data" / "mnist" / f"{IDX[3]}.gz").unlink()
        with pytest.raises(DataError) as caught:
            load_data("mnist", data_dir=tmp_path / "data", download=False)
        message = str(caught.value)
        assert f"{tmp_path / 'data' / 'mnist'} (lacks {IDX[3]})" in message
        assert str(locate.cache_dir()) in message
        assert f"{IDX[0]}.gz" in message and "GPULAYERS_DATA" in message

    @pytest.mark.parametrize("by_environment", [True, False])
    def test_data_dir_that_is_no_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
    ) -> None:
        where = tmp_path / "nowhere"
        if by_environment:
            monkeypatch.setenv("GPULAYERS_DATA", str(where))
        source = "GPULAYERS_DATA" if by_environment else "data_dir"
        for problem in ("No such file or directory", "Not a directory"):
            with pytest.raises(DataError, match=f"{source}: .*cannot be read: {problem}"):
                load_data("mnist", data_dir=None if by_environment else where)
            where.write_bytes(b"a file")


@pytest.mark.parametrize("layout", ["direct", "cifar10", "cifar-10-batches-bin", "archive"])
def test_cifar_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    data_dir = tmp_path / "data"
    folder = data_dir if layout == "direct" else data_dir / layout
    written = write_cifar(folder)
    digests = {name: sha256((folder / name).read_bytes()) for name in written}
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(CIFAR10, digests=digests))
    if layout == "archive":
        pack(data_dir / "cifar-10-binary.tar.gz", folder)
        shutil.rmtree(folder)
    check_cifar(load_data("cifar10", data_dir=data_dir, download=False), written)
    wrong = {**digests, CIFAR_TRAIN[4]: sha256(b"")}
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(CIFAR10, digests=wrong))
    with pytest.raises(DataError, match=r"data_batch_5\.bin: the content is not the published"):
        load_data("cifar10", data_dir=data_dir, download=False)


def test_cifar_missing_offline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10: not found.*cifar-10-binary\.tar\.gz"):
        load_data("cifar10", data_dir=tmp_path, download=False)


def test_full_mnist_offline() -> None:
    folder = next((f for f in MNIST_FOLDERS if (f / f"{IDX[0]}.gz").exists()), None)
    if folder is None:
        pytest.skip("the full MNIST is not on this machine")
    data = load_data("mnist", data_dir=folder, download=False)  # its published digests are checked
    assert data.train.images.shape == (60_000, 28, 28, 1)
    assert data.test.images.shape == (10_000, 28, 28, 1)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_registry_is_complete() -> None:
    for name, spec in PUBLISHED.items():
        assert spec.name == name and len(spec.classes) == len(set(spec.classes))
        assert len(spec.classes) == (spec.cifar.classes if spec.cifar else 10)
        for item in spec.downloads:
            algorithm, _, value = item.digest.partition(":")
            length = {"sha256": 32, "md5": 16}[algorithm]  # of CIFAR-100 only the md5 is published
            assert len(bytes.fromhex(value)) == length and (length == 32 or name == "cifar100")
            assert all(url.endswith("/" + item.name) for url in item.urls)
        lengths = {"sha256": 32, "sha1": 20, "md5": 16}
        for digest in spec.digests.values():
            algorithm, _, value = digest.partition(":")
            assert len(bytes.fromhex(value)) == lengths[algorithm]
        assert len(set(spec.digests.values())) == len(spec.digests)


def test_cache_folder_by_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert locate.cache_dir() == tmp_path / "cache" / "gpulayers"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert locate.cache_dir() == tmp_path / ".cache" / "gpulayers"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert locate.cache_dir() == tmp_path / "Library" / "Caches" / "gpulayers"
    monkeypatch.setattr(sys, "platform", "win32")
    assert locate.cache_dir() == tmp_path / "cache" / "gpulayers"
    assert os.environ["LOCALAPPDATA"] == str(tmp_path / "cache")
