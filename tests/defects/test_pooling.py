"""Max pooling of padded pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.defects.support import assert_mended, image


@pytest.mark.defect(1)
def test_max_pool_padding_never_wins(backend: Backend) -> None:
    """numpy-ml pads with zeros: 12 of the 16 maxima of a picture of -1 are 0."""
    Y = layers.Pool2D((3, 3), pad=1).forward(backend.asarray(-np.ones((1, 4, 4, 1))))
    zeros_at_the_border = np.pad(-np.ones((2, 2)), 1)
    assert_mended(Y, -np.ones((1, 4, 4, 1)), image(zeros_at_the_border))


# numpy-ml's own gradients for rising pixels and dY = 1, 2, ..., 9
STRIDE_3 = np.array(
    [
        [1, 0, 0, 2, 0, 3, 3],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [4, 0, 0, 5, 0, 6, 6],
        [0, 0, 0, 0, 0, 0, 0],
        [7, 0, 0, 8, 0, 9, 9],
        [7, 0, 0, 8, 0, 9, 9],
    ]
)
ONE_SIDED = np.array([[1, 5, 3], [11, 28, 15], [7, 17, 9]])


@pytest.mark.defect(2)
@pytest.mark.parametrize(
    "kernel, stride, pad, size, last, numpy_ml",
    [
        pytest.param(2, 2, 1, 4, [0, 2, 3], None, id="ValueError, zero-size array"),
        pytest.param(3, 1, 1, 5, [1, 2, 3, 4, 4], None, id="ValueError, broadcasting"),
        pytest.param(2, 3, 1, 7, [0, 3, 6], STRIDE_3, id="some gradients four times"),
        pytest.param(2, 1, (1, 0, 1, 0), 3, [0, 1, 2], ONE_SIDED, id="gradients smeared"),
    ],
)
def test_the_gradient_of_a_padded_maximum_goes_to_its_pixel(
    kernel: int, stride: int, pad: Any, size: int, last: list[int], numpy_ml: Any, backend: Backend
) -> None:
    """numpy-ml's backward looks for the maxima in the unpadded picture: two of these calls raise,
    two give the arrays above. With rising pixels the last one in a window is its maximum."""
    layer = layers.Pool2D((kernel, kernel), stride=stride, pad=pad)
    X = image(np.arange(1.0, size * size + 1).reshape(size, size))
    Y = layer.forward(backend.asarray(X))
    dY = np.arange(1.0, len(last) ** 2 + 1).reshape(len(last), len(last))
    right = np.zeros((size, size))
    for a, r in enumerate(last):
        for b, c in enumerate(last):
            right[r, c] += dY[a, b]
    assert Y.shape == image(dY).shape
    dX = layer.backward(backend.asarray(image(dY)))
    assert_mended(dX, image(right), None if numpy_ml is None else image(numpy_ml))
