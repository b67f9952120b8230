"""Downloads of the published data sets, from a server on the loopback."""

from __future__ import annotations

import builtins
import dataclasses
import gzip
import http.server
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulayers.errors import DataError
from gpulayers.training.data import load_data
from gpulayers.training.datasets import locate
from gpulayers.training.datasets.registry import CIFAR10, PUBLISHED, Download
from tests.training.dataset_files import IDX, write_cifar
from tests.training.test_data_files import check_cifar, pack
from tests.training.test_data_sources import (
    CONTENT,
    SERVED,
    alone,  # noqa: F401 - a fixture
    check,
    downloads,
    sha256,
    tiny,  # noqa: F401 - a fixture
    write_idx,
)


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
def server(
    tiny: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Server]:
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


def test_offline_machine(
    tiny: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
        with pytest.raises(
            DataError, match=r"needs the package pooch: pip install pooch\."
        ) as caught:
            load_data("mnist")
        assert "GPULAYERS_DATA" in str(caught.value)
        assert server.asked == []


def test_pooch_keeps_its_log_level(server: Server) -> None:
    import pooch

    before = pooch.get_logger().level
    assert before != logging.WARNING
    load_data("mnist")
    assert pooch.get_logger().level == before
