"""Arrays of more than 2**31 elements: virtual memory, of which a few blocks touch a few pages."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda import table
from tests.kernels.arrays import blocks
from tests.kernels.cases_conv import constants
from tests.kernels.gold import Geometry
from tests.kernels.launchers import EmulatedLauncher
from tests.support.cuda_on_cpu import KernelError

pytestmark = pytest.mark.emulated

#: columns of a 3300 x 3300 x 8 image under 5 x 5 windows: 2.17e9 elements, just over 2**31
COLUMNS = 3296 * 3296 * 25 * 8


def virtual(elements: int) -> np.ndarray:
    """Zeros that take memory only where they are touched, on Linux without reserving any."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=np.float16)


def gather(index: str) -> np.ndarray:
    columns, x = virtual(COLUMNS), virtual(3300 * 3300 * 8)
    columns[-25 * 8 :] = 1.0  # the last window
    grid = blocks(x.size, "col2im_gather")
    numbers = (3300, 3300, 8, 3296, 3296, 5, 5, 1, 1, 0, 0, 1, 1)
    launcher = EmulatedLauncher(only_blocks=4)  # the first, the last and two between
    launcher.launch("col2im_gather", "float16", index, grid, (columns, x, x.size, *numbers))
    return x


def test_64_bit_indices_reach_every_element() -> None:
    x = gather("int64")
    assert (x[-5 * 8 :] == 1.0).all()  # one tap row of the last window
    assert (x[-32 * 8 : -5 * 8] == 0.0).all()


def test_32_bit_indices_would_not() -> None:
    with pytest.raises(KernelError, match="overflow"):
        gather("int32")


def test_so_the_engine_takes_64_bits_there() -> None:
    assert table.index_for(COLUMNS, 3300 * 3300 * 8) == "int64"
    assert table.index_for(3300 * 3300 * 8) == "int32"


def launch_special(name: str, g: Geometry, args: tuple[Any, ...], tiles: int, blocks: int) -> None:
    known = constants(g, 8, False, special=True)
    launcher = EmulatedLauncher(only_blocks=blocks)
    launcher.launch(name, "float16", "int32", (tiles, 1), args, constants=known)


def test_taps_of_an_image_beyond_32_bits() -> None:
    g = Geometry(1, 16384, 16384, 16, (3, 3), (1, 1), (1, 1, 1, 1))
    pixels = 16384**2
    x, w, z = virtual(16 * pixels), np.ones((144, 8), np.float16), virtual(8 * pixels)
    b, winners = np.zeros(8, np.float16), np.zeros(0, np.uint8)
    x[: 2 * 16] = x[-2 * 16 :] = 1.0
    args = (x, w, b, z, winners, pixels, 8, False, False, False, g.ch, *g.numbers)
    launch_special("conv2d_forward_tensor", g, args, pixels // 128, 2)
    for seen in (z[:24], z[-24:][::-1]):
        np.testing.assert_array_equal(seen, np.repeat([32.0, 32.0, 16.0], 8))


def test_taps_too_far_from_one_another_for_32_bits() -> None:
    g = Geometry(1, 16384, 16384, 16, (3, 1), (1, 1), (0, 0, 0, 0), (8191, 1))
    pixels = 2 * 16384
    x, w, z = virtual(16 * 16384**2), np.ones((48, 8), np.float16), virtual(8 * pixels)
    b, winners = np.zeros(8, np.float16), np.zeros(0, np.uint8)
    x[-16:] = 1.0
    args = (x, w, b, z, winners, pixels, 8, False, False, False, g.ch, *g.numbers)
    launch_special("conv2d_forward_tensor", g, args, pixels // 128, 2)
    np.testing.assert_array_equal(z[-16:], np.repeat([0.0, 16.0], 8))


@pytest.mark.parametrize("apart", [1, 8191])
def test_gradients_of_an_image_beyond_32_bits(apart: int) -> None:
    g = Geometry(1, 16384, 32768, 8, (3, 1), (1, 1), (apart, apart, 0, 0), (apart, 1))
    pixels = 16384 * 32768
    dz, w, dx = virtual(8 * pixels), np.ones((3 * 8, 8), np.float16), virtual(8 * pixels)
    none, wide, codes = (np.zeros(0, d) for d in (np.float16, np.float32, np.uint8))
    dz[:8] = dz[-8:] = 1.0
    others = (none, codes, none, none, wide, wide, wide, np.zeros(0, np.uint32), wide)
    args = (none, dz, codes, w, none, wide, dx, *others)
    flags = (pixels, pixels, 8, pixels, 1, 0, *(False,) * 8, 1, g.ch)
    launch_special("conv2d_backward_tensor", g, (*args, *flags, *g.numbers), pixels // 128, 2)
    for seen in (dx[:16], dx[-16:][::-1]):
        np.testing.assert_array_equal(seen, np.repeat([8.0, 0.0], 8))


def test_so_do_the_weights_of_a_recurrent_network() -> None:
    """More than 2**31 of them, side by side; the biases lie behind them."""
    hidden = 23180
    x, turned, recurrent = virtual(1), virtual(1), virtual(4 * hidden**2)
    given = virtual(hidden**2 + hidden)
    weights, into = virtual(4 * hidden), virtual(4 * hidden)
    b = np.full(hidden, 2.0, np.float16)
    total = recurrent.size + into.size + 4 * hidden
    arrays = (x, *(given,) * 4, *(b,) * 4, turned, recurrent, into, weights)
    args = (*arrays, total, 0, 1, 1, 1, hidden, 4, 0)
    launcher = EmulatedLauncher(only_blocks=2)  # the first and the last
    launcher.launch("sequence_prepare", "float16", "int64", blocks(total, "sequence_prepare"), args)
    assert (weights[-100:] == 2.0).all()
