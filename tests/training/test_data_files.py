"""Reading a dataset from a path: idx, CIFAR-10 binary, npz; and every way such files are broken."""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpulayers.errors import DataError, ParameterError
from gpulayers.training.data import DATASETS, load_data
from tests.training.dataset_files import (
    CIFAR_TRAIN,
    IDX,
    idx_bytes,
    small_arrays,
    write_cifar,
    write_idx,
)

# -------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folder(tmp_path: Path, packed: bool) -> None:
    arrays = write_idx(tmp_path / "digits", packed=packed)
    data = load_data(tmp_path / "digits")
    np.testing.assert_array_equal(data.train.images, arrays[0][..., None])
    np.testing.assert_array_equal(data.train.labels, arrays[1])
    np.testing.assert_array_equal(data.test.images, arrays[2][..., None])
    np.testing.assert_array_equal(data.test.labels, arrays[3])
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64
    assert data.name == "digits"
    assert data.classes == ("0", "1", "2")
    assert data.input_shape == (4, 3, 1)


def test_idx_in_the_other_spelling(tmp_path: Path) -> None:
    arrays = small_arrays()
    for name, array in zip(IDX, arrays, strict=True):
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(load_data(tmp_path).train.images[..., 0], arrays[0])


def test_cifar_folder(tmp_path: Path) -> None:
    written = write_cifar(tmp_path)
    check_cifar(load_data(str(tmp_path)), written)


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "mine.tgz"])
def test_cifar_archive(tmp_path: Path, name: str) -> None:
    written = write_cifar(tmp_path / "cifar-10-batches-bin")
    pack(tmp_path / name, tmp_path / "cifar-10-batches-bin")
    check_cifar(load_data(tmp_path / name), written)


@pytest.mark.parametrize("archive", [True, False])
def test_cifar_in_the_folder_above(tmp_path: Path, archive: bool) -> None:
    written = write_cifar(tmp_path / "cifar-10-batches-bin")
    if archive:
        pack(tmp_path / "cifar-10-binary.tar.gz", tmp_path / "cifar-10-batches-bin")
        shutil.rmtree(tmp_path / "cifar-10-batches-bin")
    check_cifar(load_data(tmp_path), written)


def test_archive_members_are_never_written_to_disk(tmp_path: Path) -> None:
    written = write_cifar(tmp_path / "in")
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in written:
            archive.add(tmp_path / "in" / name, arcname=f"../../{name}")
        archive.addfile(tarfile.TarInfo("../escaped.txt"), io.BytesIO())
    before = sorted(p.name for p in tmp_path.rglob("*"))
    check_cifar(load_data(path), written)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "escaped.txt").exists()


def check_cifar(data, written) -> None:
    np.testing.assert_array_equal(
        data.train.images, np.concatenate([written[name][0] for name in CIFAR_TRAIN])
    )
    np.testing.assert_array_equal(
        data.train.labels, np.concatenate([written[name][1] for name in CIFAR_TRAIN])
    )
    np.testing.assert_array_equal(data.test.images, written["test_batch.bin"][0])
    np.testing.assert_array_equal(data.test.labels, written["test_batch.bin"][1])
    assert data.classes[0] == "airplane" and data.classes[9] == "truck"
    assert data.train.images.flags.c_contiguous and data.test.images.flags.c_contiguous
    assert data.train.labels.dtype == np.int64


def pack(path: Path, folder: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)


def npz_arrays(dtype: type = np.uint8, channels: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "x_train": rng.integers(0, 256, (6, 5, 4, channels)).astype(dtype),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (2, 5, 4, channels)).astype(dtype),
        "y_test": np.array([2, 0], np.int8),
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, dtype: type, save: Callable) -> None:
    arrays = npz_arrays(dtype)
    save(tmp_path / "a.npz", **arrays)
    data = load_data(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.train.images, arrays["x_train"])
    assert data.train.images.dtype == data.test.images.dtype == dtype
    np.testing.assert_array_equal(data.train.labels, arrays["y_train"])
    np.testing.assert_array_equal(data.test.images, arrays["x_test"])
    np.testing.assert_array_equal(data.test.labels, arrays["y_test"])
    assert data.test.labels.dtype == np.int64
    assert (data.name, data.classes) == ("a.npz", ("0", "1", "2"))


def test_npz_of_grey_images_and_named_classes(tmp_path: Path) -> None:
    arrays = npz_arrays()
    for key in ("x_train", "x_test"):
        arrays[key] = np.asfortranarray(arrays[key][..., 0])
    np.savez(tmp_path / "a.npz", **arrays, classes=np.array(["cat", "dog", "owl", "yak"]))
    data = load_data(str(tmp_path / "a.npz"))
    assert data.classes == ("cat", "dog", "owl", "yak")
    np.testing.assert_array_equal(data.train.images[..., 0], arrays["x_train"])
    assert data.train.images.shape == (6, 5, 4, 1)
    assert data.train.images.flags.c_contiguous


# ----------------------------------------------------------------------- paths that hold no dataset


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none.npz", str(tmp_path / "none.tar.gz")):
        with pytest.raises(DataError, match="no such file or folder"):
            load_data(path)


def test_empty_folder_and_unknown_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with a subfolder.*found nothing$"):
        load_data(tmp_path)
    (tmp_path / "1.png").touch()
    with pytest.raises(DataError, match="the pictures lie in the folder itself; expected a subf"):
        load_data(tmp_path)
    (tmp_path / "1.png").unlink()
    (tmp_path / "set.pkl").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match=r"found set\.pkl$"):
        load_data(tmp_path)
    with pytest.raises(DataError, match=r"set\.pkl: unknown format; expected a folder"):
        load_data(tmp_path / "set.pkl")


def test_folder_with_two_datasets(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_cifar(tmp_path)
    with pytest.raises(DataError, match="both idx files and CIFAR-10"):
        load_data(tmp_path)


def test_file_name_that_is_a_folder(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / f"{IDX[0]}.gz").unlink()
    (tmp_path / IDX[0]).mkdir()
    with pytest.raises(DataError, match=f"{IDX[0]}: cannot be read: Is a directory"):
        load_data(tmp_path)


def test_unreadable_file(unprivileged_folder: Path) -> None:
    write_idx(unprivileged_folder)
    path = unprivileged_folder / f"{IDX[3]}.gz"
    path.chmod(0)
    with pytest.raises(DataError, match=f"{IDX[3]}.gz: cannot be read: Permission denied"):
        load_data(unprivileged_folder)


def test_unreadable_npz(unprivileged_folder: Path) -> None:
    path = unprivileged_folder / "set.npz"
    np.savez(path, **npz_arrays())
    path.chmod(0)
    with pytest.raises(DataError, match=r"set\.npz: cannot be read: Permission denied"):
        load_data(path)


def test_unreadable_folder(unprivileged_folder: Path) -> None:
    folder = unprivileged_folder / "closed"
    write_idx(folder)
    folder.chmod(0o300)  # may be entered, not listed
    with pytest.raises(DataError, match="the folder cannot be read: Permission denied"):
        load_data(folder)
    unprivileged_folder.chmod(0)  # may not even be entered
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_data(folder)
    with pytest.raises(DataError, match=r"data_dir: .*cannot be read: Permission denied"):
        load_data("mnist", data_dir=folder, download=False)


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, nearest",
    [("mnst", "mnist"), ("cifar-10", "cifar10"), ("fashion", "fashion-mnist")],
)
def test_unknown_name_is_suggested(name: str, nearest: str) -> None:
    with pytest.raises(ParameterError, match=f"unknown dataset '{name}'.*did you mean '{nearest}'"):
        load_data(name)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError) as caught:
        load_data("imagenet-22k")
    for name in DATASETS:
        assert name in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, b"mnist", ["mnist"]])
def test_name_of_a_wrong_type(value: object) -> None:
    with pytest.raises(ParameterError, match="expected a name or a path, got"):
        load_data(value)  # type: ignore[arg-type]


def test_name_goes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "mnist-10k")
    write_idx(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert len(load_data("mnist-10k").train) == 10_000
    assert len(load_data("./mnist-10k").train) == 12
    assert len(load_data(Path("mnist-10k")).train) == 12
    assert len(load_data("digits").train) == 12  # unknown as a name, but there


def test_header_integers_are_big_endian(tmp_path: Path) -> None:
    arrays = small_arrays(n_train=300)  # 300 differs from its byte-swapped value
    write_idx(tmp_path, arrays, packed=False)
    assert (tmp_path / IDX[0]).read_bytes()[4:8] == struct.pack(">I", 300)
    assert len(load_data(tmp_path).train) == 300
