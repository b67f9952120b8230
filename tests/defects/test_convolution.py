"""The loop form of the convolution's gradient, and transposed convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers, utils
from tests.conftest import Backend
from tests.defects.support import assert_mended, image, known
from tests.support.compare import assert_close


@pytest.mark.defect(3)
@pytest.mark.parametrize("as_list", [False, True], ids=["array", "list"])
def test_the_loop_form_of_the_gradient_works(as_list: bool, numpy_backend: Backend) -> None:
    """numpy-ml's Conv2D._backward_naive raises ValueError for any gradient."""
    W = np.array([[1.0, 2], [3, 4]])[:, :, None, None]
    layer = known(layers.Conv2D(1, (2, 2)), numpy_backend, (1, 3, 3, 1), W=W)
    dY = np.ones_like(layer.forward(image(np.arange(1.0, 10).reshape(3, 3))))
    dX = layer._backward_naive([dY] if as_list else dY)
    assert_close(dX, image([[1, 3, 2], [4, 10, 6], [3, 7, 4]]))
    assert_close(layer.gradients["W"][:, :, 0, 0], [[12, 16], [24, 28]])
    assert layer.gradients["b"].item() == 4


POWERS = np.array([[1.0, 10], [100, 1000]])[:, :, None, None]
ROW = np.array([[1.0, 10, 100]])[:, :, None, None]


@pytest.mark.defect(10)
def test_a_transposed_convolution_takes_any_padding(backend: Backend) -> None:
    """numpy-ml raises ValueError (padding cannot be less than 0) for pad > kernel - 1."""
    layer = known(layers.Deconv2D(1, (2, 2), pad=2), backend, (1, 4, 4, 1), W=POWERS)
    Y = layer.forward(backend.asarray(image(np.arange(1.0, 17).reshape(4, 4))))
    # the middle of the 5 x 5 plane, which ends there: 11 * 1 + 10 * 10 + 7 * 100 + 6 * 1000
    assert_close(Y, image([[6811.0]]))


@pytest.mark.defect(11)
def test_uneven_padding_crops_where_it_says(backend: Backend) -> None:
    """numpy-ml crops one column on each side for pad=(0, 0, 0, 2): 12, 123, 230."""
    X = image([[1, 2, 3]])
    full = [1, 12, 123, 230, 300]
    Y = utils.deconv2D_naive(backend.asarray(X), backend.asarray(ROW), 1, (0, 0, 0, 2))
    assert_mended(Y, image([full[:3]]), image([[12, 123, 230]]))
    layer = known(layers.Deconv2D(1, (1, 3), pad=(0, 0, 0, 2)), backend, X.shape, W=ROW)
    assert_mended(layer.forward(backend.asarray(X)), image([full[:3]]), image([[12, 123, 230]]))


@pytest.mark.defect(11)
def test_same_padding_of_an_even_kernel_crops_bottom_and_right(backend: Backend) -> None:
    """numpy-ml reports the padding (0, 1, 0, 1) and crops the top row and the left column."""
    X: Any = backend.asarray(image([[1, 2], [3, 4]]))
    layer = known(layers.Deconv2D(1, (2, 2), pad="same"), backend, X.shape, W=POWERS)
    Y = layer.forward(X)
    assert_mended(Y, image([[1, 12], [103, 1234]]), image([[1234, 2040], [3400, 4000]]))
