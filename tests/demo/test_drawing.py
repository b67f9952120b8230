"""Drawings are prepared as MNIST's digits were."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpulayers.demo import Look, centred
from gpulayers.errors import DTypeError, ShapeError
from gpulayers.training import Dataset


def stroke(rows: int = 112, cols: int = 112, at: tuple[int, int] = (20, 50)) -> np.ndarray:
    """An L of bright ink with soft edges."""
    image = np.zeros((rows, cols), np.uint8)
    r, c = at
    image[r : r + 50, c : c + 10] = 255
    image[r + 40 : r + 50, c : c + 40] = 200
    return image


def gold(drawing: np.ndarray) -> np.ndarray:
    """The same in loops: a triangle filter, then the centre of mass."""
    r = [i for i in range(drawing.shape[0]) if max(drawing[i]) > 25]
    c = [j for j in range(drawing.shape[1]) if max(drawing[:, j]) > 25]
    cut = drawing[r[0] : r[-1] + 1, c[0] : c[-1] + 1]

    def resampled(line: list[float], size: int) -> list[float]:
        ratio = len(line) / size
        width = max(ratio, 1.0)
        out = []
        for i in range(size):
            centre = (i + 0.5) * ratio - 0.5
            total = weight = 0.0
            for j, value in enumerate(line):
                w = max(0.0, 1.0 - abs(j - centre) / width)
                total += w * float(value)
                weight += w
            out.append(total / weight)
        return out

    long = max(cut.shape)
    height, width = (max(1, round(n * 20 / long)) for n in cut.shape)
    columns = [resampled(list(cut[:, j]), height) for j in range(cut.shape[1])]
    small = [resampled([column[i] for column in columns], width) for i in range(height)]
    mass = sum(map(sum, small))
    down = sum(i * v for i, row in enumerate(small) for v in row) / mass
    right = sum(j * v for row in small for j, v in enumerate(row)) / mass
    top = min(max(round(13.5 - down), 0), 28 - height)
    left = min(max(round(13.5 - right), 0), 28 - width)
    out = np.zeros((28, 28), np.uint8)
    for i, row in enumerate(small):
        for j, v in enumerate(row):
            out[top + i, left + j] = math.floor(v + 0.5)
    return out


@pytest.mark.parametrize(
    "drawing",
    [
        stroke(61, 140, (3, 90)),
        np.asfortranarray(stroke()[::2]),
        stroke()[::3, ::2],
        np.pad(np.full((1, 1), 255, np.uint8), 3),  # a dot
        np.pad(np.full((2, 90), 255, np.uint8), 9),  # a line of one row in the end
        np.pad(np.eye(9, dtype=np.uint8) * 255, 1),  # grows
    ],
    ids=["oblong", "fortran", "strided", "dot", "line", "growing"],
)
def test_equals_the_loops(drawing: np.ndarray) -> None:
    before = drawing.copy()
    actual = centred(drawing)
    assert actual.dtype == np.uint8 and actual.shape == (28, 28)
    assert np.abs(actual.astype(int) - gold(drawing).astype(int)).max() <= 1  # rounding of halves
    np.testing.assert_array_equal(drawing, before)


def test_where_and_how_large_it_was_drawn_does_not_matter() -> None:
    first = centred(stroke())
    np.testing.assert_array_equal(centred(stroke(at=(60, 5))), first)
    twice = centred(np.kron(stroke(), np.ones((2, 2), np.uint8)))
    assert np.abs(twice.astype(int) - first).max() < 40
    rows, cols = np.nonzero(first)
    assert max(np.ptp(rows), np.ptp(cols)) == 19  # 20 pixels
    for axis in (0, 1):
        centre = np.arange(28) @ first.sum(axis=1 - axis) / first.sum()
        assert abs(centre - 13.5) <= 0.5


def test_no_ink_and_faint_noise_stay_blank() -> None:
    assert not centred(np.zeros((5, 9), np.uint8)).any()
    assert not centred(np.full((30, 30), 20, np.uint8)).any()


def test_digits_moved_and_enlarged_are_still_read(look: Look, digits: Dataset) -> None:
    images, labels = digits.test.images[:300, ..., 0], digits.test.labels[:300]
    moved = [
        np.pad(np.kron(image, np.ones((3, 3), np.uint8)), ((0, 60), (40, 0))) for image in images
    ]
    prepared = np.stack([centred(image) for image in moved])[..., None]
    plain = (look.network.predict_classes(images[..., None]) == labels).mean()
    assert plain > 0.93
    assert (look.network.predict_classes(prepared) == labels).mean() > plain - 0.04


@pytest.mark.parametrize(
    "bad, error, words",
    [
        (np.zeros((3, 3), np.float32), DTypeError, "uint8 array, got float32"),
        ([[1, 2]], DTypeError, "list"),
        (np.zeros((3, 3, 1), np.uint8), ShapeError, r"\(3, 3, 1\)"),
        (np.zeros((0, 3), np.uint8), ShapeError, r"\(0, 3\)"),
    ],
)
def test_what_is_no_drawing(bad: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        centred(bad)  # pyright: ignore[reportArgumentType]
