"""Folders of pictures, folders of .npy files."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpulayers.errors import DataError, ParameterError
from gpulayers.training import Dataset, LazyImages, load_data, save_data
from gpulayers.training.datasets import folder as folder_module
from tests.training.networks import assert_same_run, dense, run


def picture(seed: int, rows: int = 6, cols: int = 5, channels: int = 3) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 256, (rows, cols, channels), np.uint8)
    return array[..., 0] if channels == 1 else array


def write(path: Path, array: np.ndarray, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> dict[str, list[np.ndarray]]:
    """PNGs, so that what was written can be had back exactly."""
    return {
        name: [write(root / name / f"{i:02}.png", picture(seed + 100 * k + i)) for i in range(n)]
        for k, (name, n) in enumerate(counts.items())
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """train: cat 3, dog 4; test: dog 2 (no cat); val: cat 1."""
    write_classes(tmp_path / "train", {"dog": 4, "cat": 3})
    write_classes(tmp_path / "test", {"dog": 2}, 1000)
    write_classes(tmp_path / "val", {"cat": 1}, 2000)
    return tmp_path


@pytest.mark.parametrize("in_memory", [None, False])
def test_parts_and_classes(pictures: Path, in_memory: bool | None) -> None:
    (pictures / "train" / "cat" / "notes.txt").write_text("no picture")
    (pictures / "train" / "cat" / ".hidden.png").write_text("no picture")
    (pictures / "train" / ".git").mkdir()
    data = load_data(pictures, in_memory=in_memory)
    assert data.classes == ("cat", "dog") and data.name == pictures.name
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.test.labels.tolist() == [1, 1]
    assert data.validation is not None and data.validation.labels.tolist() == [0]
    assert isinstance(data.train.images, LazyImages) == (in_memory is False)
    want = [picture(100 + i) for i in range(3)] + [picture(i) for i in range(4)]
    np.testing.assert_array_equal(np.asarray(data.train.images), want)
    np.testing.assert_array_equal(data.test.images[:], [picture(1000), picture(1001)])
    np.testing.assert_array_equal(
        data.train.images[[6, 0, 5, 1, 4]], [want[i] for i in (6, 0, 5, 1, 4)]
    )


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "b/sub/1.png", "b/A.PNG", "b.c/1.png", "B/1.png"]
    for i, name in enumerate(names):
        write(tmp_path / "train" / name, picture(i))
    write(tmp_path / "test" / "b" / "1.png", picture(9))
    data = load_data(tmp_path)
    assert data.classes == ("B", "b", "b.c")
    order = [5, 1, 0, 3, 2, 4]
    np.testing.assert_array_equal(data.train.images, [picture(i) for i in order])
    assert data.train.labels.tolist() == [0, 1, 1, 1, 1, 2]


def test_classes_alone_are_divided(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 5})
    data = load_data(tmp_path)
    assert np.bincount(data.train.labels).tolist() == [8, 4]
    assert np.bincount(data.test.labels).tolist() == [2, 1]
    again = load_data(tmp_path, in_memory=False)
    np.testing.assert_array_equal(np.asarray(again.test.images), data.test.images)
    together = {a.tobytes() for s in (data.train, data.test) for a in s.images}
    assert together == {picture(i).tobytes() for i in (*range(10), *range(100, 105))}


def test_scaled_and_cut_around_the_centre(tmp_path: Path) -> None:
    """A wide picture loses its sides, a tall one top and bottom; at the cut they shine in."""
    wide, tall = np.zeros((8, 32, 3), np.uint8), np.zeros((40, 8, 3), np.uint8)
    wide[:, :12], wide[:, 12:20], wide[:, 20:] = 50, 100, 150
    tall[:16], tall[16:24], tall[24:] = 50, 100, 150
    for name, array in (("w", wide), ("t", tall)):
        write(tmp_path / "train" / name / "1.png", array)
        write(tmp_path / "test" / name / "1.png", array)
    data = load_data(tmp_path, image_size=4)
    assert data.train.images.shape == (2, 4, 4, 3)
    assert abs(data.train.images.astype(int) - 100).max() < 8
    assert (data.train.images[0, 1:-1] == 100).all()
    assert (data.train.images[1, :, 1:-1] == 100).all()
    data = load_data(tmp_path, image_size=(2, 8))
    assert (data.train.images[1] > 99).any() and data.input_shape == (2, 8, 3)


def test_sizes_must_agree(pictures: Path) -> None:
    odd = pictures / "train" / "dog" / "99.png"
    write(odd, picture(1, 7, 5))
    with pytest.raises(DataError, match=r"99\.png: 7 x 5 pixels, but .*00\.png has 6 x 5.*size"):
        load_data(pictures)
    assert load_data(pictures, image_size=6).input_shape == (6, 6, 3)
    lazy = load_data(pictures, in_memory=False)
    with pytest.raises(DataError, match=r"99\.png: 7 x 5"):
        lazy.train.images[7]
    odd.unlink()
    write(pictures / "test" / "dog" / "00.png", picture(1, 7, 5))
    with pytest.raises(DataError, match=r"01\.png: 6 x 5 pixels, but .*00\.png has 7 x 5"):
        load_data(pictures)


def test_kinds_of_pictures(tmp_path: Path) -> None:
    grey, rgb = picture(1, channels=1), picture(2)
    for part in ("train", "test"):
        at = tmp_path / part / "a"
        write(at / "0.png", grey)
        write(at / "1.png", np.dstack([rgb, picture(3)[..., 0]]))  # with transparency
        write(at / "2.png", grey.astype(np.uint16) * 257)
        Image.fromarray(rgb).quantize(256).save(at / "3.png", transparency=b"\x00\x80")
        write(at / "4.bmp", rgb)
        write(at / "5.ppm", rgb)
        Image.fromarray(rgb).save(at / "6.tif")
        Image.fromarray(grey > 127).save(at / "7.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        Image.fromarray(np.rot90(rgb)).save(at / "8.png", exif=exif)
        Image.fromarray(rgb).save(at / "9.jpg", quality=95)
    images = load_data(tmp_path).train.images
    three = np.dstack([grey] * 3)
    for i, want in ((0, three), (1, rgb), (2, three), (4, rgb), (5, rgb), (6, rgb), (8, rgb)):
        np.testing.assert_array_equal(images[i], want, err_msg=str(i))
    np.testing.assert_array_equal(images[7], 255 * (three > 127))
    assert images.shape == (10, 6, 5, 3)
    greys = load_data(tmp_path, grayscale=True).train.images
    assert greys.shape == (10, 6, 5, 1)
    np.testing.assert_array_equal(greys[0, ..., 0], grey)
    np.testing.assert_array_equal(greys[2, ..., 0], grey)
    light = rgb @ [0.299, 0.587, 0.114]  # ITU-R 601, as Pillow documents
    assert abs(greys[4, ..., 0] - light).max() <= 1


@pytest.mark.parametrize(
    "ending, change",
    [
        ("png", lambda data: b""),
        ("jpg", lambda data: b"no picture at all"),
        ("png", lambda data: data[:20]),
        ("jpg", lambda data: data[:20]),
        ("png", lambda data: data[: len(data) * 2 // 3]),
        ("jpg", lambda data: data[: len(data) * 2 // 3]),
        ("png", lambda data: data[:45] + bytes(b ^ 255 for b in data[45:60]) + data[60:]),
    ],
)
def test_broken_pictures_are_named(pictures: Path, ending: str, change: Any) -> None:
    path = pictures / "train" / "dog" / f"50.{ending}"
    write(path, picture(3, 60, 50))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"50\.{ending}: the picture cannot be read"):
        load_data(pictures, image_size=6)
    lazy = load_data(pictures, image_size=6, in_memory=False)
    with pytest.raises(DataError, match=rf"50\.{ending}"):
        run(dense(), lazy, batch_size=2, epochs=1, normalize=False)  # out of a thread, in training


def test_a_picture_too_large_is_refused(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"cannot be read: Image size .* exceeds limit"):
        load_data(pictures)


def test_hostile_folders(pictures: Path) -> None:
    (pictures / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=r"bird: no picture of this class"):
        load_data(pictures)
    (pictures / "train" / "bird").rmdir()
    write(pictures / "test" / "cow" / "1.png", picture(0))
    with pytest.raises(DataError, match="the training pictures have no class cow"):
        load_data(pictures)
    shutil.rmtree(pictures / "test" / "cow")
    for name in ("00.png", "01.png"):
        (pictures / "test" / "dog" / name).unlink()
    with pytest.raises(DataError, match="test: holds no pictures in subfolders"):
        load_data(pictures)
    shutil.rmtree(pictures / "test")
    data = load_data(pictures)  # then val is the test split
    assert data.validation is None and len(data.test) == 1
    shutil.rmtree(pictures / "val")
    with pytest.raises(DataError, match="beside the folder train expected one of test, val"):
        load_data(pictures)


def test_one_picture(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", picture(0))
    with pytest.raises(DataError, match="too few pictures for a test split"):
        load_data(tmp_path)
    write(tmp_path / "train" / "a" / "1.png", picture(0, 1, 1))
    write(tmp_path / "test" / "a" / "1.png", picture(0, 1, 1))
    shutil.rmtree(tmp_path / "a")
    assert load_data(tmp_path).train.images.shape == (1, 1, 1, 3)


def test_no_pictures_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(
        DataError, match=r"expected a folder with a subfolder of pictures.*; found a$"
    ):
        load_data(tmp_path)


@pytest.mark.parametrize("size", [0, -1, 2.5, (3,), (3, 0), "6"])
def test_bad_sizes(pictures: Path, size: Any) -> None:
    with pytest.raises(ParameterError, match="image_size"):
        load_data(pictures, image_size=size)


def test_without_pillow(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ImportError("no Pillow")
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"need the package pillow: pip install pillow"):
        load_data(pictures)


def test_decoding_while_training_is_the_same_run(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        run(dense(), load_data(pictures, in_memory=kept), batch_size=3, transform="flip", threads=t)
        for kept, t in ((True, 0), (False, 0), (False, 3))
    ]
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])
    monkeypatch.setattr(folder_module, "IN_MEMORY", 5 * 6 * 5 * 3)
    data = load_data(pictures)
    assert isinstance(data.train.images, LazyImages)  # 7 pictures are more than 5
    assert isinstance(data.test.images, np.ndarray)


# ------------------------------------------------------------------------------------- npy folders


def test_saved_and_loaded(pictures: Path, tmp_path: Path) -> None:
    data = load_data(pictures, in_memory=False)
    folder = save_data(data, tmp_path / "as-npy")
    assert sorted(p.name for p in folder.iterdir()) == [
        "classes.txt",
        *(f"{axis}_{part}.npy" for axis in "xy" for part in ("test", "train", "validation")),
    ]
    back = load_data(folder)
    assert isinstance(back.train.images, LazyImages) and back.classes == data.classes
    assert isinstance(load_data(folder, in_memory=True).train.images, np.ndarray)
    for part in ("train", "test", "validation"):
        ours, theirs = getattr(back, part), getattr(data, part)
        np.testing.assert_array_equal(np.asarray(ours.images), np.asarray(theirs.images))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    with pytest.raises(DataError, match=r"holds classes.txt, x_test.npy.* already"):
        save_data(data, folder)


def test_floats_saved_in_parts(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpulayers.training.datasets.mapped as mapped_module
    from gpulayers.training import Split

    monkeypatch.setattr(mapped_module, "_BLOCK", 7 * 100 * 4)
    train = Split(digits.train.images.astype("f4") / 3, digits.train.labels)
    test = Split(digits.test.images.astype("f4") / 3, digits.test.labels)
    back = load_data(save_data(Dataset("d", train, test, digits.classes), tmp_path / "npy"))
    np.testing.assert_array_equal(np.asarray(back.train.images), train.images)
    assert back.train.images.dtype == np.float32 and back.classes == digits.classes


def test_a_save_that_fails_leaves_no_half_file(pictures: Path, tmp_path: Path) -> None:
    data = load_data(pictures, in_memory=False)
    (pictures / "train" / "dog" / "03.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"03\.png"):
        save_data(data, tmp_path / "npy")
    assert list((tmp_path / "npy").iterdir()) == []


@pytest.fixture
def npy(tmp_path: Path, digits: Dataset) -> Path:
    """A folder as a user writes it: grey images without a channel axis, labels of any integers."""
    for part, split in (("train", digits.train), ("test", digits.test)):
        np.save(tmp_path / f"x_{part}.npy", split.images[..., 0])
        np.save(tmp_path / f"y_{part}.npy", split.labels.astype(np.int16))
    return tmp_path


def test_a_users_npy_folder(npy: Path, digits: Dataset) -> None:
    data = load_data(npy)
    assert data.input_shape == (10, 10, 1) and data.classes == digits.classes
    assert_same_run(run(dense(), data, epochs=1), run(dense(), digits, epochs=1))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x_train.npy", None, "missing x_train.npy"),
        ("x_train.npy", b"", "x_train.npy: expected an array in .npy format"),
        ("y_test.npy", b"PK\x03\x04 a zip", "y_test.npy: expected an array in .npy format"),
        ("x_train.npy", 90, r"x_train.npy: (the array )?cannot be read"),
        ("x_train.npy", -50, r"x_train.npy: the array cannot be read: mmap length"),
        ("y_train.npy", -50, r"y_train.npy: the array cannot be read"),
        ("x_test.npy", np.array([{}]), "x_test.npy: the array cannot be read"),
        ("y_train.npy", np.zeros(300), "labels must be integers, got dtype float64"),
        ("y_train.npy", np.zeros(299, int), "300 images but 299 labels"),
        ("x_train.npy", np.zeros((300, 100)), r"\(n, rows, cols, channels\), got \(300, 100\)"),
        ("x_train.npy", np.zeros((300, 10, 10), int), "uint8 or floating, got dtype int64"),
        ("classes.txt", b"\xff\xfe\x00", "classes.txt: expected a class's name in each line"),
        ("classes.txt", b"only\ntwo\n", "the 2 classes have labels 0..1"),
        ("x_validation.npy", np.zeros((1, 10, 10), np.uint8), "y_validation.npy: cannot be read"),
        ("train-images-idx3-ubyte", b"", "holds both idx files and npy files"),
    ],
)
def test_damaged_npy_folders(npy: Path, name: str, content: Any, message: str) -> None:
    path = npy / name
    if content is None:
        path.unlink()
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load_data(npy)
