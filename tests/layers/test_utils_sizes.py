"""`gpulayers.utils`: paddings for a wanted size, and zeros between pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import utils
from gpulayers.errors import ShapeError

rng = np.random.default_rng(7)


@pytest.mark.parametrize("kernel", [(1, 2), (3, 4), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [0, 1])
@pytest.mark.parametrize("out", [(6, 7), (9, 8), (12, 20)])
def test_calc_pad_dims_give_the_output_size(kernel, stride, dilation, out):
    spans = [f * (dilation + 1) - dilation for f in kernel]
    if any(
        stride * (o - 1) + span - n <= -stride
        for o, span, n in zip(out, spans, (6, 8), strict=True)
    ):
        with pytest.raises(ShapeError, match="no padding"):
            utils.calc_pad_dims_2D((2, 6, 8, 3), out, kernel, stride, dilation)
        return
    pads = utils.calc_pad_dims_2D((2, 6, 8, 3), out, kernel, stride, dilation)
    dims = utils.calc_conv_out_dims((2, 6, 8, 3), (*kernel, 3, 4), stride, pads, dilation)
    assert dims == (2, *out, 4)
    top, bottom, left, right = pads
    assert 0 <= bottom - top <= 1 and 0 <= right - left <= 1

    one = utils.calc_pad_dims_1D((2, 8, 3), out[1], kernel[1], stride, dilation)
    assert one == (left, right)
    causal = utils.calc_pad_dims_1D((2, 8, 3), out[1], kernel[1], stride, dilation, causal=True)
    assert causal == (left + right, 0)


def test_an_output_smaller_than_without_padding_is_impossible():
    with pytest.raises(ShapeError, match="no padding makes 9 pixels give 3"):
        utils.calc_pad_dims_2D((1, 9, 9, 1), (3, 3), (3, 3), 1)
    # floor: a stride of 2 may leave the last pixel unseen
    assert utils.calc_pad_dims_2D((1, 6, 6, 1), (2, 2), (3, 3), 2) == (0, 0, 0, 0)


@pytest.mark.parametrize("d", [0, 1, 3])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 1, 1, 1), (0, 2, 2, 1)])
def test_dilate(d, shape, backend):
    X = rng.normal(size=shape)
    n_ex, rows, cols, in_ch = shape
    expected = np.zeros((n_ex, rows + d * (rows - 1), cols + d * (cols - 1), in_ch))
    for n, r, c, k in np.ndindex(shape):
        expected[n, r * (d + 1), c * (d + 1), k] = X[n, r, c, k]
    np.testing.assert_array_equal(backend.asnumpy(utils.dilate(backend.asarray(X), d)), expected)
