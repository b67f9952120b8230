"""The sliding window: arguments, padding modes, output sizes, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpulayers.errors import ParameterError, ShapeError
from gpulayers.ops import Window
from tests.support.naive import conv as naive


def test_arguments_of_every_allowed_type() -> None:
    expected = Window((3, 2), (2, 2), (1, 1, 4, 4), (2, 2))
    assert Window.make((3, 2), 2, (1, 4), 1) == expected
    assert Window.make([3, 2], (2, 2), [1, 1, 4, 4], (1, 1)) == expected
    i = np.int64
    assert Window.make((i(3), np.uint8(2)), i(2), (i(1), i(4)), np.int32(1)) == expected
    assert Window.make(3, pad=np.int64(2)) == Window((3, 3), (1, 1), (2, 2, 2, 2))


def test_results_are_plain_ints() -> None:
    window = Window.make(np.int64(3), np.int32(2), (np.int8(1), 2), np.uint8(1), in_size=(9, 9))
    values = (*window.kernel, *window.stride, *window.pad, *window.dilation, window.taps)
    assert all(type(v) is int for v in (*values, *window.output_size(9, 9), *window.span))


SIZES = [(1, 1), (5, 4), (8, 7)]
WINDOWS = list(itertools.product([(1, 1), (2, 3), (4, 3)], [1, 2, 3], [0, 1, 2]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel, stride, zeros", WINDOWS)
def test_same_keeps_the_size_for_any_stride(size, kernel, stride, zeros) -> None:
    window = Window.make(kernel, stride, "same", zeros, in_size=size)
    rows = naive.same_pad(size[0], kernel[0], stride, zeros + 1)
    cols = naive.same_pad(size[1], kernel[1], stride, zeros + 1)
    assert window.pad == (*rows, *cols)
    assert window.output_size(*size) == size


@pytest.mark.parametrize("length", [1, 4, 9])
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("zeros", [0, 2])
def test_causal_pads_on_the_left_only(length, width, stride, zeros) -> None:
    window = Window.make_1d(width, stride, "causal", zeros, length)
    assert window.pad == (0, 0, sum(naive.same_pad(length, width, stride, zeros + 1)), 0)
    assert window.output_size(1, length) == (1, length)
    same = Window.make_1d(width, stride, "same", zeros, length)
    assert same.pad[2:] == naive.same_pad(length, width, stride, zeros + 1)


def test_causal_outputs_see_no_later_input() -> None:
    window = Window.make_1d(3, 1, "causal", 1, 7)
    for out in range(7):
        last_tap = out * window.stride[1] + window.span[1] - 1 - window.pad[2]
        assert last_tap == out


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("kernel, stride, zeros", WINDOWS)
@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (1, 0, 2, 1), (3, 3, 3, 3)])
def test_output_size_counts_the_positions_that_fit(rows, kernel, stride, zeros, pad) -> None:
    window = Window.make(kernel, stride, pad, zeros)
    counted = naive.output_size(rows, 6, kernel, (stride, stride), pad, (zeros + 1, zeros + 1))
    if 0 in counted:
        with pytest.raises(ShapeError, match="the kernel spans"):
            window.output_size(rows, 6)
    else:
        assert window.output_size(rows, 6) == counted


def test_one_dimension_is_an_image_of_one_row() -> None:
    assert Window.make_1d(3, 2, (1, 4), 1) == Window((1, 3), (1, 2), (0, 0, 1, 4), (1, 2))
    assert Window.make_1d(np.int64(3), pad=[1, 2]) == Window((1, 3), pad=(0, 0, 1, 2))
    assert Window.make_1d(2, pad=3).pad == (0, 0, 3, 3)


def test_geometry() -> None:
    window = Window((3, 4), (1, 2), (1, 2, 3, 4), (2, 3))
    assert (window.taps, window.span) == (12, (5, 10))
    assert window.padded_size(5, 6) == (8, 13)
    assert not window.is_pointwise
    assert Window((1, 1)).is_pointwise
    assert not Window((1, 1), (2, 1)).is_pointwise
    assert not Window((1, 1), pad=(0, 0, 0, 1)).is_pointwise


def _sees_only_padding(size: int, f: int, s: int, p: tuple[int, int], d: int) -> bool:
    """By listing for each output which pixels it sees."""
    seen = [
        [o * s + k * d - p[0] for k in range(f)] for o in range(naive.positions(size, f, s, *p, d))
    ]
    return any(all(not 0 <= pixel < size for pixel in pixels) for pixels in seen)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("f, s, d", list(itertools.product([1, 2, 3], [1, 2, 3], [1, 2, 3])))
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_blind_outputs(size, f, s, d, before) -> None:
    for after in range(4):
        if naive.positions(size, f, s, before, after, d) == 0:
            continue
        blind = _sees_only_padding(size, f, s, (before, after), d)
        rows = Window((f, 1), (s, 1), (before, after, 0, 0), (d, 1))
        cols = Window((1, f), (1, s), (0, 0, before, after), (1, d))
        assert rows.blind_outputs(size, 1) is blind
        assert cols.blind_outputs(1, size) is blind


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel": 0}, "Conv: kernel must be an integer >= 1, got 0"),
        ({"kernel": (3, -1)}, "Conv: kernel must be an integer >= 1, got -1"),
        ({"kernel": (3, 3, 3)}, r"Conv: kernel must be an int or \(rows, cols\), got \(3, 3, 3\)"),
        ({"kernel": 2.0}, "Conv: kernel must be an integer >= 1, got 2.0"),
        ({"kernel": True}, "Conv: kernel must be an integer >= 1, got True"),
        ({"kernel": "3"}, "Conv: kernel must be an integer >= 1, got '3'"),
        ({"kernel": None}, "Conv: kernel must be an integer >= 1, got None"),
        ({"stride": 0}, "Conv: stride must be an integer >= 1, got 0"),
        ({"stride": (1, 0)}, "Conv: stride must be an integer >= 1, got 0"),
        ({"stride": 1.5}, "Conv: stride must be an integer >= 1, got 1.5"),
        ({"stride": False}, "Conv: stride must be an integer >= 1, got False"),
        ({"pad": -1}, "Conv: pad must be an integer >= 0, got -1"),
        ({"pad": (0, 0, -2, 0)}, "Conv: pad must be an integer >= 0, got -2"),
        ({"pad": (1, 2, 3)}, r"Conv: pad must be an int, a tuple of 2 or 4 ints or 'same'"),
        ({"pad": "full"}, "Conv: pad must be .* or 'same', got 'full'"),
        ({"pad": "causal"}, "Conv: pad must be .* or 'same', got 'causal'"),
        ({"pad": np.float32(1)}, "Conv: pad must be an integer >= 0, got"),
        ({"pad": True}, "Conv: pad must be an integer >= 0, got True"),
        ({"pad": None}, "Conv: pad must be an integer >= 0, got None"),
        ({"dilation": -1}, "Conv: dilation must be an integer >= 0, got -1"),
        ({"pad": "same"}, "Conv: pad='same' needs the input size"),
    ],
)
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(ParameterError, match=message):
        Window.make(**{"kernel": 3, "name": "Conv", **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_width": (3,)}, r"Conv1D: kernel_width must be an integer >= 1, got \(3,\)"),
        ({"stride": 0}, "Conv1D: stride must be an integer >= 1, got 0"),
        ({"stride": (1, 1)}, "Conv1D: stride must be an integer >= 1"),
        ({"pad": -1}, "Conv1D: pad must be an integer >= 0, got -1"),
        ({"pad": (1, 2, 3, 4)}, "Conv1D: pad must be an int or"),
        ({"pad": "valid"}, "Conv1D: pad must be .*'same' or 'causal', got 'valid'"),
        ({"pad": "causal"}, "Conv1D: pad='causal' needs the input length"),
        ({"dilation": 0.5}, "Conv1D: dilation must be an integer >= 0, got 0.5"),
    ],
)
def test_bad_arguments_in_one_dimension(arguments, message) -> None:
    with pytest.raises(ParameterError, match=message):
        Window.make_1d(**{"kernel_width": 3, "name": "Conv1D", **arguments})


def test_a_kernel_larger_than_the_padded_input() -> None:
    message = (
        r"Conv: the kernel spans 5 x 3 pixels, but the padded input has only 4 x 9 "
        r"\(input 2 x 9, pad \(1, 1, 0, 0\)\)"
    )
    with pytest.raises(ShapeError, match=message):
        Window.make((5, 3), pad=(1, 0), in_size=(2, 9), name="Conv")
    with pytest.raises(ShapeError, match="spans 1 x 5 pixels"):
        Window.make_1d(3, dilation=1, length=4)
    assert Window.make((5, 3), pad=(2, 0), in_size=(1, 9)).output_size(1, 9) == (1, 7)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ShapeError, match="padded input has only 0 x 4"):
        Window((1, 1)).output_size(0, 4)


def test_windows_are_values() -> None:
    assert Window.make(3) == Window((3, 3))
    assert hash(Window.make(3)) == hash(Window((3, 3)))
    with pytest.raises(AttributeError):
        Window((3, 3)).kernel = (1, 1)  # type: ignore[misc]
