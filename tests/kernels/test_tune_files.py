"""The tuner's files: what was measured, and machine code; broken, foreign, written by several."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpulayers.cuda import cubins, table
from gpulayers.cuda.compile import load_source
from gpulayers.cuda.cubins import Job, Store
from gpulayers.cuda.tune_key import Candidate, Key
from gpulayers.cuda.tune_table import Entry, Machine, Table, distance, shipped

GPU = Machine("A GPU", "9.0", "13.1")
KEY = Key("conv2d_forward", (64, 28, 28, 1, 6), "float32", (5, 5, 0, 1), "tf32")
WIDE, NARROW = Candidate("gemm", 64, 64, 4, 75), Candidate("gemm_narrow", 256, 16, 2, 150)
KNOWN = (NARROW, NARROW._replace(parts=8), WIDE)


def entry(key: Key = KEY, machine: Machine = GPU, kernel: str = "gemm", parts: int = 4) -> Entry:
    return Entry(machine, "abc", key, kernel, parts, 12.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "choices.json"


# ------------------------------------------------------------------------------------ the choices


def test_round_trip(path: Path) -> None:
    entries = [entry(), entry(KEY._replace(detail=())), entry(machine=GPU._replace(gpu='"é\n'))]
    Table(path).add(entries)
    Table(path).add([entry(parts=1)])
    read = Table(path)
    assert sorted(read.entries) == sorted([entry(parts=1), *entries[1:]])
    assert read.find(GPU, "abc", KEY, KNOWN) is None, "no candidate with one part"
    assert Table(path).path.parent.stat().st_mode & 0o077 == 0 or sys.platform == "win32"


def test_what_an_entry_holds_for(path: Path) -> None:
    found = Table(path)
    found.add([entry()])
    assert found.find(GPU, "abc", KEY, KNOWN) == WIDE
    for machine in (GPU._replace(gpu="B"), GPU._replace(capability="8.0")):
        assert found.find(machine, "abc", KEY, KNOWN) is None
        assert found.nearest(machine, "abc", KEY, KNOWN) is None
    newer = GPU._replace(nvrtc="13.2")
    assert found.find(newer, "abc", KEY, KNOWN) is None
    assert found.nearest(newer, "abc", KEY, KNOWN) == WIDE
    for source, key in (
        ("abd", KEY),
        *(("abc", KEY._replace(**change)) for change in ({"op": "x"}, {"dtype": "float16"})),
        *(("abc", KEY._replace(**change)) for change in ({"detail": ()}, {"precision": ""})),
    ):
        assert found.find(GPU, source, key, KNOWN) is None
        assert found.nearest(GPU, source, key, KNOWN) is None
    assert found.find(GPU, "abc", KEY, (NARROW,)) is None


def test_the_nearest_shape(path: Path) -> None:
    far = KEY._replace(shape=(256, 28, 28, 1, 6))
    found = Table(path)
    found.add([entry(kernel="gemm_narrow", parts=7), entry(far), entry(kernel="gone", parts=1)])
    found.add([entry(kernel="gemm_narrow", parts=7)])
    near = found.nearest(GPU, "abc", KEY._replace(shape=(65, 28, 28, 1, 6)), KNOWN)
    assert near == NARROW._replace(parts=8), "its parts the nearest there are"
    assert found.nearest(GPU, "abc", KEY._replace(shape=(200, 28, 28, 1, 6)), KNOWN) == WIDE
    assert found.nearest(GPU, "abc", KEY._replace(shape=(1025, 28, 28, 1, 6)), KNOWN) is None
    assert found.nearest(GPU, "abc", KEY._replace(shape=(64, 28)), KNOWN) is None
    assert distance((8, 3), (2, 6)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"[]",
        b'{"format": 2, "entries": []}',
        b'{"format": 1, "entries": 3}',
        b"[" * 100_000,
        b"cut",
    ],
)
def test_a_broken_file_counts_as_empty_and_is_written_anew(path: Path, content: bytes) -> None:
    Table(path).add([entry()])
    path.write_bytes(path.read_bytes()[:-40] if content == b"cut" else content)
    broken = Table(path)
    assert broken.entries == []
    assert broken.nearest(GPU, "abc", KEY, KNOWN) is None
    broken.add([entry()])
    assert Table(path).entries == [entry()]


def test_broken_entries_are_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Table(path).add([entry()])
    document = json.loads(path.read_text(encoding="utf-8"))
    good = document["entries"][0]
    bad: list[Any] = [{**good, name: None} for name in good]
    bad += [{**good, "parts": 0}, {**good, "parts": True}, {**good, "microseconds": -1.0}]
    bad += [{**good, "microseconds": float("nan")}, {**good, "shape": [1.5]}, 7, [], "x", {}]
    document["entries"] += bad
    path.write_text(json.dumps(document), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "gpulayers"):
        assert Table(path).entries == [entry()]
    assert f"{len(bad)} broken entries" in caplog.text


def test_where_nothing_can_be_written_choices_count_for_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = Table(tmp_path / "file" / "choices.json")
    with caplog.at_level(logging.WARNING, "gpulayers"):
        found.add([entry()])
    assert found.find(GPU, "abc", KEY, KNOWN) == WIDE
    assert "could not be kept" in caplog.text


WRITER = """
import sys
from pathlib import Path
from gpulayers.cuda.tune_table import Entry, Machine, Table
from gpulayers.cuda.tune_key import Key
for i in range(25):
    key = Key(sys.argv[2], (i,), "float32")
    Table(Path(sys.argv[1])).add([Entry(Machine("A", "9.0", "13.1"), "s", key, "gemm", 1, 1.0)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files are locked on POSIX only")
def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert {(e.key.op, e.key.shape[0]) for e in Table(path).entries} == {
        (name, i) for name in "ab" for i in range(25)
    }
    assert sorted(p.name for p in path.parent.iterdir()) == ["choices.json", "choices.lock"]


def test_the_package_brings_a_table_and_nothing_that_was_not_measured() -> None:
    assert shipped().path.exists()
    assert shipped().entries == []


# ----------------------------------------------------------------------------------- machine code


def job(name: str = "gemm", options: tuple[str, ...] = ("-std=c++17",)) -> Job:
    spec = table.KERNELS[name]
    code = load_source(spec.file)
    return Job(code, spec.file, spec.expression("float32", "int32"), options, "sm_90", "13.1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kernels")


def test_machine_code_is_found_for_the_very_job(store: Store) -> None:
    assert store.find(job()) is None
    store.put(job(), b"machine code", "_Z4gemm")
    found = store.find(job())
    assert found is not None
    assert (found.path.read_bytes(), found.symbol) == (b"machine code", "_Z4gemm")
    others = (
        *(job("gemm_narrow"), job(options=()), job()._replace(architecture="sm_80")),
        *(job()._replace(nvrtc="13.2"), job()._replace(code=job().code + " ")),
    )
    assert [store.find(other) for other in others] == [None] * 5
    store.forget(job())
    assert store.find(job()) is None
    store.put(job(), b"machine code", "_Z4gemm")
    store.clear()
    assert list(store.folder.iterdir()) == []


def body(store: Store) -> Path:
    return next(store.folder.glob("*.cubin"))


def head(store: Store) -> Path:
    return next(store.folder.glob("*.json"))


def rewrite(store: Store, **changes: Any) -> None:
    head(store).write_text(json.dumps({**json.loads(head(store).read_text()), **changes}))


def of_another_job(store: Store) -> None:
    other = Store(store.folder.parent / "other")
    other.put(job("gemm_narrow"), b"narrow", "_Z4gemm")
    body(other).rename(store.folder / body(other).name)
    head(store).write_bytes(head(other).read_bytes())


def points_outside(store: Store) -> None:
    (store.folder.parent / "secret.cubin").write_bytes(b"x")
    rewrite(store, digest="../secret")


FAULTS: dict[str, Callable[[Store], object]] = {
    "cut off": lambda store: body(store).write_bytes(body(store).read_bytes()[:-1]),
    "changed": lambda store: body(store).write_bytes(b"Machine code"),
    "empty": lambda store: body(store).write_bytes(b""),
    "gone": lambda store: body(store).unlink(),
    "head cut off": lambda store: head(store).write_bytes(head(store).read_bytes()[:-9]),
    "head of noise": lambda store: head(store).write_bytes(b"\xff\x00"),
    "head of another program": lambda store: head(store).write_text("[1]"),
    "head without a digest": lambda store: rewrite(store, digest=None),
    "of another job": of_another_job,
    "outside": points_outside,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_machine_code_that_is_not_sound_is_made_anew(
    store: Store, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(job(), b"machine code", "_Z4gemm")
    FAULTS[fault](store)
    assert store.find(job()) is None
    compiled: list[Job] = []

    def run(library: str, jobs: Sequence[Job]) -> list[dict[str, str]]:
        compiled.extend(jobs)
        code = base64.b64encode(b"machine code").decode()
        return [{"cubin": code, "symbol": "_Z4gemm"} for _ in jobs]

    monkeypatch.setattr(cubins, "_run", run)
    monkeypatch.setattr(cubins, "nvrtc_path", lambda: "NVRTC")
    for _ in range(2):
        assert cubins.compile_all([job(), job()], store) == []
        assert compiled == [job()], "once"
    found = store.find(job())
    assert found is not None
    assert found.path.read_bytes() == b"machine code"


def test_a_job_without_an_answer_is_left_to_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cubins, "nvrtc_path", lambda: "/nowhere/libnvrtc.so")
    jobs = [job(), job("gemm_narrow"), job(options=())]
    failed = cubins.compile_all(jobs, store, processes=2)
    assert sorted(failed) == sorted(f"{j.expression}: no answer" for j in jobs)
    monkeypatch.setattr(cubins, "nvrtc_path", lambda: None)
    assert cubins.compile_all(jobs, store) == []
    assert len(store) == 0


def test_readers_see_all_or_nothing_while_others_write(store: Store) -> None:
    contents = [bytes([i]) * 20_000 for i in range(4)]
    seen: list[bytes] = []
    done = threading.Event()

    def write(content: bytes) -> None:
        for _ in range(15):
            store.put(job(), content, hashlib.sha256(content).hexdigest())

    def read() -> None:
        while not done.is_set():
            found = store.find(job())
            if found is not None:
                content = found.path.read_bytes()
                assert hashlib.sha256(content).hexdigest() == found.symbol
                seen.append(content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen
    assert set(seen) <= set(contents)
    assert store.find(job()) is not None
    assert sorted(p.suffix for p in store.folder.iterdir()) == [".cubin"] * 4 + [".json"]
