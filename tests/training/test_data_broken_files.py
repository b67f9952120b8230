"""Data sets whose files are broken: each says which file it is, and what is wrong with it."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpulayers.errors import DataError
from gpulayers.training.data import load_data
from tests.training.dataset_files import (
    CIFAR_TRAIN,
    IDX,
    cifar_bytes,
    idx_bytes,
    small_arrays,
    write_cifar,
    write_idx,
)
from tests.training.test_data_files import npz_arrays, pack

# --------------------------------------------------------------------------------- broken idx files


def broken_gzip(data: bytes) -> bytes:
    """Flip the stored CRC, so that the data itself still unpacks."""
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


def retyped(data: bytes, position: int, value: int) -> bytes:
    return data[:position] + bytes([value]) + data[position + 1 :]


IDX_FAULTS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty file": (IDX[0], lambda d: b"", "magic number 00 00 08 03.*an empty file"),
    "short magic": (IDX[0], lambda d: d[:3], "magic number.*got 00 00 08$"),
    "wrong magic": (IDX[0], lambda d: b"\x89PNG" + d[4:], "magic number.*got 89 50 4e 47"),
    "wrong type": (IDX[0], lambda d: retyped(d, 2, 0x0D), "values of uint8, got float32"),
    "unknown type": (IDX[0], lambda d: retyped(d, 2, 0x07), "magic number"),
    "labels for images": (
        IDX[0],
        lambda d: idx_bytes(np.zeros(12, np.uint8)),
        "08 03 .*got 00 00 08 01, an array of 1 dim",
    ),
    "images for labels": (
        IDX[1],
        lambda d: idx_bytes(np.zeros((12, 1, 1), np.uint8)),
        "08 01 .*got 00 00 08 03",
    ),
    "cut header": (IDX[0], lambda d: d[:10], "truncated in the header: expected 16 bytes, got 10"),
    "one byte short": (
        IDX[2],
        lambda d: d[:-1],
        "truncated: the header promises 5 x 4 x 3 = 60 bytes of values, got 59",
    ),
    "one byte long": (IDX[3], lambda d: d + b"\0", "1 bytes too many after the 5 values"),
    "huge header": (
        IDX[0],
        lambda d: d[:4] + b"\xff" * 12 + d[16:],
        "truncated: the header promises 4294967295 x 4294967295 x 4294967295",
    ),
    "packed without the name": (IDX[0], gzip.compress, "which is gzip: name the file .gz"),
    "fewer labels": (
        IDX[1],
        lambda d: idx_bytes(np.zeros(11, np.uint8)),
        "12 images but 11 labels; the counts must be equal",
    ),
    "no examples": (
        IDX[2],
        lambda d: idx_bytes(np.zeros((0, 4, 3), np.uint8)),
        "0 images but 5 labels",
    ),
    "no pixels": (IDX[0], lambda d: idx_bytes(np.zeros((12, 0, 3), np.uint8)), "no pixels"),
    "label beyond training's": (
        IDX[3],
        lambda d: idx_bytes(np.array([0, 1, 2, 3, 0], np.uint8)),
        "test label 3 at example 3 is out of range; the 3 classes have labels 0..2",
    ),
    "another image size": (
        IDX[2],
        lambda d: idx_bytes(np.zeros((5, 3, 4), np.uint8)),
        r"train and test images must be alike.*\(4, 3, 1\) uint8 and \(3, 4, 1\) uint8",
    ),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_broken_idx(tmp_path: Path, fault: str) -> None:
    name, damage, message = IDX_FAULTS[fault]
    write_idx(tmp_path, packed=False)
    load_data(tmp_path)  # sound before the damage
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_data(tmp_path)
    if "alike" not in message and "out of range" not in message:
        assert name in str(caught.value), "the message must name the file"


def test_empty_dataset(tmp_path: Path) -> None:
    empty = [np.zeros((0, 4, 3), np.uint8), np.zeros(0, np.uint8)]
    write_idx(tmp_path, [*empty, *small_arrays()[2:]])
    with pytest.raises(DataError, match=r"train-images.*expected at least one example, got none"):
        load_data(tmp_path)


GZIP_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "crc": (broken_gzip, "gzip data is corrupted.*CRC"),
    "truncated": (lambda d: d[:-12], "gzip data is truncated"),
    "no trailer": (lambda d: d[:-8], "gzip data is truncated"),
    "flipped byte": (lambda d: retyped(d, 30, d[30] ^ 0xFF), "gzip data is (corrupted|truncated)"),
    "not gzip": (lambda d: b"<html>no such file", "expected gzip data.*3c 68 74 6d 6c"),
    "empty": (lambda d: b"", "expected gzip data.*0 bytes starting with nothing"),
    "plain": (gzip.decompress, "expected gzip data.*got 76 bytes starting with 00 00 08 03"),
}


@pytest.mark.parametrize("fault", GZIP_FAULTS)
def test_broken_gzip(tmp_path: Path, fault: str) -> None:
    damage, message = GZIP_FAULTS[fault]
    write_idx(tmp_path)
    path = tmp_path / f"{IDX[2]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_data(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("missing", range(4))
def test_missing_idx_file(tmp_path: Path, missing: int) -> None:
    write_idx(tmp_path)
    (tmp_path / f"{IDX[missing]}.gz").unlink()
    with pytest.raises(DataError, match=f"missing {IDX[missing]}$"):
        load_data(tmp_path)


# ------------------------------------------------------------------------------- broken CIFAR files


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_cifar_of_wrong_length(tmp_path: Path, length: int) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\0" * length)
    message = rf"data_batch_3\.bin: expected a positive multiple of 3073 bytes.*got {length}$"
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_cifar_cut_at_a_record(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(DataError, match=r"must be of one length, got \[2, 2, 2, 1, 2\] images"):
        load_data(tmp_path)


def test_cifar_label_out_of_range(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(images, np.array([9, 10])))
    with pytest.raises(
        DataError, match=r"test_batch\.bin: expected labels 0..9, got 10 at rec.* 1"
    ):
        load_data(tmp_path)


def test_cifar_missing_file(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"binary version lacks data_batch_5\.bin"):
        load_data(tmp_path)


ARCHIVE_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "crc": (broken_gzip, "gzip data is corrupted.*CRC"),
    "truncated": (lambda d: d[: len(d) // 2], "gzip data is truncated"),
    "no tar inside": (lambda d: gzip.compress(b"hello" * 500), "not a readable tar archive"),
    "cut tar": (lambda d: gzip.compress(gzip.decompress(d)[:4000]), "not a readable tar archive"),
    "other files": (lambda d: other_archive(), "lacks data_batch_1.bin, data_batch_2.bin"),
    "not gzip": (lambda d: b"PK\3\4", "expected gzip data"),
}


def other_archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"))
    return packed.getvalue()


@pytest.mark.parametrize("fault", ARCHIVE_FAULTS)
def test_broken_archive(tmp_path: Path, fault: str) -> None:
    damage, message = ARCHIVE_FAULTS[fault]
    write_cifar(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-binary.tar.gz"
    pack(path, tmp_path / "cifar-10-batches-bin")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert str(path) in str(caught.value)


def test_archive_with_a_file_twice_or_a_link(tmp_path: Path) -> None:
    write_cifar(tmp_path / "in")
    for kind, message in (("twice", "holds data_batch_1.bin twice"), ("link", "lacks test_batch")):
        path = tmp_path / f"{kind}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in CIFAR_TRAIN:
                archive.add(tmp_path / "in" / name, arcname=name)
            if kind == "twice":
                archive.add(tmp_path / "in" / CIFAR_TRAIN[0], arcname=f"b/{CIFAR_TRAIN[0]}")
            else:
                link = tarfile.TarInfo("test_batch.bin")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
                archive.addfile(link)
        with pytest.raises(DataError, match=message):
            load_data(path)


# --------------------------------------------------------------------------------- broken npz files


def changed(**new: np.ndarray) -> Callable[[dict], dict]:
    return lambda arrays: {**arrays, **new}


def without(key: str) -> Callable[[dict], dict]:
    return lambda arrays: {k: v for k, v in arrays.items() if k != key}


NAN_IMAGES = np.zeros((6, 5, 4, 3), np.float32)
NAN_IMAGES[4, 2, 1, 0] = np.nan
INF_IMAGES = np.zeros((6, 5, 4, 3), np.float64)
INF_IMAGES[0, 0, 0, 0] = -np.inf

NPZ_FAULTS: dict[str, tuple[Callable[[dict], dict], str]] = {
    "missing key": (without("y_test"), "missing y_test, found x_test, x_train, y_train"),
    "object images": (
        changed(x_train=np.array([[1], [2, 3]], object)),
        "x_train cannot be read: Object arrays cannot be loaded",
    ),
    "object labels": (
        changed(y_test=np.array([2, None], object)),
        "y_test cannot be read: Object arrays cannot be loaded",
    ),
    "signed images": (
        changed(x_train=np.zeros((6, 5, 4, 3), np.int16)),
        "images must be uint8 or floating, got dtype int16",
    ),
    "complex images": (changed(x_test=np.zeros((2, 5, 4, 3), complex)), "got dtype complex128"),
    "flat images": (
        changed(x_train=np.zeros((6, 60), np.uint8)),
        r"images must have shape \(n, rows, cols, channels\), got \(6, 60\)",
    ),
    "images of rank 5": (changed(x_test=np.zeros((2, 5, 4, 3, 1), np.uint8)), r"2, 5, 4, 3, 1"),
    "float labels": (changed(y_train=np.zeros(6)), "labels must be integers, got dtype float64"),
    "boolean labels": (
        changed(y_test=np.zeros(2, bool)),
        "labels must be integers, got dtype bool",
    ),
    "one-hot labels": (
        changed(y_train=np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]),
        r"labels must have shape \(n,\), got \(6, 3\); one-hot rows become integers with .argmax",
    ),
    "one-hot floats": (
        changed(y_train=np.eye(3)[[0, 1, 2, 0, 1, 2]]),
        r"got dtype float64 \(6, 3\); one-hot rows become integers with .argmax",
    ),
    "words as labels": (
        changed(y_train=np.array(list("abcabc"))),
        r"got dtype <U1; np.unique\(labels, return_inverse=True\)",
    ),
    "negative label": (
        changed(y_train=np.array([0, 1, 2, 0, -1, 2])),
        "labels must count from 0, got -1 at example 4",
    ),
    "absurd label": (
        changed(y_train=np.array([0, 1, 2, 2**62, 1, 2])),
        "labels must be below 65536, got 4611686018427387904 at example 3",
    ),
    "unsigned absurd label": (
        changed(y_train=np.array([0, 1, 2, 2**64 - 1, 1, 2], np.uint64)),
        "labels must be below 65536, got 18446744073709551615",
    ),
    "label out of range": (
        changed(y_test=np.array([0, 3])),
        "test label 3 at example 1 is out of range",
    ),
    "label beyond the names": (
        changed(classes=np.array(["a", "b"])),
        "train label 2 at example 2 is out of range; the 2 classes",
    ),
    "counts": (changed(y_train=np.zeros(7, int)), "6 images but 7 labels"),
    "empty": (
        changed(x_test=np.zeros((0, 5, 4, 3), np.uint8), y_test=np.zeros(0, int)),
        "x_test, y_test.*at least one example, got none",
    ),
    "nan": (changed(x_train=NAN_IMAGES), "image 4 has a pixel that is NaN or infinite"),
    "inf": (changed(x_train=INF_IMAGES), "image 0 has a pixel that is NaN or infinite"),
    "mixed dtypes": (
        changed(x_test=np.zeros((2, 5, 4, 3), np.float32)),
        "must be alike.*uint8 and .*float32",
    ),
    "numbers as classes": (changed(classes=np.arange(3)), "classes must be a vector of strings"),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_broken_npz(tmp_path: Path, fault: str) -> None:
    change, message = NPZ_FAULTS[fault]
    path = tmp_path / "set.npz"
    np.savez(path, **change(npz_arrays()))
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert "set.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."])
def test_npz_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected an \.npz"):
        load_data(path)


def test_npz_with_damaged_bytes(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **npz_arrays())
    whole = path.read_bytes()
    position = whole.index(npz_arrays()["x_train"].tobytes())
    path.write_bytes(retyped(whole, position + 50, whole[position + 50] ^ 1))
    with pytest.raises(DataError, match=r"x_train cannot be read: Bad CRC-32"):
        load_data(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"set\.npz"):
        load_data(path)


@pytest.mark.parametrize("shape", [(10**15, 5, 4, 3), (10**9, 5, 4, 3), (2**62, 2**62, 4, 3)])
def test_npz_whose_header_promises_too_much(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **without("x_train")(npz_arrays()))
    member = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, fields)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", member.getvalue() + b"\0" * 100)
    with pytest.raises(DataError, match=r"set\.npz: the array x_train cannot be read"):
        load_data(path)


def test_npz_member_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **without("x_train")(npz_arrays()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train", b"plain bytes")
    with pytest.raises(DataError, match=r"set\.npz: x_train is no array in \.npy format"):
        load_data(path)
