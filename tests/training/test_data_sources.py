"""Finding a published dataset offline, and downloading it: from a server on the loopback."""

from __future__ import annotations

import builtins
import dataclasses
import gzip
import hashlib
import http.server
import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
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


# ----------------------------------------------------------------------------------- offline lookup


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


# ---------------------------------------------------------------------------------------- downloads


class Server:
    """An HTTP server on the loopback that serves `files` and notes what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.encodings: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked.append(name)
                outer.encodings.append(self.headers.get("Accept-Encoding"))
                data = outer.files.get(name)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(tiny: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server from which the name mnist is downloaded."""
    pytest.importorskip("pooch")
    server = Server()
    server.files.update(SERVED)
    monkeypatch.setitem(
        PUBLISHED,
        "mnist",
        dataclasses.replace(PUBLISHED["mnist"], downloads=downloads(server.url)),
    )
    yield server
    server.close()


def test_download_into_the_cache_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    check(load_data("mnist"))
    assert sorted(server.asked) == sorted(SERVED)
    assert set(server.encodings) == {"identity"}
    folder = locate.cache_dir() / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(SERVED)
    captured = capsys.readouterr()
    assert captured.out == "" and "train-images" in captured.err  # the progress bar
    server.asked.clear()
    check(load_data("mnist"))
    check(load_data("mnist", download=False))
    assert server.asked == []


def test_download_into_data_dir_or_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    check(load_data("mnist", data_dir=tmp_path / "a"))
    assert len(list((tmp_path / "a" / "mnist").iterdir())) == 4
    monkeypatch.setenv("GPULAYERS_DATA", str(tmp_path / "b"))
    check(load_data("mnist"))
    assert len(list((tmp_path / "b" / "mnist").iterdir())) == 4
    assert not locate.cache_dir().exists()


def test_only_missing_files_are_downloaded(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    write_idx(folder, packed=False)
    (folder / IDX[0]).unlink()
    (folder / IDX[2]).rename(folder / IDX[2].replace("-idx", ".idx"))
    check(load_data("mnist", data_dir=tmp_path / "data"))
    assert server.asked == [f"{IDX[0]}.gz"]


def test_nothing_is_asked_for_when_downloads_are_off(server: Server) -> None:
    with pytest.raises(DataError, match="not found on this machine"):
        load_data("mnist", download=False)
    assert server.asked == []


@pytest.mark.parametrize("fault", ["404", "wrong", "short"])
def test_second_mirror(server: Server, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    spec = dataclasses.replace(
        PUBLISHED["mnist"], downloads=downloads(f"{server.url}/first", f"{server.url}/second")
    )
    monkeypatch.setitem(PUBLISHED, "mnist", spec)
    server.files = {f"second/{name}": data for name, data in SERVED.items()}
    if fault == "wrong":
        server.files |= {f"first/{name}": data + b"!" for name, data in SERVED.items()}
    elif fault == "short":
        server.files |= {f"first/{name}": data[:-1] for name, data in SERVED.items()}
    check(load_data("mnist"))
    assert len(server.asked) == 8


def test_wrong_checksum_leaves_nothing_behind(server: Server) -> None:
    name = f"{IDX[2]}.gz"
    server.files[name] = gzip.compress(CONTENT[IDX[2]] + b"x")
    with pytest.raises(DataError, match=rf"{name} could not be downloaded.*hash of downloaded"):
        load_data("mnist")
    kept = sorted(p.name for p in (locate.cache_dir() / "mnist").iterdir())
    assert kept == sorted([f"{IDX[0]}.gz", f"{IDX[1]}.gz"])
    server.files[name] = SERVED[name]
    check(load_data("mnist"))


def test_status_is_told(server: Server) -> None:
    server.files.clear()
    with pytest.raises(DataError, match="404") as caught:
        load_data("mnist")
    assert f"{server.url}/{IDX[0]}.gz" in str(caught.value)


def test_offline_machine(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    with socket.socket() as closed:  # bound, not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        items = downloads(f"http://127.0.0.1:{closed.getsockname()[1]}")
        spec = dataclasses.replace(PUBLISHED["mnist"], downloads=items)
        monkeypatch.setitem(PUBLISHED, "mnist", spec)
        with pytest.raises(DataError, match=r"could not be downloaded \(offline\?\)") as caught:
            load_data("mnist")
    assert "give it as data_dir or in GPULAYERS_DATA" in str(caught.value)


def test_download_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist").write_bytes(b"in the way")
    with pytest.raises(DataError, match="cannot write downloads to"):
        load_data("mnist", data_dir=tmp_path / "data")


def test_cifar_is_downloaded_as_one_archive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar(tmp_path / "cifar-10-batches-bin")
    pack(tmp_path / "packed.tar.gz", tmp_path / "cifar-10-batches-bin")
    archive = (tmp_path / "packed.tar.gz").read_bytes()
    name = CIFAR10.downloads[0].name
    server.files[name] = archive
    digests = {n: sha256((tmp_path / "cifar-10-batches-bin" / n).read_bytes()) for n in written}
    spec = dataclasses.replace(
        CIFAR10,
        digests=digests,
        downloads=(Download(name, sha256(archive), (f"{server.url}/{name}",)),),
    )
    monkeypatch.setitem(PUBLISHED, "cifar10", spec)
    check_cifar(load_data("cifar10"), written)
    check_cifar(load_data("cifar10", download=False), written)
    assert server.asked == [name]


@pytest.mark.parametrize("missing", ["pooch", "rich"])
def test_missing_package(server: Server, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "rich":  # only the bar is lost
        check(load_data("mnist"))
    else:
        with pytest.raises(DataError, match=r"needs the package pooch: pip install") as caught:
            load_data("mnist")
        assert "gpulayers[train]" in str(caught.value) and "GPULAYERS_DATA" in str(caught.value)
        assert server.asked == []


def test_pooch_keeps_its_log_level(server: Server) -> None:
    import pooch

    before = pooch.get_logger().level
    assert before != logging.WARNING
    load_data("mnist")
    assert pooch.get_logger().level == before


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
